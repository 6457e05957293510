"""`kinoise compare A B`: two evaluations, paired episode by episode, as a table and as JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from ..config import UsageError, parse
from ..data.convert import named
from ..files import write_json
from ..spec import KinoiseError
from .comparison import compare
from .text import number, short

ABOUT = """Pairs two evaluations by episode (task, index, seed) and tests whether one policy succeeds more often: McNemar's
exact test and Newcombe's 95 % interval of the difference, per task and overall, beside what planning cost. Both have to be
played by the same protocol; errors count as failures, as in kinoise eval."""

ALPHA = 0.05
COSTS = {
    "nfe_per_plan": "network evaluations a plan",
    "plan_ms.p50": "ms a batch of plans, median",
    "plan_ms.p95": "ms a batch of plans, p95",
    "plan_ms_batch1.p50": "ms one plan, median",
    "plan_ms_batch1.p95": "ms one plan, p95",
}
TIMED = ("machine", "rollout", "versions")
"""What the times depend on, beside policy and settings."""
IDENTITY = ("policy.name", "policy.checkpoint", "policy.sha256", "policy.parameters")
"""What is shown of each by itself."""


@dataclass
class Settings:
    """The whole command line of `kinoise compare`."""

    a: str = field(default=MISSING, metadata={"help": "a result.json of kinoise eval, its folder, or a run with a folder eval"})
    b: str = field(default=MISSING, metadata={"help": "the one to compare it with, played by the same protocol"})
    out: str | None = field(default=None, metadata={"help": "JSON file for all of it; none is written if null"})

    def __post_init__(self) -> None:
        if self.out is not None and (not self.out or Path(self.out).is_dir()):
            raise UsageError(f"out={self.out}: expected a file that the comparison goes to, as in out=compare.json")


def main(argv: Sequence[str]) -> int:
    """Raises UsageError for wrong settings, KinoiseError for results that are missing or broken or can't be paired."""
    settings = parse("compare", Settings, named(argv, "compare", ("a", "b")), positional="a b", about=ABOUT)
    a, b = locate(settings.a), locate(settings.b)
    out = None if settings.out is None else Path(settings.out)
    if out is not None and os.path.realpath(out) in (os.path.realpath(a), os.path.realpath(b)):
        raise UsageError(f"out={out} is one of the two results. Choose another file.")
    found = compare(a, b)
    if out is not None:
        write_json(out, found)
    console = Console()
    show(found, console)
    if out is not None:
        console.print(f"{out}", highlight=False, markup=False, soft_wrap=True)
    return 0


def locate(given: str | Path) -> Path:
    """The result.json that is meant by a file, its folder, or a run. Raises KinoiseError when there is none."""
    path = Path(given)
    if not path.exists():
        raise KinoiseError(f"{path} does not exist: give a result.json that kinoise eval wrote, or its folder")
    for file in (path, path / "result.json", path / "eval" / "result.json"):
        if file.is_file():
            return file
    raise KinoiseError(f"{path} holds neither result.json nor eval/result.json: give the folder that kinoise eval wrote")


def show(found: dict[str, Any], console: Console) -> None:
    """Who is compared, success per task, what errors and conditions have to be known, cost, and the verdict."""

    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    for name in ("a", "b"):
        say(f"{name.upper()}: {_identity(found[name])}")
    if found["same"]:
        say("A and B are the same result: it is compared with itself", "yellow")
    console.print(_success(found))
    for name in ("a", "b"):
        wrong = [item for item in found["episodes"] if item[name]["error"]]
        if wrong:
            say(
                f"{len(wrong)} of {name.upper()}'s {found['success']['n']} episodes ended in an error; they count as failures:",
                "red",
            )
        for item in wrong:
            say(f"error in {name.upper()}, {item['task']} {item['index']}: {item[name]['error']}", "red")
    if found["other_initial_states"]:
        say(
            f"{found['other_initial_states']} pairs began in different states: another simulator drew them from the seed", "red"
        )
    apart = {key: item for key, item in found["differences"].items() if key not in IDENTITY}
    timed = [key for key in apart if key.split(".")[0] in TIMED]
    for key in [key for key in apart if key not in timed]:
        say(f"{key}: {apart[key]['a']} in A, {apart[key]['b']} in B")
    console.print(_cost(found["cost"]))
    if timed:
        say(f"the conditions were not the same, which times depend on: {', '.join(timed)}", "yellow")
    say(_verdict(found), "bold")


def _identity(side: dict[str, Any]) -> str:
    policy, commit = side["policy"], side["commit"]
    weights = f"weights {policy['sha256'][:12]}" if policy["sha256"] else "weights never saved"
    source = f"kinoise {side['kinoise']}" + (f" at {commit[:12]}{'+dirty' * commit.endswith('+dirty')}" if commit else "")
    return f"{policy['name']}, {number(policy['parameters'])} parameters, {weights}, {source}, {side['path']}"


def _success(found: dict[str, Any]) -> Table:
    """A row a task and one for all; names without their family where that leaves them apart."""
    names = {task: short(task) for task in found["tasks"]}
    if len(set(names.values())) < len(names):
        names = {task: task for task in names}
    headers = ("A", "B", "A - B", "95 % interval", "alone", "p", "p Holm")
    columns = (Column(name, justify="right", no_wrap=True) for name in headers)
    table = Table(Column("task", overflow="fold"), *columns, box=SIMPLE_HEAD, padding=0)
    for name, row in {**{names[task]: row for task, row in found["tasks"].items()}, "": found["success"]}.items():
        if not name:
            table.add_section()
        gap = row["difference"]
        table.add_row(
            name or "all",
            *(f"{row[side]['rate']:.3f}" for side in ("a", "b")),
            _signed(gap["value"]),
            _span(gap),
            f"{row['only_a']}:{row['only_b']}",
            _p(row["p"]),
            _p(row["p_holm"]) if name else "",
        )
    return table


def _cost(cost: dict[str, dict[str, Any]]) -> Table:
    columns = (Column(name, justify="right", no_wrap=True) for name in ("A", "B", "A / B"))
    table = Table(Column("planning"), *columns, box=SIMPLE_HEAD)
    for key, item in cost.items():
        table.add_row(COSTS[key], *(number(item[name]) for name in ("a", "b", "ratio")))
    return table


def _verdict(found: dict[str, Any]) -> str:
    """What can be said overall, and of which tasks."""
    row = found["success"]
    gap = f"{_signed(row['difference']['value'])} ({_span(row['difference'])})"
    alone = f"of {row['n']} episodes {row['only_a']} solved by A alone, {row['only_b']} by B alone"
    told = "they differ" if row["p"] < ALPHA else "not told apart"
    tasks = [short(task) for task, item in found["tasks"].items() if item["p_holm"] < ALPHA]
    each = f"tasks that differ by Holm's p: {', '.join(tasks)}" if tasks else "no task differs by Holm's p"
    return f"A - B = {gap}: {alone}; p {_p(row['p'])}: {told}; {each}"


def _span(gap: dict[str, float]) -> str:
    return f"{_signed(gap['low'])} to {_signed(gap['high'])}"


def _signed(value: float) -> str:
    return f"{value:+.3f}" if round(value, 3) else "0.000"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
