"""`kinoise inspect DATA`: what a data set holds, and what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from ..config import UsageError, parse
from . import FORMATS, Reading, open_store
from .survey import survey

ABOUT = """Prints shapes, ranges, constant dimensions, idle frames, episode lengths and instructions, and the problems found.
Exit code 0 when the data could be read, problems or not; 1 when it could not."""


@dataclass
class Settings:
    data: str = field(default=MISSING, metadata={"help": "the data set"})
    format: str | None = field(default=None, metadata={"help": "its file format, when it is not recognised"})
    idle: float = field(
        default=1e-3, metadata={"help": "a step is idle when state and action move by at most this share of their range"}
    )
    dimensions: bool = field(default=False, metadata={"help": "a line for every dimension"})
    json: bool = field(default=False, metadata={"help": "print JSON instead"})


def main(argv: Sequence[str]) -> int:
    """Raises UsageError for settings out of range, KinoiseError when the data cannot be read."""
    choices = {"format": lambda: " | ".join(FORMATS)}
    settings = parse("inspect", Settings, argv, positional="data", about=ABOUT, choices=choices)
    if not settings.idle >= 0:
        raise UsageError(f"idle={settings.idle}: expected a share of the range, 0 or more.")
    store = open_store(settings.data, Reading(format=settings.format))
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading", total=int(store.ends[-1]) * len(store.keys))
        found = survey(store, settings.idle, lambda rows: progress.advance(task, rows))
    if settings.json:
        print(json.dumps(found, indent=2, allow_nan=False))
    else:
        _show(found, Console(), settings.dimensions)
    return 0


def _show(found: dict[str, Any], console: Console, dimensions: bool) -> None:
    minutes, seconds = divmod(found["duration_s"], 60)
    console.print(Text(found["path"], "bold"))
    console.print(
        f"{found['format']}, {found['episodes']:,} episodes, {found['steps']:,} steps at {found['rate']:g} Hz "
        f"({minutes:.0f} min {seconds:.0f} s), {found['control']} actions\n"
    )
    console.print(_dimensions(found["keys"]) if dimensions else _keys(found["keys"]))
    console.print(_instructions(found["instructions"]))
    if not found["problems"]:
        console.print(Text("no problems found", "green"))
    for problem in found["problems"]:
        console.print(Text.assemble(("problem: ", "bold yellow"), problem))


def _keys(keys: dict[str, dict[str, Any]]) -> Table:
    table = _table("key", "array", "unit", "range", "mean", "std", "constant")
    for key, value in keys.items():
        table.add_row(
            Text(key, no_wrap=True),
            f"{value['dtype']} {'x'.join(map(str, value['shape']))}",
            Text(", ".join(dict.fromkeys(value["unit"]))),
            _span([*value["min"], *value["max"]]),
            _span(value["mean"]),
            _span(value["std"]),
            f"{len(value['constant'])} of {len(value['names'])}",
        )
    return table


def _dimensions(keys: dict[str, dict[str, Any]]) -> Table:
    table = _table("key", "dimension", "unit", "min", "1 %", "mean", "99 %", "max", "std")
    for key, value in keys.items():
        units = value["unit"] if len(value["unit"]) == len(value["names"]) else [*value["unit"], ""][:1] * len(value["names"])
        columns = zip(*(value[name] for name in ("min", "q01", "mean", "q99", "max", "std")), strict=True)
        for name, unit, numbers in zip(value["names"], units, columns, strict=True):
            style = "yellow" if name in value["constant"] else ""
            table.add_row(
                Text(key, no_wrap=True), Text(name), Text(unit), *(f"{number:.3g}" for number in numbers), style=style
            )
        table.add_section()
    return table


def _instructions(instructions: list[dict[str, Any]]) -> Table:
    table = _table("instruction", "episodes", "steps: min, median, max", "idle", "longest", "failures")
    for item in instructions:
        length, idle, failures = item["length"], item["idle"], item["failures"]
        table.add_row(
            Text(item["text"] or "(none)"),
            str(item["episodes"]),
            f"{length['min']}, {length['median']:g}, {length['max']}",
            f"{idle['fraction']:.1%}",
            str(idle["longest"]),
            "unknown" if failures is None else str(failures),
        )
    return table


def _table(*headers: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for header in headers:
        table.add_column(header)
    return table


def _span(numbers: Sequence[float]) -> str:
    low, high = min(numbers), max(numbers)
    low, high = f"{low:.3g}", f"{high:.3g}"
    return low if low == high else f"{low} to {high}"
