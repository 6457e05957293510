"""What training costs beside its arithmetic: `python -m benchmarks.training data=DATA policy=mode` (one process, alternating).

One side is a whole run of `kinoise train`: windows read from the store, learning rate, clipping, averaged weights, metrics,
TensorBoard, progress, checkpoints. The other is a bare loop over batches that lie in memory: loss, gradient, the same fused
AdamW, nothing else. Target: kinoise makes at least 0.9 of the bare loop's updates per second.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
from kinoise.config import UsageError, parse
from kinoise.data import open_store
from kinoise.policies import choices
from kinoise.train.__main__ import make_accelerator, make_session
from kinoise.train.checkpoint import RunDirectory
from kinoise.train.config import Settings, TrainConfig
from kinoise.train.loop import Trainer, to_device
from kinoise.train.optimizer import make_optimizer
from omegaconf import MISSING
from rich.console import Console

from .record import ratio, write

TARGET = 0.9
POOL = 64
WARM = 10


@dataclass
class Benchmark:
    """The command line."""

    policy: Any = MISSING
    data: str = MISSING
    seed: int = 0
    rounds: int = field(default=48, metadata={"help": "blocks of updates on each side"})
    updates: int = field(default=25, metadata={"help": "updates in a block"})
    train: TrainConfig = field(default_factory=TrainConfig)


def bare_loop(trainer: Trainer, autocast: Callable[[], AbstractContextManager[Any]]) -> Callable[[], None]:
    """One update of a copy of the trainer's policy, on batches that are already where they are needed.

    Args:
        autocast: makes the context that the loss is computed in.
    """
    device, policy = trainer.accelerator.device, copy.deepcopy(trainer.policy)
    optimizer, gen = make_optimizer(policy, trainer.config), torch.Generator().manual_seed(0)
    batches = [to_device(trainer.windows.batch(trainer.order.indices(step)), device) for step in range(POOL)]
    calls = count()

    def update() -> None:
        with autocast():
            loss = policy.loss(batches[next(calls) % POOL], gen).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


def seconds(update: Callable[[], object], updates: int, device: torch.device) -> float:
    started = time.perf_counter()
    for _ in range(updates):
        update()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def by_turns(sides: Mapping[str, Callable[[], object]], benchmark: Benchmark, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each side's blocks, which side goes first changing every time."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for update in sides.values():
        seconds(update, WARM, device)
    for number in range(benchmark.rounds):
        for name in sorted(sides, reverse=bool(number % 2)):
            times[name].append(seconds(sides[name], benchmark.updates, device))
    return times


def measure(benchmark: Benchmark) -> dict[str, Any]:
    """Updates per second of both sides over the same number of blocks, which side goes first changing every time."""
    config, store = benchmark.train, open_store(benchmark.data)
    config.steps = WARM + benchmark.rounds * benchmark.updates
    accelerator = make_accelerator(config)
    with tempfile.TemporaryDirectory() as directory:
        settings = Settings(benchmark.policy, benchmark.data, directory, seed=benchmark.seed, train=config)
        run = RunDirectory(Path(directory), config.keep)
        with run.claimed(resume=False):
            session = make_session(settings, run, None, store, accelerator, Console(stderr=True))
            sides = {"bare": bare_loop(session.trainer, accelerator.autocast), "kinoise": session.update}
            with session.opened():
                times = by_turns(sides, benchmark, accelerator.device)
    made = benchmark.rounds * benchmark.updates
    return {
        "target": TARGET,
        **ratio(times["bare"], times["kinoise"]),
        "ratio_of_totals": round(sum(times["bare"]) / sum(times["kinoise"]), 3),
        "kinoise_updates_per_s": round(made / sum(times["kinoise"]), 2),
        "bare_updates_per_s": round(made / sum(times["bare"]), 2),
        "policy": benchmark.policy.name,
        "parameters": session.trainer.policy.parameter_count,
        "batch_size": config.batch_size,
        "rounds": benchmark.rounds,
        "updates": benchmark.updates,
        "device": str(accelerator.device),
        "precision": accelerator.mixed_precision,
    }


def main(argv: Sequence[str]) -> None:
    benchmark = parse(
        "benchmarks.training", Benchmark, argv, groups={"policy": choices()}, defaults={"policy": "mode"}, about=__doc__ or ""
    )
    if benchmark.train.eval_every:
        raise UsageError("the benchmark has no environment: leave train.eval_every 0")
    write("training", measure(benchmark))


if __name__ == "__main__":
    main(sys.argv[1:])
