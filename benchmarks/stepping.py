"""A control step of LIBERO beside upstream's: `python -m benchmarks.stepping [task=libero/goal-0] [blocks=20]`.

Both sides carry out the same random actions from the same stored state, in blocks of 20 steps by turns, on one simulation that
is set back between them: `upstream` by robosuite's own step with its observations, `kinoise` by `Env.step` with ours.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import numpy as np
from kinoise import envs
from kinoise.config import parse, run
from kinoise.envs.libero import Libero

from .record import milliseconds, ratio, write

STEPS = 20


@dataclass
class Settings:
    """The whole command line."""

    task: str = "libero/goal-0"
    blocks: int = 20


def main(argv: list[str]) -> int:
    """Measures, and writes `results/stepping.json`."""
    settings = parse("stepping", Settings, argv, about=__doc__ or "", choices={})
    env = envs.make(settings.task)
    assert isinstance(env, Libero)
    upstream, gen = env._scene.upstream, np.random.default_rng(0)
    seconds: dict[str, list[float]] = {"upstream": [], "kinoise": []}
    for block in range(settings.blocks + 1):
        actions = gen.uniform(-0.5, 0.5, (STEPS, 7)).astype(np.float32)
        for name, step in (("upstream", upstream.step), ("kinoise", env.step)):
            env.reset(seed=0, options={"index": 0})
            begin = time.perf_counter()
            for action in actions:
                step(action)
            if block:  # the first compiles robosuite's controller
                seconds[name].append((time.perf_counter() - begin) / STEPS)
    figures = {name: milliseconds(items) for name, items in seconds.items()}
    write(
        "stepping",
        {"task": settings.task, "step_ms": figures, "upstream_by_kinoise": ratio(seconds["upstream"], seconds["kinoise"])},
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
