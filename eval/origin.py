"""Where a report's figures come from, and the commands that make them again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any

from ..policies.decode import DecodeChanges
from .presets import as_settings
from .sections import Record
from .sources import Parts

EVALUATION = {"env": "metaworld/mt10", "episodes": 10, "seed": 1000}
CONTROL = {"env": "metaworld/push", "rate": 20, "seconds": 20}


def provenance(parts: Parts) -> dict[str, Any]:
    """What all parts that know it agree on, and a table of the rest, with a column for each part."""
    named = {"Training": parts.train, "Evaluation": parts.result, "Controller": parts.loop}
    columns = {name: _origin(record) for name, record in named.items() if record}
    shared, rows = [], []
    for key in dict.fromkeys(chain.from_iterable(columns.values())):
        cells = [column.get(key) for column in columns.values()]
        values = {cell for cell in cells if cell is not None}
        if len(values) == 1:
            shared.append((key, *values))
        else:
            rows.append({"name": key, "cells": cells})
    return {"columns": list(columns), "shared": shared, "rows": rows}


def commands(parts: Parts, policy: str, out: Path) -> dict[str, str]:
    """What makes each part: with the settings on record where it was made, else with usual ones.

    Args:
        policy: its name.
        out: where the page lies.

    Returns:
        train, eval, video (eval with films of each task), control, report, and where an episode failed, again: which
        replays the first of them.
    """
    weights, played = _evaluation(parts)
    into, driven = parts.evaluation or parts.run / "eval", parts.control or parts.run / "control"
    made = {
        "train": _command("train", None, {"policy": policy, **_training(parts.train), "out": parts.run}),
        "eval": _command("eval", weights, {**played, "out": into}),
        "video": _command("eval", weights, {**played, "video": 1, "out": into}),
        "control": _command("control", parts.run, CONTROL | {"out": driven}),
        "report": _command("report", parts.run, {"eval": parts.evaluation, "control": parts.control, "out": out}),
    }
    if parts.loop:
        settings = {key: parts.loop[key] for key in ("env", "seed", "rate", "seconds")}
        settings |= {key: value for key, value in parts.loop.get("controller", {}).items() if key in ("pin", "servo", "budget")}
        settings |= (
            {**_decoding(parts.loop["decode"]), "execute": parts.loop["decode"]["execute"]} if "decode" in parts.loop else {}
        )
        made["control"] = _command("control", parts.loop["policy"]["checkpoint"] or parts.run, {**settings, "out": driven})
    lost = next((item for item in parts.result["episodes"] if not item["success"]), None) if parts.result else None
    if lost:
        upto = lost["index"] + 1
        made["again"] = _command(
            "eval", weights, {**played, "env": lost["task"], "episodes": upto, "video": 1, "out": "replay"}
        )
    return made


def _evaluation(parts: Parts) -> tuple[Path | str, dict[str, Any]]:
    """The weights that were evaluated, or are to be, and the settings."""
    if not parts.result:
        return parts.run, EVALUATION
    protocol, decode, used = parts.result["protocol"], parts.result["decode"], parts.result["policy"]
    played = as_settings(protocol)
    played |= _decoding(decode)
    played |= {key: decode[key] for key in ("latency", "ensemble", "pin") if decode.get(key) not in (None, "0", False)}
    if used["sha256"] == parts.last != parts.averaged:
        played["ema"] = "false"
    return used["checkpoint"] or parts.run, {**played, "execute": decode["execute"]}


def _decoding(decode: Record) -> dict[str, Any]:
    """A record's decode settings as a command takes them; what the command line has no word for stays as it is."""
    known = {item.name for item in fields(DecodeChanges)}
    return {f"decode.{key}": value for key, value in decode.items() if key in known}


def _training(train: Record | None) -> dict[str, Any]:
    config = train["config"] if train else {}
    learning = config.get("train", {})
    learnt = {f"train.{key}": learning.get(key) for key in ("steps", "batch_size", "lr")}
    observed = config.get("policy", {}).get("observations")
    chosen = {} if observed is None else {"policy.observations": f"[{','.join(observed)}]"}
    return {"data": config.get("data", "DATA"), "seed": config.get("seed"), **chosen, **learnt}


def _origin(record: Record) -> dict[str, str]:
    weights = {"weights (sha256)": record["policy"]["sha256"]} if record.get("policy", {}).get("sha256") else {}
    machine = {key.replace("_", " "): "none" if value is None else str(value) for key, value in record["machine"].items()}
    return {"commit": record.get("commit") or "not a git checkout", **weights, **record["versions"], **machine}


def _command(name: str, first: Path | str | None, settings: Mapping[str, Any]) -> str:
    """A command line; settings that are None are left out."""
    given = [
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={str(value).lower() if isinstance(value, bool) else value}"
        for key, value in settings.items()
        if value is not None
    ]
    return shlex.join(["kinoise", name, *([str(first)] if first is not None else []), *given])
