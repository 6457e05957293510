"""Several processes beside one: `python -m benchmarks.distributed data=DATA policy=mode` (one thread each, alternating).

The command starts its processes by torchrun. In each of them stand kinoise's own trainers, of the same policy on the same data:
`one`, which the first process runs while the others sleep; `strong`, all processes on the same batches, shared out; `weak`, all
processes with as many windows each as `one` has alone. Target: two processes train at 1.7 times the windows a second of one on
the same batches, where nothing else runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from kinoise.config import UsageError, parse, run
from kinoise.data import open_store
from kinoise.policies import choices
from kinoise.train.__main__ import make_accelerator, make_session
from kinoise.train.checkpoint import RunDirectory
from kinoise.train.config import Settings, TrainConfig
from kinoise.train.loop import Trainer
from kinoise.train.processes import Processes
from omegaconf import MISSING
from rich.console import Console

from .record import ratio, write
from .speed import WARMUP, alternate

TARGET = 1.7


@dataclass
class Benchmark:
    """The command line."""

    policy: Any = MISSING
    data: str = MISSING
    seed: int = 0
    processes: int = field(default=2, metadata={"help": "of `strong` and `weak`, on this machine"})
    threads: int = field(default=1, metadata={"help": "torch's, in each process"})
    rounds: int = field(default=30, metadata={"help": "blocks of updates on each side"})
    updates: int = field(default=10, metadata={"help": "updates in a block"})
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if self.processes < 2:
            raise UsageError(f"processes={self.processes}: expected at least 2, which are compared with one")


def trainers(benchmark: Benchmark, everyone: Processes) -> dict[str, Trainer | None]:
    """By side; None where this process sleeps. All begin with the same weights."""
    store = open_store(benchmark.data)

    def build(directory: str, batch_size: int, processes: Processes) -> Trainer:
        steps = (WARMUP + benchmark.rounds) * benchmark.updates
        config = replace(benchmark.train, batch_size=batch_size, steps=steps)
        settings = Settings(benchmark.policy, benchmark.data, directory, seed=benchmark.seed, train=config)
        place, accelerator = RunDirectory(Path(directory), config.keep), make_accelerator(config)
        return make_session(settings, place, None, store, accelerator, Console(quiet=True), processes).trainer

    batch = benchmark.train.batch_size
    with tempfile.TemporaryDirectory() as directory:
        return {
            "one": build(directory, batch, Processes()) if everyone.leads else None,
            "strong": build(directory, batch, everyone),
            "weak": build(directory, batch * everyone.count, everyone),
        }


def block(trainer: Trainer | None, updates: int, everyone: Processes) -> Callable[[int], float]:
    """Seconds that the updates take, from when all processes are there until all have finished."""

    def seconds(_: int) -> float:
        everyone.wait()
        started = time.perf_counter()
        if trainer is not None:
            for _ in range(updates):
                trainer.update()
            trainer.meter.clear()
            if trainer.accelerator.device.type == "cuda":
                torch.cuda.synchronize()
        everyone.wait()
        return time.perf_counter() - started

    return seconds


def measure(benchmark: Benchmark) -> dict[str, Any]:
    """Windows a second of all processes over those of one, block by block, which side begins moving on by one."""
    torch.set_num_threads(benchmark.threads)
    everyone = Processes.of(make_accelerator(benchmark.train))
    sides = trainers(benchmark, everyone)
    blocks = {name: block(trainer, benchmark.updates, everyone) for name, trainer in sides.items()}
    times = alternate(blocks, benchmark.rounds)
    for trainer in sides.values():
        if trainer is not None:
            trainer.close()
    trainer, batch, made = sides["strong"], benchmark.train.batch_size, benchmark.rounds * benchmark.updates
    assert trainer is not None
    windows = {"one": batch, "strong": batch, "weak": batch * everyone.count}
    return {
        "target": TARGET,
        **ratio(times["one"], times["strong"]),
        "weak": ratio([seconds * everyone.count for seconds in times["one"]], times["weak"]),
        "windows_per_s": {name: round(windows[name] * made / sum(took), 1) for name, took in times.items()},
        "policy": benchmark.policy.name,
        "parameters": trainer.policy.parameter_count,
        "batch_size": batch,
        "processes": everyone.count,
        "parallel": trainer.spread.kind,
        "accumulate": benchmark.train.accumulate,
        "threads": benchmark.threads,
        "rounds": benchmark.rounds,
        "updates": benchmark.updates,
        "device": str(trainer.accelerator.device),
        "precision": trainer.accelerator.mixed_precision,
    }


def main(argv: Sequence[str]) -> int:
    about = __doc__ or ""
    benchmark = parse(
        "benchmarks.distributed", Benchmark, argv, groups={"policy": choices()}, defaults={"policy": "mode"}, about=about
    )
    if "RANK" not in os.environ:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={benchmark.processes}"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(benchmark.threads)}
        return subprocess.run([*launcher, "-m", "benchmarks.distributed", *argv], check=False, env=environment).returncode
    figures = measure(benchmark)
    if os.environ["RANK"] == "0":
        write("distributed", figures)
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
