"""LeRobot's own policy beside its import: the actions of one plan, and whole episodes, in LeRobot's environment."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinoise.files import read_json, sha256

from .peer import Peer
from .played import Partial, compare

if TYPE_CHECKING:  # worker processes import the benchmarks too: they are not to load torch
    import torch
    from kinoise.policies import Policy
    from kinoise.spec import Observation, Plan


class Theirs:
    """LeRobot's policy of a checkpoint, which observes what its import does, by LeRobot's names. Plans for `Rollout`.

    Args:
        peer: runs `lerobot_acts.py` with this checkpoint.
        checkpoint: LeRobot's folder pretrained_model.
        ours: the import, set to decode as LeRobot does.
    """

    def __init__(self, peer: Peer, checkpoint: Path, ours: Policy) -> None:
        self.peer, self.ours, self.weights = peer, ours, checkpoint / "model.safetensors"
        self.names = names(read_json(checkpoint / "config.json")["input_features"], list(ours.spec.observations))
        self.evaluations = ours.config.decode.steps
        self._episode: torch.Generator | None = None

    @cached_property
    def sha256(self) -> str:
        return sha256(self.weights)

    def plan(self, obs: Observation, gen: Sequence[torch.Generator], **_: Any) -> Plan:
        """One action for one environment: LeRobot's policy keeps its plan, and the frames before, itself.

        An episode has a generator of its own, which tells when the next one begins, or the same one again.
        """
        import torch
        from kinoise.spec import Plan

        begins = gen[0] is not self._episode
        asked = {"observation": self._frames(obs)[-1], "seed": gen[0].initial_seed() if begins else None}
        self._episode = gen[0]
        action = torch.tensor(self.peer.ask(asked), dtype=torch.float32)
        return Plan(action[None, None], 1 / self.ours.spec.rate, self.evaluations)

    def difference(self, seen: Sequence[Observation]) -> dict[str, Any]:
        """The largest difference of the actions that both carry out of a plan from the same noise.

        Args:
            seen: each of one row. The import decodes as it is set to, which has to be LeRobot's way.
        """
        import torch
        from kinoise.policies.core.random import normal
        from kinoise.policies.diffusion import DiffusionPolicy

        policy, largest, scaled = self.ours, 0.0, 0.0
        assert isinstance(policy, DiffusionPolicy)
        shape = (1, policy.length, policy.spec.action_dim)
        low, high = (torch.tensor(item) for item in (policy.stats["action"].min, policy.stats["action"].max))
        for number, obs in enumerate(seen):
            gen = torch.Generator().manual_seed(number)
            noise = normal(shape, gen)
            later = [normal(shape, gen).tolist() for _ in range(policy.config.decode.steps)]
            asked = {"frames": self._frames(obs), "noise": noise.tolist(), "later": later}
            theirs = torch.tensor(self.peer.ask(asked), dtype=torch.float32)
            ours = policy.plan(obs, torch.Generator().manual_seed(number)).actions[0, : len(theirs)]
            gap = (ours - theirs).abs()
            largest = max(largest, float(gap.max()))
            scaled = max(scaled, float((gap / ((high - low) / 2).clamp(min=1e-6)).max()))
        return {"observations": len(seen), "largest": largest, "largest_in_half_ranges": scaled}

    def _frames(self, obs: Observation) -> list[dict[str, Any]]:
        """The observations of one row, oldest first."""
        steps = next(iter(obs.values.values())).shape[1]
        return [{theirs: obs.values[ours][0, step].tolist() for theirs, ours in self.names.items()} for step in range(steps)]


def names(features: dict[str, dict[str, Any]], ours: Sequence[str]) -> dict[str, str]:
    """Ours by LeRobot's of the same observations; an import keeps the order: states, then cameras."""
    from kinoise.policies.imports.lerobot_config import ENVIRONMENT, STATE

    cameras = [name for name, item in features.items() if item["type"] == "VISUAL"]
    return dict(zip([*(name for name in (STATE, ENVIRONMENT) if name in features), *cameras], ours, strict=True))


def first(part: dict[str, Any], count: int) -> dict[str, Any]:
    """Of what a seed's evaluation found, the first `count` episodes of each task."""
    protocol = part["protocol"]
    kept = [index < count for _ in protocol["tasks"] for index in range(protocol["episodes"])]
    success = [value for value, own in zip(part["success"], kept, strict=True) if own]
    return {**part, "protocol": {**protocol, "episodes": count}, "success": success}


def play_theirs(theirs: Theirs, reference: Sequence[dict[str, Any]], count: int, partial: Partial) -> list[dict[str, Any]]:
    """LeRobot's policy in the first `count` episodes of each task that `reference` played, one after the other.

    It sees every step, as LeRobot's evaluation shows it: its own queues decide when it plans.
    """
    from kinoise import envs
    from kinoise.eval.protocol import EvaluationProtocol
    from kinoise.eval.rollout import Rollout
    from kinoise.eval.workers import Workers

    found = []
    for part in reference:
        begun = first(part, count)
        key, kept = partial.get(lerobot=theirs.sha256, protocol=begun["protocol"])
        if kept is None:
            protocol = EvaluationProtocol.from_json(part["protocol"])
            jobs = [job for job in protocol.jobs(1, tuple(theirs.ours.spec.observations)) if job.index < count]
            with Workers(envs.showing(theirs.ours.spec, dict(protocol.perturb)), 1) as workers:
                outcomes = list(Rollout(workers, jobs, execute=1, slots=1).run(theirs))
            kept = {
                "protocol": begun["protocol"],
                "success": [item.success for item in outcomes],
                "errors": sum(item.error is not None for item in outcomes),
            }
            partial.keep(key, kept)
        found.append(kept)
        seed, good = part["protocol"]["seed"], sum(kept["success"])
        print(f"{'lerobot':>20} seed {seed}: {good} of {len(kept['success'])}", flush=True)
    return found


def figures(theirs: Theirs, parts: list[dict[str, Any]], reference: Sequence[dict[str, Any]], count: int) -> dict[str, Any]:
    """The row of the table, paired with the same episodes of its reference."""
    from kinoise.eval.metrics import wilson

    own = [value for item in parts for value in item["success"]]
    return {
        "success": wilson(sum(own), len(own))._asdict(),
        "n": len(own),
        "episodes": count,
        "errors": sum(item["errors"] for item in parts),
        "outcomes": ["".join("01"[value] for value in item["success"]) for item in parts],
        **compare(parts, [first(item, count) for item in reference]),
        "nfe_per_plan": theirs.evaluations,
        "jump": None,
    }
