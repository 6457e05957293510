"""Rows of a table that play the same episodes: what each found, paired with another, kept as soon as it is played."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kinoise.files import read_json, write_json
from kinoise.provenance import commit
from kinoise.spec import KinoiseError

from .record import RESULTS

if TYPE_CHECKING:  # worker processes import the benchmarks too: they are not to load torch
    from kinoise.policies import Policy
    from kinoise.policies.decode import DecodeConfig

ALPHA = 0.05


class Row(NamedTuple):
    """One way to make plans. `identity` says which weights make them."""

    name: str
    policy: Policy
    decode: DecodeConfig
    execute: int
    checkpoint: Path
    identity: dict[str, Any]
    changes: dict[str, Any] | None

    def take(self) -> Policy:
        """The policy, which several rows may share, set to decode as this one does."""
        self.policy.config.decode = self.decode
        return self.policy


class Partial:
    """What was played before the command was stopped, by a hash of everything that decides it."""

    def __init__(self, name: str) -> None:
        self.path = RESULTS / f".{name}.partial.json"
        self.used: set[str] = set()
        self._parts: dict[str, Any] = read_json(self.path) if self.path.exists() else {}

    def get(self, **about: Any) -> tuple[str, Any]:
        """The key, and what is kept under it; None if nothing."""
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        self.used.add(key)
        return key, self._parts.get(key)

    def keep(self, key: str, value: Any) -> None:
        self._parts[key] = value
        write_json(self.path, self._parts)

    def done(self) -> None:
        """Forgets what this command used; another checkpoint's or protocol's parts stay for theirs."""
        self._parts = {key: value for key, value in self._parts.items() if key not in self.used}
        if self._parts:
            write_json(self.path, self._parts)
        else:
            self.path.unlink(missing_ok=True)


def play(
    row: Row, partial: Partial, *, env: str, episodes: int, seeds: Sequence[int], horizon: int | None
) -> list[dict[str, Any]]:
    """What each seed's evaluation found, played now or before.

    Args:
        episodes: per task and seed.
    """
    from kinoise.eval.evaluate import evaluate

    found = []
    for seed in seeds:
        protocol = {"env": env, "episodes": episodes, "seed": seed, "horizon": horizon}
        key, part = partial.get(sha256=row.identity["sha256"], decode=asdict(row.decode), execute=row.execute, **protocol)
        if part is None:
            checkpoint = row.checkpoint
            result = evaluate(row.take(), **protocol, execute=row.execute, checkpoint=checkpoint)
            cost = result["decode_cost"]
            part = {
                "protocol": result["protocol"],
                "success": [item["success"] for item in result["episodes"]],
                "errors": result["success"]["errors"],
                "nfe": cost["nfe_per_plan"],
                "planned": round(cost["plans"] * cost["plan_batch"]["mean"]) if cost["plans"] else 0,
                "jump": result["motion"]["joins"]["p99"],
                "acceleration": result["motion"]["acceleration"]["rms"],
                "wall_s": result["wall_s"],
                "commit": commit(),
            }
            partial.keep(key, part)
        found.append(part)
        print(f"{row.name:>20} seed {seed}: {sum(part['success'])} of {len(part['success'])}", flush=True)
    return found


def compare(parts: list[dict[str, Any]], reference: list[dict[str, Any]]) -> dict[str, Any]:
    """The difference with its interval, and McNemar's test. Raises KinoiseError when other episodes were played."""
    from kinoise.eval.metrics import compare_paired

    if [item["protocol"] for item in parts] != [item["protocol"] for item in reference]:
        raise KinoiseError("the rows played other episodes than their reference: nothing can be said of pairs")
    own, base = ([value for item in played for value in item["success"]] for played in (parts, reference))
    found = compare_paired(own, base)
    return {
        "difference": found.difference._asdict(),
        "only_this": found.test.first,
        "only_reference": found.test.second,
        "p": found.test.p,
    }


def figures(row: Row, parts: list[dict[str, Any]], reference: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of the result, but for its latency, compared with its reference."""
    from kinoise.eval.metrics import wilson

    own = [value for item in parts for value in item["success"]]
    planned = sum(item["planned"] for item in parts)
    return {
        "changes": row.changes,
        "success": wilson(sum(own), len(own))._asdict(),
        "n": len(own),
        "errors": sum(item["errors"] for item in parts),
        "by_seed": [sum(item["success"]) / len(item["success"]) for item in parts],
        "outcomes": ["".join("01"[value] for value in item["success"]) for item in parts],
        **compare(parts, reference),
        "nfe_per_plan": sum(item["nfe"] * item["planned"] for item in parts) / planned if planned else None,
        "jump": max((item["jump"] for item in parts if item["jump"] is not None), default=None),
        "acceleration": sum(item["acceleration"] for item in parts) / len(parts),
        "rollout_s": sum(item["wall_s"] for item in parts),
        "commits": sorted({str(item["commit"]) for item in parts}),
    }


def correct(table: dict[str, dict[str, Any]], reference: str) -> None:
    """Adds Holm's p-values over all rows but the reference, and what differs by each."""
    from kinoise.eval.metrics import holm

    names = [name for name in table if name != reference]
    adjusted = dict(zip(names, holm([table[name]["p"] for name in names]), strict=True))
    for name, item in table.items():
        item["p_holm"] = adjusted.get(name, 1.0)
        item["differs"], item["differs_holm"] = item["p"] < ALPHA, item["p_holm"] < ALPHA
