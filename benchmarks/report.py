"""The figures of `benchmarks.controller`, and the tables that it prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from kinoise.deploy.latency import percentiles
from rich.console import Console
from rich.table import Table

from .faults import LATCHING
from .segments import Punctuality, Segment
from .verdicts import WITHIN, beyond, judge_commands, judge_stops, recoveries

SIGNIFICANT = 0.05
BESIDE = {"planning": False, "starting": True}
"""Kinds of time: whether a planning process is starting."""


def figures(segments: Sequence[Segment], bare: Sequence[Punctuality]) -> dict[str, Any]:
    """All of them, with the targets and whether each was met."""
    judged, violations, faults = [], Counter[str](), []
    for segment in segments:
        found, outcome = judge_commands(segment.run)
        violations.update(found)
        faults += recoveries(segment.run, outcome)
        judged.append(
            {
                "large": segment.large,
                "hold": segment.run.config.fallback.hold,
                "faults": [str(fault) for fault in segment.run.faults],
                **_punctual([segment.time]),
                "carried_out": sum(plan is not None for _, plan in outcome),
                "held": sum(plan is None for _, plan in outcome),
                "violations": found,
                "stops": judge_stops(segment.run),
                "resets": len(segment.run.resets),
                "traffic": segment.traffic,
                "interventions": segment.interventions,
                "rungs": dict(segment.record.rungs),
                "missed_by_its_own_record": segment.record.missed,
            }
        )
    times = [item.time for item in segments]
    loop, alone = _punctual(times), _punctual(bare)
    compared = {name: beyond(_counts(times, starting), _counts(bare, starting)) for name, starting in BESIDE.items()}
    least = min(item["p"] for item in compared.values())
    kinds = Counter(fault.kind for segment in segments for fault in segment.run.faults)
    by_kind = {kind: _recovery([item for item in faults if item["kind"] == kind], due) for kind, due in kinds.items()}
    stops = [item["stops"] for item in judged]
    return {
        "targets": {
            "punctual": {
                "want": f"delays no more frequent than bare: p >= {SIGNIFICANT}",
                "found": least,
                "pass": least >= SIGNIFICANT,
            },
            "limits": {"want": "0 violations", "found": violations.total(), "pass": violations.total() == 0},
            "stops": {
                "want": f"all that are due, no other, within {WITHIN} ticks",
                "found": max((count for item in stops for count in item["ticks"]), default=None),
                "pass": all(item["well"] and not item["commands_while_stopped"] for item in stops),
            },
            "recovery": {
                "want": f"all; without a reset but after {', '.join(LATCHING)}",
                "found": sum(item["recovered"] for item in by_kind.values()),
                "pass": all(
                    item["recovered"] == item["count"] == item["scheduled"] and (kind in LATCHING or not item["after_reset"])
                    for kind, item in by_kind.items()
                ),
            },
        },
        "controller": loop,
        "bare": alone,
        "beyond": compared,
        "violations": dict(violations),
        "stops": {name: sum(item[name] for item in stops) for name in ("due", "came", "commands_while_stopped")},
        "recovery": by_kind,
        "plans": sum(item.traffic["plans"] for item in segments),
        "segments": judged,
        "bare_segments": [_punctual([item]) for item in bare],
    }


def _counts(parts: Sequence[Punctuality], starting: bool) -> tuple[int, int]:
    """Delays and deadlines of one loop in one kind of time."""
    counts = [item.counts(starting) for item in parts]
    return sum(delays for delays, _ in counts), sum(deadlines for _, deadlines in counts)


def _punctual(parts: Sequence[Punctuality]) -> dict[str, Any]:
    """One loop's punctuality over all of its parts; milliseconds."""
    deadlines, missed = sum(item.deadlines for item in parts), sum(item.missed for item in parts)
    return {
        "deadlines": deadlines,
        "missed": missed,
        "missed_per_1000": round(1e3 * missed / deadlines, 4),
        "delays": sum(len(item.delays) for item in parts),
        "delays_s_ms": [(round(at, 2), round(1e3 * late, 1)) for item in parts for at, late in item.delays],
        "late_ms": _rounded(percentiles([value for item in parts for value in item.late], 1e3)),
        "work_ms": _rounded(percentiles([value for item in parts for value in item.work], 1e3)),
    }


def _recovery(faults: Sequence[dict[str, Any]], scheduled: int) -> dict[str, Any]:
    """What became of all faults of one kind: from its beginning until a plan that saw what was after it was carried out."""
    return {
        "scheduled": scheduled,
        "count": len(faults),
        "recovered": sum(item["seconds"] is not None for item in faults),
        "after_reset": sum(item["resets"] > 0 for item in faults),
        "seconds": _rounded(percentiles([item["seconds"] for item in faults if item["seconds"] is not None])),
        "held_ticks": _rounded(percentiles([item["held_ticks"] for item in faults])),
    }


def _rounded(values: dict[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 3) for name, value in values.items()}


def show(found: dict[str, Any]) -> None:
    """Prints the targets and what they are judged by."""
    console = Console()
    table = Table("", "deadlines", "missed", "delays", "late ms: p50, p99, max", "work ms: same")
    for name in ("controller", "bare"):
        item = found[name]
        times = [", ".join(f"{item[key][rank]:.2f}" for rank in ("p50", "p99", "max")) for key in ("late_ms", "work_ms")]
        table.add_row(name, str(item["deadlines"]), str(item["missed"]), str(item["delays"]), *times)
    console.print(table)
    for name, item in found["beyond"].items():
        counts = ", ".join(f"{loop} {late} of {of}" for loop, (late, of) in item["delays"].items())
        console.print(f"delays while {name}: {counts} deadlines; p = {item['p']}")
    table = Table("fault", "count", "recovered", "by reset", "seconds: p50, max", "held ticks: same")
    for kind, item in found["recovery"].items():
        seconds = ", ".join(f"{item['seconds'][rank]:.2f}" for rank in ("p50", "max")) if item["recovered"] else "-"
        held = ", ".join(f"{item['held_ticks'][rank]:.0f}" for rank in ("p50", "max")) if item["count"] else "-"
        table.add_row(
            kind, f"{item['count']} of {item['scheduled']}", str(item["recovered"]), str(item["after_reset"]), seconds, held
        )
    console.print(table)
    table = Table("target", "wanted", "found", "")
    for name, item in found["targets"].items():
        table.add_row(name, item["want"], str(item["found"]), "pass" if item["pass"] else "FAIL")
    console.print(table)
    for name in ("stops", "violations"):
        console.print(f"{name}: {', '.join(f'{value} {key}' for key, value in found[name].items())}")
