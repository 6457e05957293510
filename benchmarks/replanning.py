"""Plans at every step from the plan before, beside full ones: `python -m benchmarks.replanning RUN [RUN ...] env=ENV`.

For each checkpoint the same episodes are played by

- `full`: 100 steps of DDPM (masked tokens: 12 rounds), `execute` actions of each plan, the policy's own number;
- `short`: 10 steps of DDIM (masked tokens: 4 rounds), as many;
- `warm_2`: a plan at every step, from the plan before in at most 2 evaluations, at the level that `kinoise calibrate` put into
  the checkpoint;
- `warm_1`: the same in one;
- `cold_2`, `cold_1`: a plan at every step, from noise, in 2 evaluations, and in one.

Each row is paired with `full`, and the warm ones also with the cold ones of as many evaluations: differences with Newcombe's
interval, McNemar's exact test. `jump` is the 99th percentile of the action's change where
one plan follows another, the largest over the seeds, as a share of its range.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kinoise.config import UsageError, parse, run

from .played import Partial, Row, compare, correct, figures, play
from .record import write
from .rows import GREEDY

REFERENCE = "full"
PAIRS = {"warm_2": ("short", "cold_2"), "warm_1": ("short", "cold_1")}

CONTINUOUS: dict[str, tuple[dict[str, Any], bool]] = {
    REFERENCE: ({"sampler": "ddpm", "steps": 100, "warm": 1.0}, False),
    "short": ({"sampler": "ddim", "steps": 10, "warm": 1.0}, False),
    "warm_2": ({"sampler": "ddim", "warm_steps": 2}, True),
    "warm_1": ({"sampler": "ddim", "warm_steps": 1}, True),
    "cold_2": ({"sampler": "ddim", "steps": 2, "warm": 1.0}, True),
    "cold_1": ({"sampler": "ddim", "steps": 1, "warm": 1.0}, True),
}
"""What each row changes, and whether it plans at every step. A first plan, which has none before it, is as in `short`."""

TOKENS: dict[str, tuple[dict[str, Any], bool]] = {
    REFERENCE: ({"steps": 12, "warm": 1.0}, False),
    "short": ({"steps": 4, "warm": 1.0}, False),
    "warm_2": ({"steps": 12, "warm_steps": 2}, True),
    "warm_1": ({"steps": 12, "warm_steps": 1}, True),
    "cold_2": ({"steps": 2, "warm": 1.0}, True),
    "cold_1": ({"steps": 1, "warm": 1.0}, True),
}


@dataclass
class Settings:
    """The whole command line, but for the runs."""

    env: str = "metaworld/mt10"
    episodes: int = field(default=10, metadata={"help": "per task and seed"})
    seeds: list[int] = field(default_factory=lambda: [1000, 2000, 3000, 4000, 5000])
    horizon: int | None = None
    warm: float | None = field(default=None, metadata={"help": "level of warm starts; null: the checkpoint's"})
    only: list[str] | None = field(default=None, metadata={"help": f"these rows and {REFERENCE}; null for all"})
    name: str = field(default="replanning", metadata={"help": "results/NAME.json"})

    def __post_init__(self) -> None:
        unknown = [name for name in self.only or [] if name not in CONTINUOUS]
        if unknown:
            raise UsageError(f"only={unknown}: the rows are {', '.join(CONTINUOUS)}")


def rows_of(run: str, settings: Settings) -> list[Row]:
    """The rows of one checkpoint. Raises UsageError when nothing says from which level plans may start."""
    from kinoise.policies.checkpoint import identity, load_policy, resolve
    from kinoise.policies.discrete_vla import DiscreteVLAPolicy

    checkpoint = resolve(run)
    policy = load_policy(checkpoint)
    own, who = policy.config.decode, identity(policy, checkpoint)
    warm = own.warm if settings.warm is None else settings.warm
    if not 0 < warm < 1:
        raise UsageError(f"{run} has no level for warm starts: run kinoise calibrate on it, or give warm=")
    tokens = isinstance(policy, DiscreteVLAPolicy)
    usual = GREEDY if tokens else {"guidance": 1.0, "steps": 10}
    rows = []
    for name, (changes, always) in (TOKENS if tokens else CONTINUOUS).items():
        if settings.only is None or name in (REFERENCE, *settings.only):
            decode = replace(own, **{**usual, "warm": warm, "gate": None, **changes})
            rows.append(Row(name, policy, decode, 1 if always else policy.config.execute, checkpoint, who, changes))
    return rows


def play_all(rows: Sequence[Row], settings: Settings, partial: Partial) -> dict[str, list[dict[str, Any]]]:
    """What each seed's evaluation of each row found."""
    how = {name: getattr(settings, name) for name in ("env", "episodes", "seeds", "horizon")}
    return {row.name: play(row, partial, **how) for row in rows}


def table_of(rows: Sequence[Row], played: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    table = {row.name: figures(row, played[row.name], played[REFERENCE]) for row in rows}
    correct(table, REFERENCE)
    for name, others in PAIRS.items():
        if name in table:
            table[name]["against"] = {other: compare(played[name], played[other]) for other in others if other in played}
    for row in rows:
        table[row.name] |= {"execute": row.execute, "warm": row.decode.warm}
    return {"policy": rows[0].identity, "rows": table}


def show(tables: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=f"Paired with {REFERENCE}; 95 % intervals")
    for name in ("run", "row", "success", "", "difference", "", "p", "evaluations", "jump"):
        shown.add_column(name, justify="left" if name in ("run", "row") else "right", no_wrap=True)
    for run_name, table in tables.items():
        for name, item in table["rows"].items():
            success, difference = item["success"], item["difference"]
            shown.add_row(
                run_name,
                name,
                f"{success['rate']:.3f}",
                f"{success['low']:.3f} to {success['high']:.3f}",
                f"{difference['value']:+.3f}",
                f"{difference['low']:+.3f} to {difference['high']:+.3f}",
                f"{item['p']:.2g}",
                f"{item['nfe_per_plan']:.2f}",
                "" if item["jump"] is None else f"{item['jump']:.3f}",
            )
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(shown)


def main(argv: Sequence[str]) -> int:
    runs = [item for item in argv if "=" not in item]
    settings = parse("replanning", Settings, [item for item in argv if "=" in item], about=__doc__ or "")
    if not runs:
        raise UsageError("expected at least one run or checkpoint")
    import torch

    torch.set_num_threads(1)  # as in an evaluation, whose simulators need the other cores
    partial = Partial(settings.name)
    tables = {}
    for name in runs:
        rows = rows_of(name, settings)
        tables[name] = table_of(rows, play_all(rows, settings, partial))
    write(settings.name, {"env": settings.env, "runs": tables})
    show(tables)
    partial.done()
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
