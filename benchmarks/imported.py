"""LeRobot's DiffusionPolicy as it is, and imported: `python -m benchmarks.imported CHECKPOINT RUN env=ENV`.

CHECKPOINT is LeRobot's folder `pretrained_model`; RUN what `kinoise import-lerobot` made of it and `kinoise calibrate` put a
level into. One plan at a time, alternating:

- `lerobot`: `select_action` of LeRobot's own class with its weights, in an environment of its own (see `benchmarks.peers`);
- `imported`: `Policy.plan` of RUN, in as many evaluations;
- `warm_2`, `warm_1`: from the plan before, in 2 evaluations and in 1.

The same rows are played by `benchmarks.replanning`: `full` is RUN as it was imported, and the warm ones plan at every step.
Target: LeRobot's plan takes 5 times as long as one from the plan before, whose success is equal within the paired interval.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kinoise.config import UsageError, parse, run
from kinoise.data.convert import named
from kinoise.spec import KinoiseError
from omegaconf import MISSING

from . import replanning
from .peer import Peer
from .played import Partial
from .record import milliseconds, ratio, write

TARGET = 5.0
WARM = ("warm_2", "warm_1")


@dataclass
class Settings:
    """The whole command line."""

    checkpoint: str = field(default=MISSING, metadata={"help": "LeRobot's folder pretrained_model"})
    run: str = field(default=MISSING, metadata={"help": "what kinoise import-lerobot made of it"})
    env: str = "pusht"
    episodes: int = field(default=50, metadata={"help": "per task and seed"})
    seeds: list[int] = field(default_factory=lambda: [1000, 2000, 3000])
    plans: int = field(default=60, metadata={"help": "timed, of each side"})
    threads: int = field(default=1, metadata={"help": "torch's, on every side"})
    folder: str = field(default="~/.cache/kinoise/peers", metadata={"help": "where LeRobot's environment is, or is made"})
    name: str = field(default="imported_lerobot", metadata={"help": "results/NAME.json"})

    def __post_init__(self) -> None:
        if self.plans < 1 or self.threads < 1:
            raise UsageError(f"plans={self.plans}, threads={self.threads}: at least 1 of each is needed")


def check(settings: Settings) -> None:
    """Raises KinoiseError unless the run is this checkpoint, which plans as the row `full` does."""
    from kinoise.files import read_json, sha256
    from kinoise.policies.checkpoint import load_policy

    weights, about = Path(settings.checkpoint) / "model.safetensors", Path(settings.run) / "import.json"
    if not about.is_file() or read_json(about).get("sha256") != sha256(weights):
        raise KinoiseError(f"{settings.run} is not what kinoise import-lerobot makes of {weights}: import that")
    decode = load_policy(settings.run).config.decode
    changes, _ = replanning.CONTINUOUS[replanning.REFERENCE]
    if (decode.sampler, decode.steps) != (changes["sampler"], changes["steps"]):
        raise KinoiseError(
            f"{settings.run} plans by {decode.steps} steps of {decode.sampler}: expected LeRobot's default, "
            f"{changes['steps']} of {changes['sampler']}"
        )


def timed(settings: Settings, python: Path, rows: Sequence[replanning.Row]) -> dict[str, Any]:
    """What a plan takes on each side, and how many times as long LeRobot's takes."""
    from kinoise.policies.example import example

    from .speed import Planner, alternate

    seen = [example(rows[0].policy)]
    sides: dict[str, Callable[[int], float]] = {
        "imported" if row.name == replanning.REFERENCE else row.name: Planner(row, seen) for row in rows
    }
    told = {"checkpoint": str(Path(settings.checkpoint).resolve()), "threads": settings.threads}
    with ExitStack() as stack:
        peer = stack.enter_context(Peer(python, Path(__file__).parent / "lerobot_side.py", told))
        times = alternate({"lerobot": peer, **sides}, settings.plans)
    return {
        "threads": settings.threads,
        "lerobot": peer.about,
        "plan_ms": {name: milliseconds(own) for name, own in times.items()},
        "lerobot_takes": {name: ratio(times["lerobot"], times[name]) for name in sides},
    }


def main(argv: Sequence[str]) -> int:
    settings = parse(
        "imported",
        Settings,
        named(argv, "imported", ("checkpoint", "run")),
        positional="checkpoint run",
        about=__doc__ or "",
    )
    check(settings)
    import torch

    from .peers import lerobot_environment

    torch.set_num_threads(settings.threads)
    python = lerobot_environment(Path(settings.folder).expanduser())
    played = replanning.Settings(settings.env, settings.episodes, settings.seeds, only=["short", *WARM, "cold_2", "cold_1"])
    rows = [row for row in replanning.rows_of(settings.run, played) if row.name in (replanning.REFERENCE, *WARM)]
    times = timed(settings, python, rows)
    partial = Partial(settings.name)
    table = replanning.table_of(settings.run, played, partial)
    write(settings.name, {"target": TARGET, "env": settings.env, **times, **table})
    replanning.show({settings.run: table})
    partial.done()
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
