"""An evaluation for the viewer: success over the episodes, and of some of them what was carried out and filmed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...spec import KinoiseError, Spec
from ..ledger import LEDGER, Entry
from ..plans import read_played
from ..sources import RESULT, read_record
from ..text import number, percent, short
from .recorder import Recorder
from .trace import names_of, table

RESULTS = "result.json"


def record_result(directory: Path, recorder: Recorder, most: int) -> None:
    """Each episode begins at 0 seconds.

    Args:
        directory: what `kinoise eval` wrote.
        most: episodes of each task whose actions are shown, the filmed ones first, then by index.

    Raises:
        KinoiseError: a file is missing, broken, or of another evaluation.
    """
    result = read_record(directory / RESULTS, RESULT, "eval")
    played = read_played(directory, result)
    if played is None:
        raise KinoiseError(f"{directory} has no {LEDGER} that belongs to its {RESULTS}: evaluate again to see the actions")
    plots = []
    for task in result["tasks"]:
        episodes = [item for item in result["episodes"] if item["task"] == task]
        _overview(recorder, task, episodes)
        plots.append(f"success/{_word(task)}")
        for item in sorted(episodes, key=lambda item: ("video" not in item, item["index"]))[:most]:
            _episode(recorder, directory, played.spec, item, played.entries[task, item["index"]])
    recorder.page("summary", _summary(directory, result))
    first = next(iter(_shown(result, most)), None)
    filmed = next((item for item in _shown(result, most) if "video" in item), None)
    place = [] if first is None else [f"{_place(first)}/action", f"{_place(first)}/join"]
    recorder.arrange(["summary"], [f"{_place(filmed)}/film"] if filmed else [], [*place, *plots], ["log"])


def _shown(result: Mapping[str, Any], most: int) -> list[dict[str, Any]]:
    task = next(iter(result["tasks"]))
    episodes = [item for item in result["episodes"] if item["task"] == task]
    return sorted(episodes, key=lambda item: ("video" not in item, item["index"]))[:most]


def _overview(recorder: Recorder, task: str, episodes: Sequence[Mapping[str, Any]]) -> None:
    """A task's episodes by their index."""
    ordered = sorted(episodes, key=lambda item: item["index"])
    at = np.array([item["index"] for item in ordered], float)
    for name in ("success", "steps", "return"):
        values = np.array([[item[name]] for item in ordered], float)
        recorder.series(f"{name}/{_word(task)}", (f"{name} of {short(task)}",), at, values, "episode")


def _episode(recorder: Recorder, directory: Path, spec: Spec, item: Mapping[str, Any], entry: Entry) -> None:
    place, carried = _place(item), entry.carried
    actions = carried.actions[: item["steps"]].astype(np.float64)
    recorder.series(f"{place}/action", names_of(spec.action), np.arange(len(actions)) / spec.rate, actions)
    joins = np.array([step for step in carried.joins if 0 < step < len(actions)], int)
    if len(joins):
        jumps = np.abs(actions[joins] - actions[joins - 1]).max(axis=1, keepdims=True)
        recorder.series(f"{place}/join", ("largest change where a plan takes over",), joins / spec.rate, jumps)
    for name, values in (("nfe", carried.nfe), ("delay", carried.delays), ("cold", carried.cold)):
        column = np.array(values, float)[:, None]
        recorder.series(f"{place}/{name}", (f"{name} of each plan",), np.arange(len(column), dtype=float), column, "plan")
    if "video" in item:
        film = directory / item["video"]
        if not film.is_file():
            raise KinoiseError(f"{film} does not exist. Run the evaluation again with video=1.")
        recorder.film(f"{place}/film", film)
    ended = "succeeded" if item["success"] else "failed"
    text = f"{short(item['task'])} {item['index']} {ended} after {item['steps']} steps, return {item['return']:g}"
    text = f"{text}: {item['error']}" if item["error"] else text
    recorder.note("log", item["steps"] / spec.rate, text, "ERROR" if item["error"] else "INFO" if item["success"] else "WARN")


def _summary(directory: Path, result: Mapping[str, Any]) -> str:
    def told(item: Mapping[str, Any]) -> str:
        span = f"{percent(item['low'])} to {percent(item['high'])}"
        return f"{percent(item['rate'])} % ({span}) of {item['n']}" + (f", {item['errors']} errors" if item["errors"] else "")

    cost, protocol = result["decode_cost"], result["protocol"]
    alone = cost["plan_ms_batch1"]
    rows = {
        "policy": f"{result['policy']['name']}, {result['policy']['checkpoint']}",
        "protocol": f"{protocol['name']}, seed {protocol['seed']}, horizon {json.dumps(protocol['horizon'])}",
        "success": told(result["success"]),
        **{task: told(item) for task, item in result["tasks"].items()},
        "network evaluations a plan": number(cost["nfe_per_plan"]),
        "plan for one observation, ms": f"median {number(alone['p50'])}, p95 {number(alone['p95'])}",
        "carried out": f"{result['decode']['execute']} of {result['decode']['chunk']} actions",
    }
    if "latency" in result:
        delays = result["latency"]["delays"]
        rows["plans late, steps"] = f"median {number(delays['p50'])}, most {number(delays['max'])}"
    return table(f"{directory.name}", rows)


def _place(item: Mapping[str, Any]) -> str:
    return f"episodes/{_word(item['task'])}/{item['index']}"


def _word(task: str) -> str:
    return task.replace("/", "-")
