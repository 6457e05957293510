"""Plans at a controller's pace, in a process of its own: the load that `benchmarks.controller` gives its bare loop for company.

`python -m benchmarks.companion RUN PERIOD THREADS AGAIN`: a plan every PERIOD seconds, in so many of torch's threads, until
ended; after AGAIN seconds (0: never) the process begins itself anew, as a planning process does that was killed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

import torch
from kinoise.policies.checkpoint import load_policy
from kinoise.policies.example import example


@contextmanager
def company(run: str, period: float, threads: int, again: float) -> Iterator[list[tuple[float, float]]]:
    """Such a process, from the time that it plans until the end of the block.

    Yields a list that holds, after the block, from when to when it began itself anew (seconds on `time.monotonic()`).
    """
    starts: list[tuple[float, float]] = []
    command = [sys.executable, "-m", "benchmarks.companion", run, str(period), str(threads), str(again)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if not process.stdout.readline():
                sys.exit("the companion did not start")
            yield starts
        finally:
            process.terminate()
            times = [float(line) for line in process.stdout or ()]
            if times:
                starts.append((times[0], times[1] if len(times) > 1 else inf))


def main(run: str, period: float, threads: int, again: float) -> None:
    torch.set_num_threads(threads)
    policy = load_policy(run, device="cpu")
    obs, gen = example(policy), torch.Generator().manual_seed(0)
    policy.plan(obs, gen)
    begin = time.monotonic()
    print(begin, flush=True)
    while not again or time.monotonic() < begin + again:
        policy.plan(obs, gen)
        time.sleep(period - (time.monotonic() - begin) % period)
    print(time.monotonic(), flush=True)
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks.companion", run, str(period), str(threads), "0"])


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
