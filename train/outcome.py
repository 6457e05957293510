"""What came of a sweep's jobs, as figures and as a table."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from ..eval.sources import RESULT, TRAIN, read_checks, read_metrics, read_record

SEED = "seed"
PROOF = {"train": "train.json", "eval": "result.json"}
"""The file that a job writes last, by command."""


def _of_training(run: Path) -> dict[str, float | None]:
    metrics = read_metrics(run / "metrics.jsonl")
    checks = read_checks(run / "evaluations")
    last = {key: item for record in metrics for key, item in record.items()}
    return {
        "success": checks[-1][1] if checks else None,
        "validation_loss": last.get("validation_loss"),
        "loss": last.get("loss"),
        "wall_s": read_record(run / PROOF["train"], TRAIN, "train")["wall_s"],
    }


def _of_evaluation(out: Path) -> dict[str, float | None]:
    result = read_record(out / PROOF["eval"], RESULT, "eval")
    cost = result["decode_cost"]
    return {
        **{name if name != "rate" else "success": result["success"][name] for name in ("rate", "low", "high", "n", "errors")},
        "nfe_per_plan": cost["nfe_per_plan"],
        "plan_ms": cost["plan_ms_batch1"]["p50"],
    }


FIGURES: dict[str, Callable[[Path], dict[str, float | None]]] = {"train": _of_training, "eval": _of_evaluation}
"""By command, what is read from the folder of a job that has finished; None where it was not measured."""


def over_seeds(jobs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation (n - 1) of each figure over the jobs that differ in nothing but their seed.

    Empty when the seed was not swept.
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for job in jobs:
        if SEED in job["overrides"]:
            groups.setdefault(tuple((key, item) for key, item in job["overrides"].items() if key != SEED), []).append(job)
    found = []
    for rest, members in groups.items():
        names = [name for name in members[0]["figures"] if all(item["figures"].get(name) is not None for item in members)]
        figures = {}
        for name in names:
            values = [item["figures"][name] for item in members]
            figures[name] = {
                "mean": statistics.fmean(values),
                "std": statistics.stdev(values) if len(values) > 1 else None,
            }
        found.append({"overrides": dict(rest), "seeds": len(members), "figures": figures})
    return found


def show(sweep: Mapping[str, Any], console: Console) -> None:
    """The jobs' table, that over seeds where there is one, and what failed jobs said."""
    jobs = sweep["jobs"]
    keys = list(dict.fromkeys(key for job in jobs for key in job["overrides"]))
    names = _measured([job.get("figures", {}) for job in jobs])
    table = Table(*keys, *(Column(name, justify="right") for name in names), "", box=SIMPLE_HEAD)
    for job in jobs:
        figures = job.get("figures", {})
        cells = [*(job["overrides"].get(key, "") for key in keys), *(_number(figures.get(name)) for name in names)]
        table.add_row(*cells, "" if job["state"] == "finished" else job["state"])
    console.print(table)
    groups = [item for item in sweep["over_seeds"] if item["seeds"] > 1]
    if groups:
        keys = [key for key in keys if key != SEED]
        table = Table(*keys, "seeds", *(Column(name, justify="right") for name in names), box=SIMPLE_HEAD)
        for group in groups:
            means = [_spread(group["figures"].get(name)) for name in names]
            table.add_row(*(group["overrides"].get(key, "") for key in keys), str(group["seeds"]), *means)
        console.print(table)
    for job in jobs:
        if job.get("said"):
            console.print(f"{job['name']} {job['state']}: {job['said']}", style="red", markup=False, soft_wrap=True)


def _measured(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the figures that at least one job has."""
    return list(dict.fromkeys(name for item in figures for name, value in item.items() if value is not None))


def _number(value: float | int | None) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.4g}"


def _spread(value: Mapping[str, float | None] | None) -> str:
    return "" if value is None else f"{value['mean']:.4g} ± {value['std']:.2g}"
