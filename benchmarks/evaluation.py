"""How much of the simulators' own stepping rate an evaluation reaches: `python -m benchmarks.evaluation RUN` (one process).

Over the same worker processes and by turns: `policy`, episodes that the policy plans; `replay`, the same episodes from their
recorded actions without a policy, so that every reset and every step costs the same; `random`, random actions up to the
horizon, where resets hardly count. Simulators are built beforehand. Target: `policy` makes at least 0.6 of the steps per
second of `replay`; the ratio to `random` stands beside it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from kinoise.config import parse, run
from kinoise.spec import KinoiseError
from omegaconf import MISSING

from .record import ratio, write

TARGET = 0.6


@dataclass
class Decode:
    """Laid over the checkpoint's own settings; null keeps them."""

    sampler: str | None = None
    steps: int | None = None


@dataclass
class Settings:
    """The whole command line."""

    run: str = field(default=MISSING, metadata={"help": "a training run, or one of its checkpoints"})
    env: str = "metaworld/mt10"
    episodes: int = field(default=10, metadata={"help": "per task"})
    seed: int = 1000
    repeats: int = 5
    execute: int | None = field(default=None, metadata={"help": "actions carried out of each plan; null: the policy's own"})
    horizon: int | None = None
    workers: int | None = field(default=None, metadata={"help": "processes for the simulators; null: one for each core"})
    slots: int | None = field(default=None, metadata={"help": "episodes under way at once; null: what kinoise eval takes"})
    decode: Decode = field(default_factory=Decode)


def main(argv: Sequence[str]) -> int:
    # Worker processes import this file too: they are not to load torch.
    import numpy as np
    import torch
    from kinoise import envs
    from kinoise.eval.protocol import EvaluationProtocol
    from kinoise.eval.rollout import SLOTS, Actor, Rollout, look
    from kinoise.eval.slot import Job, Outcome, ReplayDriver, Terms
    from kinoise.eval.stopwatch import Stopwatch
    from kinoise.eval.workers import Workers
    from kinoise.policies.checkpoint import identity, load_policy, resolve

    settings = parse("evaluation", Settings, argv, positional="run", about=__doc__ or "")
    checkpoint = resolve(settings.run)
    policy = load_policy(checkpoint, decode={key: item for key, item in asdict(settings.decode).items() if item is not None})
    execute, slots = settings.execute or policy.config.execute, settings.slots or SLOTS
    workers, tasks = settings.workers or len(os.sched_getaffinity(0)), envs.tasks(settings.env)
    torch.set_num_threads(1)

    def timed(pool: Workers, jobs: Sequence[Job], actor: Actor | None = None) -> tuple[list[Outcome], float]:
        """Outcomes, and steps per second from the first reset to the last episode's end."""
        rollout = Rollout(pool, jobs, execute=execute, slots=slots)
        rollout.prepare()
        begin = time.perf_counter()
        outcomes = list(rollout.run(actor))
        return outcomes, sum(item.steps for item in outcomes) / (time.perf_counter() - begin)

    rates: dict[str, list[float]] = {"policy": [], "replay": [], "random": []}
    watch = Stopwatch(policy)
    with Workers(envs.showing(policy.spec), workers) as pool:
        horizon = settings.horizon or look(pool, tasks[0]).horizon
        protocol = EvaluationProtocol(settings.env, tasks, settings.episodes, horizon, settings.seed)
        terms = Terms(policy.config.history, tuple(policy.spec.observations), horizon)
        planned = [Job(*key, terms, keep=True) for key in protocol.episode_seeds()]
        gen = np.random.default_rng(settings.seed)
        wild = ReplayDriver(gen.uniform(-1, 1, (horizon, policy.spec.action_dim)).astype(np.float32))
        random = [replace(job, driver=wild, keep=False) for job in planned if job.index < max(1, slots // len(tasks))]
        outcomes, _ = timed(pool, planned, policy)
        replayed = [replace(item.job, driver=ReplayDriver(item.arrays["action"]), keep=False) for item in outcomes]
        for _ in range(settings.repeats):
            for name, jobs, actor in (("policy", planned, watch), ("replay", replayed, None), ("random", random, None)):
                again, rate = timed(pool, jobs, actor)
                errors = [item.error for item in again if item.error]
                if errors:
                    raise KinoiseError(f"{len(errors)} episodes could not be played ({errors[0]}): nothing was measured")
                rates[name].append(rate)
                print(f"{name:>7} {rate:7.0f} steps/s", flush=True)
    figures = {
        "policy": identity(policy, checkpoint),
        "protocol": protocol.to_json(),
        "decode": {**asdict(policy.config.decode), "execute": execute, "chunk": policy.config.chunk},
        "rollout": {"workers": workers, "slots": slots, "threads": torch.get_num_threads()},
        "success": sum(item.success for item in outcomes) / len(outcomes),
        "steps": sum(item.steps for item in outcomes),
        "plan_ms_per_row": 1e3 * sum(watch.seconds) / sum(watch.batch),
        "plan_batch": sum(watch.batch) / len(watch.batch),
        "env_steps_per_s": {name: [round(value) for value in values] for name, values in rates.items()},
        **ratio(rates["policy"], rates["replay"]),
        "to_random": ratio(rates["policy"], rates["random"]),
        "target": TARGET,
    }
    write("evaluation", figures)
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
