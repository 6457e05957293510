"""Success of a trained policy over several evaluation seeds: `python -m benchmarks.success RUN env=metaworld/mt10`.

Each seed draws other goals; none is chosen for its figure, and all of them are pooled in one Wilson interval.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kinoise.config import parse, run
from omegaconf import MISSING

from .record import write


@dataclass
class Settings:
    """The whole command line."""

    run: str = field(default=MISSING, metadata={"help": "a training run"})
    env: str = "metaworld/mt10"
    episodes: int = field(default=10, metadata={"help": "per task and seed"})
    seeds: list[int] = field(default_factory=lambda: [1000, 2000, 3000, 4000, 5000])
    data: str | None = field(default=None, metadata={"help": "demonstrations whose initial states must not occur"})
    execute: int | None = None
    bf16: bool = field(default=False, metadata={"help": "plan in bfloat16"})
    sampler: str | None = field(default=None, metadata={"help": "of the plans; null: the checkpoint's, as for all below"})
    steps: int | None = None
    warm: float | None = None
    name: str = field(default="success", metadata={"help": "results/NAME.json"})


def main(argv: Sequence[str]) -> int:
    # Worker processes import this file too: they are not to load torch.
    from kinoise.eval.evaluate import evaluate
    from kinoise.eval.metrics import wilson
    from kinoise.files import read_json
    from kinoise.policies.checkpoint import load_policy, resolve

    settings = parse("success", Settings, argv, positional="run", about=__doc__ or "")
    checkpoint = resolve(settings.run)
    asked = {"sampler": settings.sampler, "steps": settings.steps, "warm": settings.warm}
    decode = {name: value for name, value in asked.items() if value is not None}
    policy = load_policy(checkpoint, decode=decode, bf16=settings.bf16)
    data = None if settings.data is None else Path(settings.data)
    results = [
        evaluate(
            policy,
            settings.env,
            episodes=settings.episodes,
            seed=seed,
            execute=settings.execute,
            checkpoint=checkpoint,
            data=data,
        )
        for seed in settings.seeds
    ]
    episodes = [item for result in results for item in result["episodes"]]
    tasks = {task: [item["success"] for item in episodes if item["task"] == task] for task in results[0]["tasks"]}
    training = read_json(Path(settings.run) / "train.json")
    write(
        settings.name,
        {
            "success": wilson(sum(item["success"] for item in episodes), len(episodes))._asdict(),
            "n": len(episodes),
            "errors": sum(item["error"] is not None for item in episodes),
            "by_seed": {seed: result["success"]["rate"] for seed, result in zip(settings.seeds, results, strict=True)},
            "tasks": {task: sum(values) / len(values) for task, values in tasks.items()},
            "overlap_with_demonstrations": sum(result.get("overlap", {}).get("episodes", 0) for result in results),
            "protocol": results[0]["protocol"],
            "policy": results[0]["policy"],
            "decode": results[0]["decode"],
            "training": {key: training[key] for key in ("config", "parameters", "wall_s", "steps_per_s", "commit", "machine")},
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
