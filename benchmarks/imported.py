"""LeRobot's DiffusionPolicy as it is, and imported: `python -m benchmarks.imported CHECKPOINT RUN data=DATA env=ENV`.

CHECKPOINT is LeRobot's folder `pretrained_model`; RUN what `kinoise import-lerobot` made of it and `kinoise calibrate` put a
level into; DATA demonstrations that show what RUN observes. LeRobot's own class plans with its weights in an environment of its
own (see `benchmarks.peers`).

`action_difference` is the largest between the actions that both carry out of a plan, for observations from DATA and the same
noise. `plan_ms` are plans one at a time, alternating:

- `lerobot`: `select_action`, without its processors;
- `imported`: `Policy.plan` of RUN, in as many evaluations;
- `warm_2`, `warm_1`: from the plan before, in 2 evaluations and in 1.

The same rows are played by `benchmarks.replanning`: `full` is RUN as it was imported, and the warm ones plan at every step.
`lerobot` is its `select_action` with LeRobot's processors in the first `lerobot_episodes` of the same episodes, one at a time.
Targets: actions within 1e-5; LeRobot's plan takes 5 times as long as one from the plan before, whose success is equal within
the paired interval.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinoise.config import UsageError, parse, run
from kinoise.data.convert import named
from kinoise.spec import KinoiseError
from omegaconf import MISSING

from . import acting, replanning
from .peer import Peer
from .played import Partial, compare
from .record import milliseconds, ratio, write

if TYPE_CHECKING:  # worker processes import the benchmarks too: they are not to load torch
    from kinoise.spec import Observation

TARGET, CLOSE = 5.0, 1e-5
WARM = ("warm_2", "warm_1")
LEROBOT = "lerobot"


@dataclass
class Settings:
    """The whole command line."""

    checkpoint: str = field(default=MISSING, metadata={"help": "LeRobot's folder pretrained_model"})
    run: str = field(default=MISSING, metadata={"help": "what kinoise import-lerobot made of it"})
    data: str = field(default=MISSING, metadata={"help": "demonstrations with what it observes"})
    env: str = "pusht"
    episodes: int = field(default=50, metadata={"help": "per task and seed"})
    seeds: list[int] = field(default_factory=lambda: [1000, 2000, 3000])
    horizon: int | None = field(default=None, metadata={"help": "steps of an episode; null: the simulator's"})
    lerobot_episodes: int | None = field(
        default=None, metadata={"help": "of these, how many LeRobot's own policy plays; null: all, 0: none"}
    )
    observations: int = field(default=20, metadata={"help": "for which the actions are compared"})
    plans: int = field(default=60, metadata={"help": "timed, of each side"})
    threads: int = field(default=1, metadata={"help": "torch's, on every side"})
    folder: str = field(default="~/.cache/kinoise/peers", metadata={"help": "where LeRobot's environment is, or is made"})
    name: str = field(default="imported_lerobot", metadata={"help": "results/NAME.json"})

    def __post_init__(self) -> None:
        if min(self.plans, self.threads, self.observations) < 1:
            raise UsageError(
                f"plans={self.plans}, threads={self.threads}, observations={self.observations}: at least 1 of each is needed"
            )
        if not 0 <= self.theirs <= self.episodes:
            raise UsageError(f"lerobot_episodes={self.lerobot_episodes}: expected from 0 to episodes={self.episodes}")

    @property
    def theirs(self) -> int:
        return self.episodes if self.lerobot_episodes is None else self.lerobot_episodes

    @property
    def told(self) -> dict[str, Any]:
        """What LeRobot's side is told."""
        return {"checkpoint": str(Path(self.checkpoint).resolve()), "threads": self.threads}


def rows_of(settings: Settings, played: replanning.Settings) -> list[replanning.Row]:
    """The run's rows. Raises KinoiseError unless it is this checkpoint, which plans as the row `full` does."""
    from kinoise.files import read_json, sha256

    weights, about = Path(settings.checkpoint) / "model.safetensors", Path(settings.run) / "import.json"
    if not about.is_file() or read_json(about).get("sha256") != sha256(weights):
        raise KinoiseError(f"{settings.run} is not what kinoise import-lerobot makes of {weights}: import that")
    rows = replanning.rows_of(settings.run, played)
    decode, (changes, _) = rows[0].policy.config.decode, replanning.CONTINUOUS[replanning.REFERENCE]
    if (decode.sampler, decode.steps) != (changes["sampler"], changes["steps"]):
        raise KinoiseError(
            f"{settings.run} plans by {decode.steps} steps of {decode.sampler}: expected LeRobot's default, "
            f"{changes['steps']} of {changes['sampler']}"
        )
    return rows


def timed(settings: Settings, python: Path, rows: Sequence[replanning.Row], seen: Sequence[Observation]) -> dict[str, Any]:
    """What a plan takes on each side, and how many times as long LeRobot's takes."""
    from .speed import Planner, alternate

    sides: dict[str, Callable[[int], float]] = {
        "imported" if row.name == replanning.REFERENCE else row.name: Planner(row, seen)
        for row in rows
        if row.name in (replanning.REFERENCE, *WARM)
    }
    with Peer(python, Path(__file__).parent / "lerobot_side.py", settings.told) as peer:
        times = alternate({LEROBOT: peer, **sides}, settings.plans)
    return {
        "threads": settings.threads,
        LEROBOT: peer.about,
        "plan_ms": {name: milliseconds(own) for name, own in times.items()},
        "lerobot_takes": {name: ratio(times[LEROBOT], times[name]) for name in sides},
    }


def with_lerobot(
    settings: Settings, theirs: acting.Theirs, played: dict[str, list[dict[str, Any]]], table: dict[str, Any], partial: Partial
) -> None:
    """Adds LeRobot's own row to the table, and to the warm ones how they differ from it."""
    count, reference = settings.theirs, played[replanning.REFERENCE]
    own = acting.play_theirs(theirs, reference, count, partial)
    for name in WARM:
        against = compare([acting.first(item, count) for item in played[name]], own)
        table["rows"][name].setdefault("against", {})[LEROBOT] = against
    table["rows"][LEROBOT] = acting.figures(theirs, own, reference, count)


def main(argv: Sequence[str]) -> int:
    settings = parse(
        "imported",
        Settings,
        named(argv, "imported", ("checkpoint", "run")),
        positional="checkpoint run",
        about=__doc__ or "",
    )
    only = ["short", *WARM, "cold_2", "cold_1"]
    how = replanning.Settings(settings.env, settings.episodes, settings.seeds, settings.horizon, only=only)
    rows = rows_of(settings, how)
    import torch
    from kinoise.data import open_store

    from .peers import lerobot_environment
    from .speed import observations

    torch.set_num_threads(settings.threads)
    python = lerobot_environment(Path(settings.folder).expanduser())
    seen = observations(rows[0].policy, open_store(settings.data), settings.observations, seed=0)
    times, partial = timed(settings, python, rows, seen), Partial(settings.name)
    with Peer(python, Path(__file__).parent / "lerobot_acts.py", settings.told) as peer:
        full = next(row for row in rows if row.name == replanning.REFERENCE)
        theirs = acting.Theirs(peer, Path(settings.checkpoint), full.take())
        difference = {"target": CLOSE, **theirs.difference(seen)}
        played = replanning.play_all(rows, how, partial)
        table = replanning.table_of(rows, played)
        if settings.theirs:
            with_lerobot(settings, theirs, played, table, partial)
    write(settings.name, {"target": TARGET, "env": settings.env, "action_difference": difference, **times, **table})
    replanning.show({settings.run: table})
    partial.done()
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
