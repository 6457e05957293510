"""`kinoise inspect DATA`: what a data set holds, and what is wrong with it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from ...config import UsageError, parse
from ...files import write_text
from ...spec import KinoiseError
from .. import FORMATS, EpisodeStore, Reading, open_store
from ..mixture.store import Mixture
from .examine import Examined, examine
from .page import render
from .sheet import contact_sheet, write_sheet
from .survey import survey, work

ABOUT = """Prints shapes, ranges, what the action and its rotations look like, idle frames, episode lengths and instructions,
and every problem found: episodes that can't be read, NaN, outliers, jumps, gaps in time, broken or flipped cameras.
Exit code 0 when the data could be read, problems or not; 1 when nothing could."""

SHOWN = 30
"""Problems shown in the terminal, of the first and of the last."""
MOST_NAME = 24
"""Characters of a name in the terminal before it goes on in the next line."""
MOST_FRAMES = 100
"""A picture of more takes minutes to lay out, and has more rows than a picture may have."""


@dataclass
class Settings:
    data: str = field(default=MISSING, metadata={"help": "the data set"})
    format: str | None = field(default=None, metadata={"help": "its file format, when it is not recognised"})
    filter: str | None = field(default=None, metadata={"help": "the subset of episodes to read, by its name in the files"})
    rate: float | None = field(
        default=None, metadata={"help": "control steps per second, when the files don't say or are wrong"}
    )
    idle: float = field(
        default=1e-3, metadata={"help": "a step is idle when state and action move by at most this share of their range"}
    )
    dimensions: bool = field(default=False, metadata={"help": "a line for every dimension"})
    json: bool = field(default=False, metadata={"help": "print JSON instead"})
    html: str | None = field(default=None, metadata={"help": "write a page with everything to this file"})
    sheet: str | None = field(default=None, metadata={"help": "write a picture of first and last frames (PNG) to this file"})
    frames: int = field(default=24, metadata={"help": "episodes in the page's or the picture's contact sheet at most"})

    def __post_init__(self) -> None:
        if not self.idle >= 0:
            raise UsageError(f"idle={self.idle}: expected a share of the range, 0 or more.")
        if not 1 <= self.frames <= MOST_FRAMES:
            raise UsageError(f"frames={self.frames}: expected from 1 to {MOST_FRAMES}.")


def main(argv: Sequence[str]) -> int:
    """Raises UsageError for settings out of range, KinoiseError when the data cannot be opened."""
    choices = {"format": lambda: " | ".join(FORMATS)}
    settings = parse("inspect", Settings, argv, positional="data", about=ABOUT, choices=choices)
    problems: list[str] = []
    reading = Reading(format=settings.format, filter=settings.filter, rate=settings.rate)
    try:
        opened = open_store(settings.data, reading, problems.append)
    except KinoiseError:
        for problem in problems:
            print(f"kinoise: {problem}", file=sys.stderr)
        raise
    opened, console = _comparable(opened, problems), Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading", total=work(opened))
        examined = examine(opened, lambda rows: progress.advance(task, rows))
        found = survey(opened, examined, settings.idle, problems, lambda rows: progress.advance(task, rows))
    if settings.json:
        print(json.dumps(found, indent=2, allow_nan=False))
    else:
        _show(found, Console(), settings.dimensions)
    _write(found, examined, settings)
    return 0 if examined.numbers else 1


def _comparable(store: EpisodeStore, problems: list[str]) -> EpisodeStore:
    """The store itself, but a mixture that bad episodes keep from being normalised, with its data sets' own numbers."""
    if isinstance(store, Mixture):
        try:
            _ = store.laid
        except KinoiseError:
            problems.append(
                f"{store.path}: normalise: each can't be done while episodes are bad (see the other problems), so numbers here "
                f"are each data set's own."
            )
            return store.unframed()
    return store


def _write(found: dict[str, Any], examined: Examined, settings: Settings) -> None:
    if settings.html is None and settings.sheet is None:
        return
    store, sheet = examined.store, []
    if store is not None:
        suspects = [
            *(number for item in found["cameras"].values() for name in ("black", "uniform", "frozen") for number in item[name]),
            *(flip["episode"] for item in found["cameras"].values() for flip in item["flipped"]),
        ]
        sheet = contact_sheet(store, examined.numbers, settings.frames, suspects)
    written = []
    if settings.html is not None:
        write_text(Path(settings.html), render(found, store, sheet))
        written.append(Path(settings.html))
    if settings.sheet is not None:
        write_sheet(Path(settings.sheet), sheet)
        written.append(Path(settings.sheet))
    for path in written:
        print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)", file=sys.stderr)


def _show(found: dict[str, Any], console: Console, dimensions: bool) -> None:
    minutes, seconds = divmod(found["duration_s"], 60)
    console.print(Text(found["path"], "bold"))
    left_out = _left_out(len(found["left_out"]) + found["lost"])
    console.print(
        f"{found['format']}, {found['episodes']:,} episodes{left_out}, {found['steps']:,} steps at {found['rate']:g} Hz "
        f"({minutes:.0f} min {seconds:.0f} s), {found['control']} actions"
    )
    for item in found["datasets"]:
        weight = "" if item["weight"] is None else f", weight {item['weight']:g}"
        episodes = f"{item['episodes']:,} episodes{_left_out(item['left_out'])}, {item['steps']:,} steps"
        console.print(Text.assemble("  ", (item["name"], "bold"), f": {item['format']}, {episodes}{weight}"))
    console.print()
    if found["keys"]:
        for table in _dimensions(found["keys"]) if dimensions else [_keys(found["keys"])]:
            console.print(table)
        console.print(_instructions(found["instructions"]))
        _show_evidence(found, console)
    if not found["problems"]:
        console.print(Text("no problems found", "green"))
    for line in (*found["notes"], *found["dropped"]):
        console.print(Text.assemble(("note: ", "bold"), line))
    problems = found["problems"]
    hidden = len(problems) - 2 * SHOWN
    # A file that many episodes lie in gives each of them its problem; what the good ones have comes last.
    for problem in problems if hidden <= 0 else problems[:SHOWN]:
        console.print(Text.assemble(("problem: ", "bold yellow"), problem))
    if hidden > 0:
        console.print(Text(f"... and {hidden} more problems: json=true and html=PATH show them all", "bold yellow"))
        for problem in problems[-SHOWN:]:
            console.print(Text.assemble(("problem: ", "bold yellow"), problem))


def _left_out(count: int) -> str:
    return f" ({count:,} left out)" if count else ""


def _show_evidence(found: dict[str, Any], console: Console) -> None:
    console.print(Text.assemble("actions look ", (found["action"]["kind"], "bold"), f": {found['action']['why']}"))
    alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for key, value in found["keys"].items():
        for turn in value.get("rotations", ()):
            alike.setdefault((key, turn["kind"], turn["order"]), []).append(turn)
    for (key, kind, order), turns in alike.items():
        names = "; ".join(f"{turn['names'][0]} to {turn['names'][-1]}" for turn in turns[:4])
        more = f" and {len(turns) - 4} more" if len(turns) > 4 else ""
        said = f", {order}" if order else ""
        console.print(Text.assemble((f"{key}", "bold"), f" {names}{more}: {kind}{said} ({turns[0]['evidence']})"))
    console.print()


def _keys(keys: dict[str, dict[str, Any]]) -> Table:
    table = _table("key", "array", "unit", "range", "mean", "std", "constant")
    table.columns[0].width = min(MOST_NAME, max(map(len, keys)))
    for key, value in keys.items():
        table.add_row(
            Text(key),
            f"{value['dtype']} {'x'.join(map(str, value['shape']))}",
            Text(", ".join(dict.fromkeys(value["unit"]))),
            _span([*value["min"], *value["max"]]),
            _span(value["mean"]),
            _span(value["std"]),
            f"{len(value['constant'])} of {len(value['names'])}",
        )
    return table


def _dimensions(keys: dict[str, dict[str, Any]]) -> Iterator[Table]:
    """A table for each key: its name in a column would leave the numbers too little room."""
    for key, value in keys.items():
        table = _table(key, "min", "1 %", "mean", "99 %", "max", "std")
        units = value["unit"] if len(value["unit"]) == len(value["names"]) else [*value["unit"], ""][:1] * len(value["names"])
        columns = zip(*(value[name] for name in ("min", "q01", "mean", "q99", "max", "std")), strict=True)
        for name, unit, numbers in zip(value["names"], units, columns, strict=True):
            style = "yellow" if name in value["constant"] else ""
            called = f"{name} ({unit})" if unit else name
            table.add_row(Text(called), *(f"{number:.3g}" for number in numbers), style=style)
        yield table


def _instructions(instructions: list[dict[str, Any]]) -> Table:
    table = _table("instruction", "episodes", "steps: min, median, max", "idle", "longest", "retries")
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
        # Folded, not cut: what is missing of a number can't be seen.
        table.add_column(header, overflow="fold")
    return table


def _span(numbers: Sequence[float]) -> str:
    low, high = min(numbers), max(numbers)
    low, high = f"{low:.3g}", f"{high:.3g}"
    return low if low == high else f"{low} to {high}"
