"""Training in bfloat16 beside float32: `python -m benchmarks.precision data=DATA policy=mode` (one process, alternating).

Both sides are the bare loop of `benchmarks.training`: loss, gradient, AdamW on the same batches, from the same weights. One
computes under autocast, as `train.precision=bf16` does. Which of them succeeds more often isn't asked here.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from kinoise.config import parse
from kinoise.data import open_store
from kinoise.policies import choices
from kinoise.train.__main__ import make_accelerator, make_session
from kinoise.train.checkpoint import RunDirectory
from kinoise.train.config import Settings
from rich.console import Console

from .record import ratio, write
from .training import Benchmark, bare_loop, by_turns


def measure(benchmark: Benchmark) -> dict[str, Any]:
    """Seconds of float32 over those of bfloat16, block by block, which side goes first changing every time."""
    config = benchmark.train
    config.precision, accelerator = "no", make_accelerator(config)
    device = accelerator.device
    with tempfile.TemporaryDirectory() as directory:
        settings = Settings(benchmark.policy, benchmark.data, directory, seed=benchmark.seed, train=config)
        run = RunDirectory(Path(directory), config.keep)
        with run.claimed(resume=False):
            trainer = make_session(settings, run, None, open_store(benchmark.data), accelerator, Console(stderr=True)).trainer
        sides = {
            "float32": bare_loop(trainer, nullcontext),
            "bfloat16": bare_loop(trainer, lambda: torch.autocast(device.type, torch.bfloat16)),
        }
        trainer.close()
        times = by_turns(sides, benchmark, device)
    return {
        **ratio(times["float32"], times["bfloat16"]),
        "updates_per_s": {name: round(benchmark.rounds * benchmark.updates / sum(took), 2) for name, took in times.items()},
        "policy": benchmark.policy.name,
        "network": asdict(benchmark.policy.network),
        "parameters": trainer.policy.parameter_count,
        "batch_size": config.batch_size,
        "rounds": benchmark.rounds,
        "updates": benchmark.updates,
        "device": str(device),
    }


def main(argv: Sequence[str]) -> None:
    about = __doc__ or ""
    benchmark = parse(
        "benchmarks.precision", Benchmark, argv, groups={"policy": choices()}, defaults={"policy": "mode"}, about=about
    )
    write(f"precision_{benchmark.policy.name}", measure(benchmark))


if __name__ == "__main__":
    main(sys.argv[1:])
