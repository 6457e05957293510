"""How much of the simulators' own stepping rate an evaluation reaches.

    python benchmarks/evaluation.py RUN [env=metaworld/mt10 episodes=10 repeats=5 execute= decode.steps= ...]

In one run, over the same worker processes and by turns: (1) episodes planned by the policy; (2) the same episodes again with
the recorded actions and no policy, so that every reset and every step costs the same; (3) episodes of random actions up to
the horizon, where resets hardly count. Simulators are built beforehand. The result says how (1) compares with (2), `ratio`,
and with (3), `ratio_to_random`: the median over the repeats, the smallest and the largest.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from kinoise.config import parse, run
from kinoise.files import write_json
from kinoise.provenance import commit, machine, versions
from kinoise.spec import KinoiseError
from omegaconf import MISSING


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
    out: str = field(default=str(Path(__file__).parent / "results" / "evaluation.json"))
    decode: Decode = field(default_factory=Decode)


def main(argv: Sequence[str]) -> int:
    # Worker processes import this file too: they are not to load torch.
    import numpy as np
    import torch
    from kinoise import envs
    from kinoise.eval.evaluate import Stopwatch, simulators_for
    from kinoise.eval.protocol import EvaluationProtocol
    from kinoise.eval.rollout import SLOTS, Actor, Rollout, look
    from kinoise.eval.slot import Job, Outcome, ReplayDriver, Terms
    from kinoise.eval.workers import Workers
    from kinoise.policies.checkpoint import load_policy, resolve, sha256, weights_path

    settings = parse("benchmarks/evaluation.py", Settings, argv, positional="run", about=__doc__ or "")
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
    with Workers(simulators_for(policy.spec), workers) as pool:
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
    result = {
        "command": shlex.join([Path(sys.executable).name, "benchmarks/evaluation.py", *argv]),
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
        "policy": {"name": policy.config.name, "parameters": policy.parameter_count},
        "checkpoint": {"path": str(checkpoint), "sha256": sha256(weights_path(checkpoint))},
        "protocol": protocol.to_json(),
        "decode": {**asdict(policy.config.decode), "execute": execute, "chunk": policy.config.chunk},
        "rollout": {"workers": workers, "slots": slots, "threads": torch.get_num_threads()},
        "success": sum(item.success for item in outcomes) / len(outcomes),
        "steps": sum(item.steps for item in outcomes),
        "plan_ms_per_row": 1e3 * sum(watch.seconds) / sum(watch.batch),
        "plan_batch": sum(watch.batch) / len(watch.batch),
        "env_steps_per_s": {name: spread(values) for name, values in rates.items()},
        "ratio": spread([a / b for a, b in zip(rates["policy"], rates["replay"], strict=True)]),
        "ratio_to_random": spread([a / b for a, b in zip(rates["policy"], rates["random"], strict=True)]),
        "target": 0.6,
    }
    write_json(Path(settings.out), result)
    print(f"ratio {result['ratio']['median']:.3f}, to random actions {result['ratio_to_random']['median']:.3f}: {settings.out}")
    return 0


def spread(values: Sequence[float]) -> dict[str, Any]:
    return {"median": median(values), "min": min(values), "max": max(values), "values": list(values)}


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
