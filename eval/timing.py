"""A report's account of time: what planning costs, and how the real-time loop kept its deadlines."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from . import charts
from .charts import Axis, Series
from .sections import Chart, Fact, Record
from .sources import read_video
from .text import Number, count, number, short

QUANTILES = ("p50", "p95", "p99", "max")
LOOP = {
    "plan_ms": "A plan, beside the loop",
    "period_ms": "The loop's period",
    "late_ms": "A tick's lateness",
    "work_ms": "A tick's work",
}


def timings(result: Record | None, loop: Record | None) -> dict[str, Any] | None:
    """Rows of quantiles in milliseconds on one logarithmic scale; None when nothing was timed."""
    rows: list[tuple[str, Record]] = []
    if result:
        cost = result["decode_cost"]
        size = cost["plan_batch"]["mean"]
        rows += [("A plan, alone", cost["plan_ms_batch1"]), (f"Plans, {number(size)} at once", cost["plan_ms"])]
    if loop:
        rows += [(name, loop[key]) for key, name in LOOP.items()]
    rows = [(name, item) for name, item in rows if item["p50"] is not None]
    if not rows:
        return None
    # A tick can be punctual to the nanosecond; on the scale, that is a microsecond.
    values = [max(item[key], 1e-3) for _, item in rows for key in QUANTILES if key in item]
    scale = Axis(10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values) * 1.001)), log=True)
    shown = []
    for name, item in rows:
        marks = {key: item[key] for key in QUANTILES if key in item}
        label = f"{name}: {', '.join(f'{key} {number(value)} ms' for key, value in marks.items())}"
        strip = charts.strip(scale, list(marks.values()), label)
        shown.append({"name": name, "strip": strip, "cells": [number(item.get(key)) for key in QUANTILES]})
    return {"rows": shown, "ticks": [(round(100 * scale(value), 2), number(value)) for value in scale.ticks()]}


def control(directory: Path | None, loop: Record | None) -> dict[str, Any] | None:
    """The real-time loop: what it did, how late plans came, what the guards changed."""
    if not directory or not loop:
        return None
    finished = [item["success"] for item in loop["episodes"] if item["finished"]]
    guards, delay, rungs = loop["interventions"], loop["delay_steps"], loop["rungs"]
    tiles = [
        Fact("Ticks", str(loop["ticks"]), (f"{loop['missed']} missed",)),
        Fact("Plans", str(loop["plans"]), (f"{loop['expired']} expired, {loop['stale']} stale",)),
        Fact("Delay of a plan", _ticks(delay["p50"]), (f"95th percentile {number(delay['p95'])}",)),
        Fact("Without a plan", count(rungs["hold"], "tick"), (f"{rungs['rest']} on the rest of one, {rungs['stop']} stopped",)),
        Fact("Guards acted", count(sum(guards.values()), "time"), (", ".join(f"{name} {n}" for name, n in guards.items()),)),
        Fact("Succeeded", f"{sum(finished)} of {len(finished)}", ("finished episodes",)),
    ]
    task, path = short(loop["env"]), directory / "control.mp4"
    return {
        "says": f"{task} at {loop['rate']:g} Hz for {loop['seconds']:g} s of wall-clock time. The simulator does not wait.",
        "facts": tiles,
        "charts": _charts(loop),
        "video": read_video(path) if path.is_file() else None,
        "label": f"The controller on {task}",
    }


def _ticks(value: Number | None) -> str:
    return f"{number(value)} tick{'' if value == 1 else 's'}"


def _charts(loop: Record) -> list[Chart]:
    plans = loop["plans_timeline"]
    if not plans:
        return []
    cost = loop["plan_ms"]
    spread = f"{len(plans)} plans by latency: median {number(cost['p50'])} ms, 95th percentile {number(cost['p95'])} ms"
    delays = Counter(item["delay"] for item in plans)
    late = ", ".join(f"{n} came after {count(delay, 'tick')}" for delay, n in sorted(delays.items()))
    outcomes = sorted({item["outcome"] for item in plans}, reverse=True)
    series = [
        Series(name, [(item["tick"] / loop["rate"], item["ms"]) for item in plans if item["outcome"] == name], "points")
        for name in outcomes
    ]
    when = "Latency of each plan by the time of its observation"
    return [
        Chart("Plans by latency", charts.histogram([item["ms"] for item in plans], spread, x="ms")),
        Chart("Plans by delay", charts.bars(delays, f"Plans by delay: {late}", x="ticks after the observation")),
        Chart("Latency of each plan, ms", charts.lines(series, when, x="seconds", zero=True), tuple(outcomes)),
    ]
