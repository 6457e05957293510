"""An evaluation's result as it is shown on a terminal."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from .presets import PRESETS
from .slot import UPRIGHT


def show(result: dict[str, Any], console: Console) -> None:
    """The table per task, what errors said, and what planning cost."""
    right = (Column(name, justify="right") for name in ("success", "95 % interval", "n", "errors"))
    table = Table(Column("task", no_wrap=True), *right, box=SIMPLE_HEAD)
    rows = {**result["tasks"], "all": result["success"]}
    for name, row in rows.items():
        if name == "all":
            table.add_section()
        span = f"{row['low']:.3f} to {row['high']:.3f}"
        table.add_row(name, f"{row['rate']:.3f}", span, str(row["n"]), str(row["errors"] or ""))
    console.print(table)
    played = result["protocol"]
    if played["name"].partition(",")[0] in PRESETS:
        console.print(f"protocol {played['name']}", highlight=False, soft_wrap=True)
    if played["images"] != UPRIGHT and any(item["kind"] == "image" for item in result["observed"].values()):
        console.print(
            f"images were shown {played['images']}, as {played['name']} has them; those of kinoise collect are upright: if the "
            f"policy learnt from these, evaluate it with images=upright",
            style="red",
            markup=False,
            soft_wrap=True,
        )
    failed = [item for item in result["episodes"] if item["error"]]
    for item in failed:
        console.print(f"error in {item['task']} {item['index']}: {item['error']}", style="red", markup=False, soft_wrap=True)
    if result.get("overlap", {}).get("episodes"):
        seen = result["overlap"]
        console.print(
            f"episodes that began exactly as a demonstration in {seen['data']}: {seen['episodes']}. Choose another seed=.",
            style="red",
            markup=False,
            soft_wrap=True,
        )
    for item in result.get("unfilmed", ()):
        console.print(f"no video of {item['task']} {item['index']}: {item['why']}", style="red", markup=False, soft_wrap=True)
    if "latency" in result:
        delays, moved = result["latency"]["delays"], result["motion"]
        console.print(
            f"plans came {_steps(delays['p50'])} steps late (p95 {_steps(delays['p95'])}, most {_steps(delays['max'])}); "
            f"{moved['held']} of {moved['steps']} actions held the robot where no plan was there",
            highlight=False,
            soft_wrap=True,
        )
    if "stopped" in result:
        stopped = result["stopped"]
        console.print(
            f"until={stopped['until']:g}: {'stopped' if stopped['reached'] else 'not reached'} after {stopped['rounds']} "
            f"episodes of each task, half-width {stopped['half_width']:.3f}",
            highlight=False,
            soft_wrap=True,
        )
    cost = result["decode_cost"]
    if cost["nfe_per_plan"] is None:  # no episode came as far as a plan
        return
    evaluations = f"a plan takes {cost['nfe_per_plan']:.3g} network evaluations"
    if cost["plan_batch"]["mean"] is None:  # merged, or all of it played before
        console.print(evaluations, highlight=False, soft_wrap=True)
        return
    console.print(
        f"{result['env_steps_per_s']:.0f} steps/s; {evaluations}, "
        f"{_ms(cost['plan_ms'])} for a batch of {cost['plan_batch']['mean']:.0f}, {_ms(cost['plan_ms_batch1'])} for one; "
        f"{result['wall_s']:.0f} s in all",
        highlight=False,
        soft_wrap=True,
    )


def _steps(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _ms(values: dict[str, float | None]) -> str:
    return "-" if values["p50"] is None else f"{values['p50']:.1f} ms (p95 {values['p95']:.1f})"
