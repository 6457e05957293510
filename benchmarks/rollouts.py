"""Episodes a second of an evaluation beside those of the usual loop: `python -m benchmarks.rollouts RUN` (one process).

By turns, the same episodes by the same policy: `sequential`, one simulator in this process that waits for each plan, which is
for one observation, as in LeRobot's and openvla's evaluations; `batched`, as `kinoise eval` plays them, with `slots` episodes
under way in worker processes and plans for several at once; `bare`, the same episodes in the same workers from their recorded
actions, with no policy. Simulators are built beforehand, on all sides. Targets: `batched` plays at least 1.6 times the episodes
a second of `sequential`, and makes at least 0.7 of the steps a second of `bare`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kinoise.config import parse, run
from kinoise.spec import KinoiseError
from omegaconf import MISSING

from .evaluation import Decode
from .record import ratio, write

TARGETS = {"episodes": 1.6, "steps": 0.7}


@dataclass
class Settings:
    """The whole command line."""

    run: str = field(default=MISSING, metadata={"help": "a training run, or one of its checkpoints"})
    env: str = "metaworld/mt10"
    protocol: str | None = field(default=None, metadata={"help": "as kinoise eval takes it"})
    episodes: int = field(default=2, metadata={"help": "per task"})
    seed: int = 1000
    repeats: int = 5
    horizon: int | None = None
    execute: int | None = field(default=None, metadata={"help": "actions carried out of each plan; null: the policy's own"})
    workers: int | None = field(default=None, metadata={"help": "processes for the simulators; null: one for each core"})
    slots: int = field(default=8, metadata={"help": "episodes under way at once"})
    threads: int = field(default=1, metadata={"help": "torch's in the sequential loop; more slow a small policy down"})
    name: str = field(default="rollouts", metadata={"help": "of the file in results/"})
    decode: Decode = field(default_factory=Decode)


def main(argv: Sequence[str]) -> int:
    # Worker processes import this file too: they are not to load torch.
    import torch
    from kinoise import envs
    from kinoise.eval.presets import Wanted, survey
    from kinoise.eval.rollout import Rollout, look
    from kinoise.eval.slot import Job, Outcome, ReplayDriver
    from kinoise.eval.workers import Workers
    from kinoise.policies.checkpoint import identity, load_policy, resolve

    settings = parse("rollouts", Settings, argv, positional="run", about=__doc__ or "")
    checkpoint = resolve(settings.run)
    policy = load_policy(checkpoint, decode={key: item for key, item in asdict(settings.decode).items() if item is not None})
    execute, workers = settings.execute or policy.config.execute, settings.workers or len(os.sched_getaffinity(0))
    tasks, make = envs.tasks(settings.env), envs.showing(policy.spec)
    wanted = Wanted(settings.protocol, settings.episodes, settings.horizon, settings.seed)
    alone = Sequential(make, policy, execute)

    def timed(name: str, pool: Workers, jobs: Sequence[Job]) -> tuple[list[Outcome], float]:
        """Outcomes, and seconds from the first reset to the last episode's end."""
        torch.set_num_threads(settings.threads if name == "sequential" else 1)
        if name == "sequential":
            begin = time.perf_counter()
            return [alone.play(job) for job in jobs], time.perf_counter() - begin
        rollout = Rollout(pool, jobs, execute=execute, slots=settings.slots)
        rollout.prepare()
        begin = time.perf_counter()
        return list(rollout.run(None if name == "bare" else policy)), time.perf_counter() - begin

    episodes: dict[str, list[float]] = {"sequential": [], "batched": [], "bare": []}
    steps: dict[str, list[float]] = {name: [] for name in episodes}
    with Workers(make, workers) as pool:
        protocol = wanted.resolve(settings.env, tasks, survey(tasks, lambda task: look(pool, task)))
        jobs = protocol.jobs(policy.config.history, tuple(policy.spec.observations))
        alone.build(tasks)
        timed("sequential", pool, jobs[:1])
        first, _ = timed("batched", pool, [replace(job, keep=True) for job in jobs])
        bare = [replace(item.job, driver=ReplayDriver(item.arrays["action"]), keep=False) for item in first if item.steps]
        for _ in range(settings.repeats):
            for name in episodes:
                outcomes, seconds = timed(name, pool, bare if name == "bare" else jobs)
                errors = [item.error for item in outcomes if item.error]
                if errors:
                    raise KinoiseError(f"{len(errors)} episodes could not be played ({errors[0]}): nothing was measured")
                episodes[name].append(len(outcomes) / seconds)
                steps[name].append(sum(item.steps for item in outcomes) / seconds)
                print(f"{name:>10} {episodes[name][-1]:7.2f} episodes/s {steps[name][-1]:7.0f} steps/s", flush=True)
    alone.close()
    figures: dict[str, Any] = {
        "policy": identity(policy, checkpoint),
        "protocol": protocol.to_json(),
        "decode": {**asdict(policy.config.decode), "execute": execute, "chunk": policy.config.chunk},
        "rollout": {"workers": workers, "slots": settings.slots, "threads": {"sequential": settings.threads, "batched": 1}},
        "success": sum(item.success for item in first) / len(first),
        "episodes_per_s": {name: [round(value, 3) for value in values] for name, values in episodes.items()},
        "env_steps_per_s": {name: [round(value) for value in values] for name, values in steps.items()},
        "episodes": ratio(episodes["batched"], episodes["sequential"]),
        "steps": ratio(steps["batched"], steps["bare"]),
        "targets": TARGETS,
    }
    write(settings.name, figures)
    return 0


class Sequential:
    """One simulator at a time in this process; a plan, its first `execute` actions, the next plan."""

    def __init__(self, make: Any, policy: Any, execute: int) -> None:
        self._make, self._policy, self._execute = make, policy, execute
        self._slots: dict[str, Any] = {}

    def build(self, tasks: Sequence[str]) -> None:
        from kinoise.eval.slot import Slot

        for task in tasks:
            self._slots[task] = Slot(self._make)
            self._slots[task].build(task, False)

    def play(self, job: Any) -> Any:
        """The outcome of an episode."""
        import torch
        from kinoise.eval.rollout import generator
        from kinoise.spec import Observation

        slot, gen = self._slots[job.task], generator(job)
        outcome = slot.begin(job)
        while outcome is None:
            values = {key: torch.from_numpy(value.copy())[None] for key, value in slot.observation().items()}
            with torch.no_grad():
                plan = self._policy.plan(Observation(values, (slot.instruction,), torch.tensor([0])), [gen])
            outcome = slot.advance(plan.actions[0, : self._execute].numpy())
        return outcome

    def close(self) -> None:
        for slot in self._slots.values():
            slot.close()


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
