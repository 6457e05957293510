"""Memory of a training process on more pictures than it should hold: `python -m benchmarks.memory` (leaves nothing behind).

Writes a data set of `gigabytes` of pictures (two cameras of 128 x 128) and one of a hundredth of that, trains on each with the
same command in a process of its own, and compares the largest resident sets that the kernel saw (getrusage, ru_maxrss): the
difference is what the size of the data costs. `data_wait` is the share of the time in which updates waited for batches.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from kinoise.config import parse, run
from kinoise.data import Episode, write_store

from .data import CAMERAS, SIDE, spec
from .record import write

STEPS = 1000
"""Of an episode."""
AIM_BYTES = 2e9


@dataclass
class Settings:
    """The whole command line."""

    gigabytes: float = field(default=20.0, metadata={"help": "of pictures"})
    updates: int = field(default=20, metadata={"help": "of training"})
    batch: int = field(default=32, metadata={"help": "windows in an update"})
    policy: str = "discrete_vla"
    folder: str = field(default="outputs/benchmarks/memory", metadata={"help": "for data and runs; removed in the end"})
    name: str = field(default="memory", metadata={"help": "results/NAME.json"})


def episodes(gigabytes: float) -> Iterator[Episode]:
    """Noise, which is shifted for each episode: nothing could share its pages."""
    gen = np.random.default_rng(0)
    noise = gen.integers(0, 256, (STEPS, SIDE, SIDE, 3), np.uint8)
    for number in range(max(1, round(gigabytes * 1e9 / (noise.nbytes * len(CAMERAS))))):
        arrays = {key: np.roll(noise, number * len(CAMERAS) + view, 0) for view, key in enumerate(CAMERAS)}
        state, action = (gen.normal(size=(STEPS, size)).astype(np.float32) for size in (10, 7))
        yield Episode({**arrays, "state": state, "action": np.tanh(action)}, "push")


def trained(data: Path, out: Path, settings: Settings) -> dict[str, float]:
    """Peak bytes of a training process, and what it says of waiting."""
    train = [f"train.{name}={value}" for name, value in (("steps", settings.updates), ("batch_size", settings.batch))]
    train += ["train.log_every=5", "train.tensorboard=false", f"policy={settings.policy}", f"data={data}", f"out={out}"]
    process = subprocess.Popen([sys.executable, "-m", "kinoise.cli", "train", *train])
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"training on {data} ended with {os.waitstatus_to_exitcode(status)}")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    waits = [line["data_wait"] for line in lines if "data_wait" in line]
    return {"peak_bytes": used.ru_maxrss * 1024, "data_wait_first": waits[0], "data_wait_last": waits[-1]}


def main(argv: Sequence[str]) -> int:
    settings = parse("memory", Settings, argv, about=__doc__ or "")
    folder, found = Path(settings.folder), {}
    try:
        for name, size in (("small", settings.gigabytes / 100), ("large", settings.gigabytes)):
            write_store(folder / name, spec(True), episodes(size))
            found[name] = {"gigabytes": size, **trained(folder / name, folder / f"run_{name}", settings)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    more = found["large"]["peak_bytes"] - found["small"]["peak_bytes"]
    about = {"policy": settings.policy, "batch": settings.batch, "updates": settings.updates}
    write(settings.name, {**found, "more_bytes": more, "aim_bytes": AIM_BYTES, "met": more < AIM_BYTES, **about})
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
