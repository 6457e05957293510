"""result.json: what an evaluation found, and everything needed to judge it or to run it again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

from ..deploy.latency import percentiles
from ..envs import bare
from ..files import claimed, clear, output_directory
from ..provenance import origin
from .latency import CONSTANT
from .ledger import LEDGER, Conditions, Entry
from .metrics import wilson
from .motion import motion
from .protocol import EvaluationProtocol
from .slot import Outcome

VIDEOS = "videos"


@contextmanager
def evaluating(out: Path) -> Iterator[None]:
    """Makes the folder of an evaluation, keeps others from evaluating into it, and takes away what killed ones left."""
    with output_directory(out), claimed(out, "evaluates"):
        clear(out / LEDGER, out / "result.json", out / VIDEOS)
        yield


class Success(TypedDict):
    """Share of the `n` episodes that succeeded, with its Wilson 95 % interval.

    `errors` of them could not be played to their end; they count as not succeeded.
    """

    rate: float
    low: float
    high: float
    n: int
    errors: int


@dataclass(frozen=True)
class Planning:
    """What planning took.

    Args:
        seconds: of each batched plan, while the simulators ran beside it.
        batch: rows of each.
        nfe: network evaluations that each row needed.
        seconds_batch1: of plans for a single observation, while the simulators waited.
        cold: for each replan that could start from the plan before, whether the gate had it start from noise.
    """

    seconds: Sequence[float]
    batch: Sequence[int]
    nfe: Sequence[int]
    seconds_batch1: Sequence[float]
    cold: Sequence[bool] = ()

    def to_json(self) -> dict[str, Any]:
        plans = len(self.seconds)
        mean = sum(self.nfe) / len(self.nfe) if self.nfe else None
        return {
            "nfe_per_plan": mean if mean is None or mean % 1 else int(mean),
            "plan_ms": percentiles(self.seconds, 1e3),
            "plan_batch": {"mean": sum(self.batch) / plans if plans else None, "max": max(self.batch, default=None)},
            "plans": plans,
            "plan_ms_batch1": percentiles(self.seconds_batch1, 1e3),
            "cold_share": sum(self.cold) / len(self.cold) if self.cold else None,
        }


def success(outcomes: Sequence[Outcome]) -> Success:
    """Raises ValueError when there are no outcomes."""
    interval = wilson(sum(item.success for item in outcomes), len(outcomes))
    errors = sum(item.error is not None for item in outcomes)
    return Success(rate=interval.rate, low=interval.low, high=interval.high, n=len(outcomes), errors=errors)


def make_result(
    protocol: EvaluationProtocol,
    policy: Mapping[str, Any],
    decode: Mapping[str, Any],
    outcomes: Iterable[Outcome],
    planning: Planning,
    *,
    rollout_s: float,
    wall_s: float,
    rollout: Mapping[str, Any],
    steps: int | None = None,
) -> dict[str, Any]:
    """The contract of every evaluation, ready to be written as JSON.

    Args:
        policy: see `policies.checkpoint.identity`.
        decode: sampler, steps, execute, chunk.
        outcomes: one per episode that was played.
        rollout_s: seconds from the first reset to the end of the last episode, with simulators already built.
        wall_s: seconds of the whole evaluation.
        rollout: how it was carried out (workers, slots, threads, device): what changes its speed, not its outcome.
        steps: carried out in `rollout_s`; those of all outcomes if None.
    """
    ordered = sorted(outcomes, key=_place(protocol))
    played = dict.fromkeys(item.job.task for item in ordered)
    steps = sum(item.steps for item in ordered) if steps is None else steps
    return {
        **origin(),
        "protocol": protocol.to_json(),
        "policy": dict(policy),
        "decode": dict(decode),
        "success": success(ordered),
        "tasks": {task: success([item for item in ordered if item.job.task == task]) for task in played},
        "episodes": [_episode(item) for item in ordered],
        "decode_cost": planning.to_json(),
        "env_steps_per_s": steps / rollout_s if rollout_s else 0.0,
        "wall_s": wall_s,
        "rollout": dict(rollout),
    }


def account(
    conditions: Conditions,
    entries: Iterable[Entry],
    planning: Planning,
    *,
    rollout_s: float,
    wall_s: float,
    rollout: Mapping[str, Any],
    steps: int | None = None,
) -> dict[str, Any]:
    """The result of these episodes, in whatever order they come, and whichever processes played them.

    Args:
        planning: without `nfe` and `cold`, which the episodes know.
        rollout_s, wall_s, rollout, steps: see `make_result`.
    """
    place = _place(conditions.protocol)
    ordered = sorted(entries, key=lambda item: place(item.outcome))
    carried = [item.carried for item in ordered]
    planning = replace(
        planning,
        nfe=[count for item in carried for count in item.nfe],
        cold=[cold for item in carried for cold in item.cold],
    )
    result = make_result(
        conditions.protocol,
        conditions.policy,
        conditions.decode,
        [item.outcome for item in ordered],
        planning,
        rollout_s=rollout_s,
        wall_s=wall_s,
        rollout=rollout,
        steps=steps,
    )
    seen = conditions.spec.observations
    result["observed"] = {key: {"kind": item.kind, "shape": list(item.shape)} for key, item in seen.items()}
    result["motion"] = motion(conditions.spec, carried)
    latency = conditions.latency
    if conditions.decode["delay"] or latency.kind != CONSTANT:
        result["latency"] = {"delays": percentiles([delay for item in carried for delay in item.delays])}
        result["latency"] |= {"samples_s": latency.values} if latency.kind == "samples" else {}
    if conditions.shard is not None:
        result["shard"] = conditions.shard
    if conditions.simulators:
        result["simulators"] = conditions.simulators
    return result


def overlap(outcomes: Iterable[Outcome], demonstrations: Iterable[Mapping[str, Any]]) -> int:
    """How many of the episodes began exactly as one of the demonstrations of the same task did.

    Args:
        demonstrations: `info` of each demonstration; those without `initial` can't be compared.
    """
    known = {_start(item["task"], item["initial"]) for item in demonstrations if item.get("initial") is not None}
    return sum(_start(item.job.task, item.initial) in known for item in outcomes if item.initial is not None)


def _place(protocol: EvaluationProtocol) -> Callable[[Outcome], tuple[int, int]]:
    """Sorts episodes as the protocol lists them."""
    order = {task: place for place, task in enumerate(protocol.tasks)}
    return lambda item: (order[item.job.task], item.job.index)


def alike(one: Any, other: Any) -> bool:
    """Whether two values of JSON are the same but for the last digits of their numbers."""
    return _rounded(one) == _rounded(other)


def _start(task: str, initial: Any) -> str:
    return json.dumps([bare(task), _rounded(initial)], sort_keys=True)


def _rounded(value: Any) -> Any:
    """`value` with numbers of nine digits: demonstrations may have been through a format with single precision."""
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return float(f"{value:.9g}") if isinstance(value, (int, float)) else value


def _episode(outcome: Outcome) -> dict[str, Any]:
    job = outcome.job
    episode = {
        "task": job.task,
        "index": job.index,
        "seed": job.seed,
        "success": outcome.success,
        "steps": outcome.steps,
        "return": outcome.total,
        "error": outcome.error,
        "initial": outcome.initial,
    }
    if job.film is not None and outcome.error is None:
        episode["video"] = f"{VIDEOS}/{job.film.name}"
    return episode
