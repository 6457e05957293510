"""How often the scripted demonstrators succeed: `python -m benchmarks.demonstrators env=libero/object [states=20] [noise=0]
[disturb=0]`.

Each task is played from its first `states` stored initial states (drawn ones, where a simulator stores none), after ten steps
with nothing commanded, within the suite's steps. Keeps a row for each task: successes, Wilson's interval, mean steps of those.
Ten tasks at a time are kept as soon as they are played, in results/.NAME.partial.json: the same command at the same commit
goes on where it was stopped.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from kinoise import envs, provenance
from kinoise.config import parse, run
from kinoise.envs import episode_seed
from kinoise.envs.base import Env, Values
from kinoise.eval.disturb import Disturbed
from kinoise.eval.metrics import wilson
from kinoise.eval.rollout import Rollout, look
from kinoise.eval.slot import Job, Outcome, Terms
from kinoise.eval.workers import Workers
from rich.progress import track

from .record import write

TOGETHER = 10
"""Tasks whose episodes are under way at once."""


@dataclass(frozen=True)
class Demonstrator:
    """Plays an episode by its environment's expert, with noise and disturbances as `kinoise collect` has them."""

    noise: float
    disturb: float

    def start(self, env: Env, seed: int) -> Callable[[Values], np.ndarray]:
        expert, executed = env.expert(), Disturbed(env.spec, self.noise, self.disturb, seed)
        return lambda observation: executed(expert.act(observation))


@dataclass
class Settings:
    """The whole command line."""

    env: str = "libero/object"
    states: int = 20
    wait: int = 10
    noise: float = 0.0
    disturb: float = 0.0
    workers: int = 2
    name: str = ""


def main(argv: list[str]) -> int:
    """Plays, and writes `results/demonstrators_<name>.json`."""
    from .played import Partial  # with torch, which worker processes, that import this file too, do without

    settings = parse("demonstrators", Settings, argv, about=__doc__ or "", choices={"env": envs.choices})
    name = f"demonstrators_{settings.name or settings.env.replace('/', '_')}"
    tasks, partial, rows = envs.tasks(settings.env), Partial(name), []
    about = {key: value for key, value in asdict(settings).items() if key not in ("env", "workers", "name")}
    with Workers(envs.make, settings.workers) as workers:
        for some in [tasks[start : start + TOGETHER] for start in range(0, len(tasks), TOGETHER)]:
            key, found = partial.get(tasks=some, commit=provenance.commit(), **about)
            if found is None:
                found = _rows(_play(some, settings, workers))
                partial.keep(key, found)
            rows += found
    for row in rows:
        print(f"{row['task']:<16} {row['successes']:>3}/{row['n']} {row['steps'] or 0:6.1f}  {row['instruction']}")
    good = sum(row["successes"] >= 0.9 * row["n"] for row in rows)
    print(f"{good} of {len(rows)} tasks at 90 % or more")
    write(
        name,
        {"env": settings.env, "noise": settings.noise, "disturb": settings.disturb, "tasks": rows, "at_least_90_percent": good},
        False,
    )
    partial.done()
    return 0


def _play(tasks: Sequence[str], settings: Settings, workers: Workers) -> list[Outcome]:
    first = look(workers, tasks[0])
    wait = settings.wait if first.idle else 0
    jobs = [
        Job(
            task,
            index,
            episode_seed(0, task, index),
            Terms(1, (), envs.horizon(task) or first.horizon, wait, first.idle or ()),
            driver=Demonstrator(settings.noise, settings.disturb),
        )
        for task in tasks
        for index in range(settings.states)
    ]
    rollout = Rollout(workers, jobs, slots=2 * settings.workers)
    rollout.prepare()
    return list(track(rollout.run(), total=len(jobs), description=f"{tasks[0]} to {tasks[-1]}"))


def _rows(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    by_task: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_task[outcome.job.task].append(outcome)
    rows = []
    for task, played in by_task.items():
        steps = [item.steps for item in played if item.success]
        interval = wilson(len(steps), len(played))
        failed = sorted(item.job.index for item in played if not item.success)
        rows.append(
            {
                "task": task,
                "instruction": envs.instruction(task),
                "successes": len(steps),
                "n": len(played),
                "interval": [round(interval.low, 3), round(interval.high, 3)],
                "steps": round(float(np.mean(steps)), 1) if steps else None,
                "failed": failed,
                "errors": sorted({item.error for item in played if item.error}),
            }
        )
    return rows


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
