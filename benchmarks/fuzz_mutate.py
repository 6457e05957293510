"""How `benchmarks.fuzz` changes JSON: its values and keys, where flipped bytes would mostly make something that is no JSON."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

ODD: tuple[Any, ...] = (0, 1, -1, 2**31, 2**63, 10**30, 1e308, -0.0, float("nan"), float("inf"), True, None, "", "a" * 300)
ODD += ([], {}, [[]], [0], [2**40], {"a": {}}, "../../etc/passwd", "/etc/passwd", "\ud800", "float32", "object", "|O", "pickle")
DEEPEST = 20
"""Values below this are left alone."""


def mutated(text: bytes, rng: random.Random) -> bytes | None:
    """JSON with some of its values or keys changed; None where `text` is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    try:
        return json.dumps(_changed(value, rng)).encode()
    except (ValueError, RecursionError):  # it has become too deep
        return b"[" * 5000


def _changed(value: Any, rng: random.Random) -> Any:
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = list(_places(value))
        if not places:
            return rng.choice(ODD)
        holder, key = rng.choice(places)
        change = rng.random()
        if change < 0.15:
            del holder[key]
        elif change < 0.3:
            other, name = rng.choice(places)
            if name in (other if isinstance(other, dict) else range(len(other))):
                holder[key] = json.loads(json.dumps(other[name]))  # a copy: nothing may hold itself
        elif change < 0.4 and isinstance(holder, dict):
            holder[rng.choice(("", "a", "\0", "../x", f"{key}2"))] = holder.pop(key)
        elif change < 0.45:
            holder[key] = _nested(holder[key], rng.choice((3, 50, 900)))
        elif change < 0.65 and type(holder[key]) in (int, float):
            holder[key] = rng.choice((-1, 1, 2, 10, 0.5)) * holder[key] + rng.choice((0, 1, -1, 2**32))
        else:
            holder[key] = copy.deepcopy(rng.choice(ODD))  # which later changes may reach into
    return value


def _nested(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value


def _places(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) below `value`."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys if depth < DEEPEST else ():
        yield value, key
        yield from _places(value[key], depth + 1)
