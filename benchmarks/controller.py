"""Whether the control loop keeps its word while everything around it fails: `python -m benchmarks.controller RUN`.

The policy plans in a process of its own, for a robot that costs nothing and keeps its own log; every figure but the tick's
work is made from that log and from the traffic with the planning process, not from the controller's record. In every segment
plans come up to 1 s late, hold NaN or leave the bounds, and sensors stall; most have one large fault besides (`faults.LARGE`).
Targets: no missed tick beyond what a bare loop misses, no command outside the limits, latched stops within two ticks of their
condition, and after every fault plans are carried out again, without a reset unless the fault is one that has to latch.

The bare loop (the same clock, the same calls to the robot, nothing else) runs before, between and after the segments, in the
same process. A companion process plans meanwhile at the same pace, and starts anew about as often in all: what the machine has
to do is the same, and what the controller and its traffic cost in this process is the controller's. Starting a process takes
a core for seconds, so ticks beside a start are compared with such ticks, and the others with the others. Ticks are missed in
rows, by one delay: `beyond` counts the delays (of at least a period), and the target fails where the controller's are more
frequent than the bare loop's at p < 0.05, in either kind of time.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from kinoise.config import UsageError, check_seed, parse, run
from omegaconf import MISSING

HOLD_S, HEARTBEAT_S = 1.5, 2.0
"""Above a spike of 1 s, which is to be ridden out."""
SEGMENTS, SHORTEST_S = 10, 12.0
BARE = 1 / 3
"""Of the controller's time."""
AGAIN = 2
"""In every so many bare segments the companion starts anew once: in all about as often as planning processes do."""


@dataclass
class Settings:
    """The whole command line."""

    run: str = field(default=MISSING, metadata={"help": "a training run"})
    seconds: float = field(default=600.0, metadata={"help": "of the controller, in segments; the bare loop runs a third of it"})
    rate: float = field(default=50.0, metadata={"help": "ticks per second"})
    seed: int = field(default=0, metadata={"help": "of the faults' times and the plans' noise"})

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.seconds < SHORTEST_S:
            raise UsageError(f"seconds={self.seconds}: expected at least {SHORTEST_S:g}")


def main(argv: Sequence[str]) -> int:
    # Planning processes import this file too: what they don't need would lengthen their start.
    from kinoise.policies.checkpoint import load_policy, resolve

    from .companion import company
    from .faults import LARGE
    from .record import write
    from .report import figures, show
    from .rig import RigRobot
    from .segments import Bench, bare, controlled

    settings = parse("controller", Settings, argv, positional="run", about=__doc__ or "")
    policy = load_policy(settings.run, device="cpu")
    threads = max(1, len(os.sched_getaffinity(0)) - 1)
    count = max(1, min(SEGMENTS, int(settings.seconds / SHORTEST_S)))
    length, rng = settings.seconds / count, np.random.default_rng(settings.seed)
    bare_runs, runs = [], []
    with tempfile.TemporaryDirectory() as place:
        bench = Bench(policy, RigRobot(policy), resolve(settings.run), threads, settings.rate, settings.seed, Path(place))
        for index in range(count + 1):
            seconds = BARE * length
            again = seconds / 4 if index % AGAIN == 1 else 0.0
            with company(settings.run, bench.execute / settings.rate, threads, again) as starts:
                alone = bare(bench.robot, settings.rate, seconds)
            bare_runs.append(replace(alone, starts=starts))
            if index < count:
                runs.append(controlled(bench, LARGE[index], length, (HOLD_S, HEARTBEAT_S), rng))
                print(f"segment {index + 1} of {count}: {LARGE[index]}", file=sys.stderr)
    found = figures(runs, bare_runs)
    what = {"policy": policy.config.name, "parameters": policy.parameter_count, "checkpoint": resolve(settings.run).name}
    told = {**asdict(settings), "threads": threads, "segments": count, "hold": HOLD_S, "heartbeat": HEARTBEAT_S}
    write("controller", {**what, "settings": told, **found}, show=False)
    show(found)
    return 0 if all(item["pass"] for item in found["targets"].values()) else 1


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
