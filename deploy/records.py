"""Readings, questions and answers as messages: what a trace holds, and what a planning process answers.

A record is a map of numbers, texts, lists and arrays that `wire.pack` takes; no object is pickled. What is read
back equals what was written, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from ..spec import Plan
from ..wire import Limits, WireError
from .inference import Reply, Request
from .robot import Reading

# A history of several large pictures is one message; a spec of many named dimensions is a long one.
RECORDS = Limits(message=1 << 28, array=1 << 26, items=1 << 18, depth=12, text=1 << 16)

NUMBER = (int, float)
PLAN: dict[str, tuple[type, ...]] = {
    "actions": (np.ndarray,),
    "dt": NUMBER,
    "nfe": (int,),
    "t0": NUMBER,
    "obs_time": NUMBER,
    "nfe_rows": (list,),
    "confidence": (np.ndarray, type(None)),
    "surprise": (list,),
    "cold": (list,),
    "timing": (dict,),
}
READING: dict[str, tuple[type, ...]] = {
    "values": (dict,),
    "instruction": (str,),
    "episode": (int,),
    "time": (*NUMBER, type(None)),
}
REPLY: dict[str, tuple[type, ...]] = {"plan": (dict, type(None)), "error": (str,), "seconds": NUMBER}


def checked(value: Any, kinds: Mapping[str, tuple[type, ...]], label: str) -> dict[str, Any]:
    """`value` as a map with exactly these keys and types. Raises WireError when it is none."""
    if not isinstance(value, dict):
        raise WireError(f"a {label}: expected a map, came a {type(value).__name__}")
    if value.keys() != kinds.keys():
        raise WireError(f"a {label}: expected the keys {sorted(kinds)}, came {sorted(map(str, value))[:20]}")
    for key, kind in kinds.items():
        if not isinstance(value[key], kind):
            raise WireError(f"a {label}'s {key}: expected {kind[0].__name__}, came {type(value[key]).__name__}")
    return value


def reading_record(reading: Reading) -> dict[str, Any]:
    return reading._asdict()


def reading_of(record: Any) -> Reading:
    """Raises WireError for a record of something else."""
    own = checked(record, READING, "reading")
    if not all(isinstance(item, np.ndarray) for item in own["values"].values()):
        raise WireError("a reading's values: expected arrays")
    return Reading(**own)


def plan_record(plan: Plan) -> dict[str, Any]:
    record: dict[str, Any] = {item.name: getattr(plan, item.name) for item in fields(Plan)}
    for key in ("actions", "confidence"):
        if record[key] is not None:
            record[key] = record[key].detach().cpu().numpy()
    return {key: list(item) if isinstance(item, tuple) else item for key, item in record.items()}


def plan_of(record: Any) -> Plan:
    """Raises WireError for a record of something else."""
    own = dict(checked(record, PLAN, "plan"))
    for key in ("actions", "confidence"):
        if own[key] is not None:  # what was unpacked can't be written to, and torch wants to
            own[key] = torch.from_numpy(own[key].copy())
    return Plan(**{**own, **{key: tuple(own[key]) for key in ("nfe_rows", "surprise", "cold")}})


def request_record(request: Request, readings: list[Any]) -> dict[str, Any]:
    """`request`, with `readings` in the place of its own: their records, or what names them."""
    record: dict[str, Any] = {item.name: getattr(request, item.name) for item in fields(Request)}
    previous = None if request.previous is None else plan_record(request.previous)
    return {**record, "readings": readings, "previous": previous}


def reply_record(reply: Reply) -> dict[str, Any]:
    """Without the request, which whoever reads it has."""
    return {"plan": None if reply.plan is None else plan_record(reply.plan), "error": reply.error, "seconds": reply.seconds}


def reply_of(record: Any, request: Request) -> Reply:
    """Raises WireError for a record of something else."""
    own = checked(record, REPLY, "reply")
    return Reply(request, None if own["plan"] is None else plan_of(own["plan"]), own["error"], own["seconds"])
