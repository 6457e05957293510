"""Success of a trained policy over several evaluation seeds: `python -m benchmarks.success RUN env=metaworld/mt10`.

Each seed draws other goals; none is chosen for its figure, and all of them are pooled in one Wilson interval. What took hours,
and was resumed, is played by `kinoise eval` and summed up here: `python -m benchmarks.success RUN results=[EVAL/result.json]`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kinoise.config import parse, run
from kinoise.spec import KinoiseError
from omegaconf import MISSING

from .record import write

# Of the run's train.json; runs from before it said how the demonstrations were made lack that alone.
KEPT = ("config", "demonstrations", "parameters", "wall_s", "steps_per_s", "commit", "machine")


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
    results: list[str] = field(
        default_factory=list, metadata={"help": "result.json of kinoise eval, one for each seed, in place of playing"}
    )
    name: str = field(default="success", metadata={"help": "results/NAME.json"})


def main(argv: Sequence[str]) -> int:
    # Worker processes import this file too: they are not to load torch.
    from kinoise.eval.metrics import wilson
    from kinoise.files import read_json

    settings = parse("success", Settings, argv, positional="run", about=__doc__ or "")
    results = recalled(settings) if settings.results else played(settings)
    episodes = [item for result in results for item in result["episodes"]]
    tasks = {task: [item["success"] for item in episodes if item["task"] == task] for task in results[0]["tasks"]}
    training = read_json(Path(settings.run) / "train.json")
    write(
        settings.name,
        {
            "success": wilson(sum(item["success"] for item in episodes), len(episodes))._asdict(),
            "n": len(episodes),
            "errors": sum(item["error"] is not None for item in episodes),
            "by_seed": {result["protocol"]["seed"]: result["success"]["rate"] for result in results},
            "suites": {
                name: {**wilson(sum(item), len(item))._asdict(), "n": len(item)} for name, item in suites(tasks).items()
            },
            "tasks": {task: sum(values) / len(values) for task, values in tasks.items()},
            "overlap_with_demonstrations": sum(result.get("overlap", {}).get("episodes", 0) for result in results),
            "protocol": results[0]["protocol"],
            "policy": results[0]["policy"],
            "decode": results[0]["decode"],
            "played": [{key: result[key] for key in ("commit", "machine", "wall_s", "rollout")} for result in results],
            "training": {key: training[key] for key in KEPT if key in training},
        },
    )
    return 0


def suites(tasks: Mapping[str, list[bool]]) -> dict[str, list[bool]]:
    """Episodes by suite, of tasks that are numbered within theirs: `libero/goal-3`."""
    found: dict[str, list[bool]] = {}
    for task, episodes in tasks.items():
        suite, _, number = task.rpartition("-")
        if number.isdigit():
            found.setdefault(suite, []).extend(episodes)
    return found


def played(settings: Settings) -> list[dict[str, Any]]:
    """An evaluation for each seed."""
    from kinoise.eval.evaluate import evaluate
    from kinoise.policies.checkpoint import load_policy, resolve

    checkpoint = resolve(settings.run)
    asked = {"sampler": settings.sampler, "steps": settings.steps, "warm": settings.warm}
    decode = {name: value for name, value in asked.items() if value is not None}
    policy = load_policy(checkpoint, decode=decode, bf16=settings.bf16)
    return [
        evaluate(
            policy,
            settings.env,
            episodes=settings.episodes,
            seed=seed,
            execute=settings.execute,
            checkpoint=checkpoint,
            data=None if settings.data is None else Path(settings.data),
        )
        for seed in settings.seeds
    ]


def recalled(settings: Settings) -> list[dict[str, Any]]:
    """Evaluations that were played before. Raises KinoiseError for one of other weights or another protocol."""
    from kinoise.files import read_json, sha256
    from kinoise.policies.checkpoint import resolve, weights_path

    weights = sha256(weights_path(resolve(settings.run)))
    found = [read_json(Path(path)) for path in settings.results]
    same = {key: value for key, value in found[0]["protocol"].items() if key not in ("seed", "hash")}
    for path, result in zip(settings.results, found, strict=True):
        if result["policy"]["sha256"] != weights:
            raise KinoiseError(f"{path} is of other weights than {settings.run}: take a result of this run's last checkpoint")
        if {key: value for key, value in result["protocol"].items() if key not in ("seed", "hash")} != same:
            raise KinoiseError(f"{path} follows another protocol than {settings.results[0]}: sum up what was played alike")
    return found


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
