"""A report's account of single episodes: which actions were carried out, and what their plans cost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..spec import KinoiseError, Spec
from . import charts
from .charts import Lane
from .ledger import LEDGER, Entry, Key, read_ledger
from .sections import Chart, Fact, Record
from .text import count, number, percent, short

SHOWN = 6
"""Episodes whose actions are drawn."""


class Played(NamedTuple):
    """The episodes of a result, with what was carried out in them."""

    spec: Spec
    entries: dict[Key, Entry]


def read_played(evaluation: Path | None, result: Record | None) -> Played | None:
    """What episodes.jsonl beside a result says of its episodes; None where there is none, or another evaluation's.

    Raises KinoiseError when it is damaged, or lacks an episode of the result.
    """
    found = read_ledger(evaluation / LEDGER) if evaluation and result else None
    if found is None or result is None:
        return None
    conditions, entries = found
    mine = (conditions.protocol.hash, conditions.policy["sha256"], json.loads(json.dumps(conditions.decode)))
    if mine != (result["protocol"]["hash"], result["policy"]["sha256"], result["decode"]):
        return None
    said = {(item["task"], item["index"]): item for item in result["episodes"]}
    if missing := [key for key in said if key not in entries]:
        raise KinoiseError(f"{evaluation}: {LEDGER} lacks {count(len(missing), 'episode')} of result.json. Evaluate again.")
    if any((item["success"], item["steps"]) != _ended(entries[key]) for key, item in said.items()):
        return None
    return Played(conditions.spec, {key: entries[key] for key in said})


def _ended(entry: Entry) -> tuple[bool, int]:
    return entry.outcome.success, entry.outcome.steps


def costs(result: Record | None, played: Played | None) -> dict[str, Any] | None:
    """What plans cost: tiles, a table by task where single episodes are known, and how many needed how many evaluations."""
    if not result:
        return None
    cost = result["decode_cost"]
    batched, alone, batch = cost["plan_ms"], cost["plan_ms_batch1"], cost["plan_batch"]["mean"]
    tiles = [Fact("Network evaluations a plan", number(cost["nfe_per_plan"]), ())]
    tiles.append(Fact("For one observation", f"{number(alone['p50'])} ms", (f"95th percentile {number(alone['p95'])} ms",)))
    if batched["p50"] is not None and batch:
        each = f"{number(batched['p50'] / batch)} ms for each"
        tiles.append(
            Fact(f"For {number(batch)} at once", f"{number(batched['p50'])} ms", (each, "while simulators run beside it"))
        )
    if cost.get("cold_share") is not None:
        tiles.append(Fact("Warm starts refused", f"{percent(cost['cold_share'])} %", ("these replans began from noise",)))
    if played is None:
        return {"tiles": tiles, "rows": [], "charts": []}
    counts: Counter[float] = Counter(nfe for entry in played.entries.values() for nfe in entry.carried.nfe)
    drawn = []
    if len(counts) > 1:
        label = f"Plans by network evaluations: {', '.join(f'{n} with {nfe}' for nfe, n in sorted(counts.items()))}"
        drawn.append(Chart("Plans by network evaluations", charts.bars(counts, label, x="network evaluations")))
    tasks = dict.fromkeys(key[0] for key in played.entries)
    groups = {short(task): [item for key, item in played.entries.items() if key[0] == task] for task in tasks}
    groups["all"] = list(played.entries.values())
    warm = result["decode"].get("warm", 1.0) < 1
    return {"tiles": tiles, "rows": [_row(name, group, warm) for name, group in groups.items()], "charts": drawn}


def traces(played: Played | None, result: Record | None) -> list[Chart]:
    """The actions of a few episodes, those with a video first, failures and successes by turns."""
    if played is None or result is None:
        return []
    ordered = sorted(result["episodes"], key=lambda item: ("video" not in item, item["index"]))
    lost = [item for item in ordered if not item["success"] and item["steps"]]
    won = [item for item in ordered if item["success"]]
    turns = [item for pair in zip(lost[:SHOWN], won[:SHOWN], strict=False) for item in pair]
    turns += lost[len(won) :] + won[len(lost) :]
    return [_trace(item, played) for item in turns[:SHOWN]]


def _trace(episode: Mapping[str, Any], played: Played) -> Chart:
    carried, action = played.entries[episode["task"], episode["index"]].carried, played.spec.action
    steps = carried.actions[: episode["steps"]]
    lows = action.low if action.low is not None else steps.min(axis=0).tolist()
    highs = action.high if action.high is not None else steps.max(axis=0).tolist()
    names = action.names or tuple(str(index) for index in range(steps.shape[1]))
    rows = [
        Lane(name, np.round(steps[:, index], 4).tolist(), low, high if high > low else low + 1.0)
        for index, (name, low, high) in enumerate(zip(names, lows, highs, strict=True))
    ]
    ended = "succeeded" if episode["success"] else "error" if episode["error"] else "failed"
    name = f"{short(episode['task'])}, episode {episode['index']}, {ended}"
    label = f"Actions of {name}: {count(len(steps), 'step')}, {count(len(carried.nfe), 'plan')}"
    return Chart(name, charts.lanes(rows, label, x="steps", marks=carried.joins))


def _row(name: str, entries: Sequence[Entry], warm: bool) -> dict[str, str]:
    """A line of the table; `warm`: whether replans were to begin from the plan before."""
    nfe = [item for entry in entries for item in entry.carried.nfe]
    replans = sum(max(len(entry.carried.nfe) - 1, 0) for entry in entries)
    cold = sum(sum(entry.carried.cold) for entry in entries)
    return {
        "name": name,
        "plans": str(len(nfe)),
        "each": number(len(nfe) / len(entries)),
        "mean": number(sum(nfe) / len(nfe)) if nfe else number(None),
        "range": f"{min(nfe)} to {max(nfe)}" if nfe and min(nfe) < max(nfe) else "",
        "total": number(sum(nfe) / len(entries)),
        "warm": f"{replans - cold} of {replans}" if warm else number(None),
    }
