"""episodes.jsonl: every finished episode of an evaluation, a line each, below a line with all that decides them.

A line is on the disk before the next episode counts, so a killed evaluation loses only what was under way.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import __version__
from ..config import flat
from ..files import disk_errors, write_text
from ..provenance import commit
from ..spec import KinoiseError, Spec
from .latency import Latency
from .protocol import EvaluationProtocol
from .slot import Job, Outcome
from .timeline import Carried

LEDGER = "episodes.jsonl"
Key = tuple[str, int]
"""An episode: task and index."""


class Entry(NamedTuple):
    """A finished episode, and what its plans came to."""

    outcome: Outcome
    carried: Carried

    @property
    def key(self) -> Key:
        return self.outcome.job.task, self.outcome.job.index


@dataclass(frozen=True)
class Conditions:
    """All that decides what becomes of the episodes of an evaluation.

    Args:
        protocol: which episodes there are.
        policy: see `policies.checkpoint.identity`.
        decode: what `result.json` says under this key.
        latency: what delays are drawn from.
        spec: the policy's.
        history: steps that the policy observes.
        shard: which part of the episodes, as it was asked for; None: all.
        simulators: packages' versions in simulators that are in processes of their own, by family (`envs.family`).
        code: kinoise's version and commit.
    """

    protocol: EvaluationProtocol
    policy: dict[str, Any]
    decode: dict[str, Any]
    latency: Latency
    spec: Spec
    history: int
    shard: str | None = None
    simulators: dict[str, dict[str, str]] = field(default_factory=dict)
    code: dict[str, str | None] = field(default_factory=lambda: {"kinoise": __version__, "commit": commit()})

    def jobs(self) -> dict[Key, Job]:
        """All episodes of the protocol, whatever the shard."""
        return {(job.task, job.index): job for job in self.protocol.jobs(self.history, tuple(self.spec.observations))}

    def differences(self, other: Conditions, *besides: str) -> list[str]:
        """Each point at which `other` differs, but for the checkpoint's place and `besides`; empty when episodes compare."""
        mine, theirs = (dict(flat(json.loads(json.dumps(item.to_json())))) for item in (self, other))
        names = [name for name in {**mine, **theirs} if name not in ("policy.checkpoint", "protocol.hash", *besides)]
        return [
            f"{name}: {_short(mine.get(name))} against {_short(theirs.get(name))}"
            for name in names
            if mine.get(name) != theirs.get(name)
        ]

    def to_json(self) -> dict[str, Any]:
        plain = {item.name: getattr(self, item.name) for item in fields(self)}
        own = {"protocol": self.protocol.to_json(), "spec": self.spec.to_json()}
        return {**plain, **own, "latency": asdict(self.latency)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Conditions:
        """Raises KeyError, TypeError or KinoiseError when `value` is something else."""
        own = {
            "protocol": EvaluationProtocol.from_json(value["protocol"]),
            "latency": Latency(**{**value["latency"], "values": tuple(value["latency"]["values"])}),
            "spec": Spec.from_json(value["spec"]),
        }
        return cls(**{**value, **own})


class Ledger:
    """Writes episodes.jsonl.

    An older file is replaced when the first episode has ended, not before.

    Args:
        path: None: nothing is written.
        conditions: of every episode that comes.
        kept: episodes of an earlier run, which are not played again.
    """

    def __init__(self, path: Path | None, conditions: Conditions, kept: Sequence[Entry] = ()) -> None:
        self._path, self._conditions, self._kept = path, conditions, kept
        self._begun = False

    def add(self, entry: Entry) -> None:
        """Returns once the episode is on the disk. Raises KinoiseError when it can't be."""
        if self._path is None:
            return
        if not self._begun:
            write_ledger(self._path, self._conditions, [*self._kept, entry])
            self._begun = True
            return
        with disk_errors(self._path), self._path.open("a") as file:
            file.write(_line(_to_json(entry)))
            file.flush()
            os.fsync(file.fileno())


def write_ledger(path: Path, conditions: Conditions, entries: Iterable[Entry]) -> None:
    """In place of what is there. Raises KinoiseError when it can't be written."""
    write_text(path, "".join([_line(conditions.to_json()), *(_line(_to_json(item)) for item in entries)]))


def read_ledger(path: Path) -> tuple[Conditions, dict[Key, Entry]] | None:
    """What an evaluation has written; None when there is no such file, for none of its episodes had ended.

    A last line without its newline was cut short by a kill: it is left out. Raises KinoiseError for any other damage.
    """
    if not path.is_file():
        return None
    *lines, _torn = path.read_bytes().split(b"\n")
    number = 1
    try:
        conditions = Conditions.from_json(json.loads(lines[0]))
        jobs, entries = conditions.jobs(), {}
        for line in lines[1:]:
            number += 1
            entry = _from_json(json.loads(line), jobs, conditions.spec.action_dim)
            entries[entry.key] = entry
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, KinoiseError) as error:
        raise KinoiseError(
            f"{path}, line {number} is not what kinoise eval writes ({error}): edited by hand, or by another version? "
            f"Evaluate again without resume=."
        ) from error
    return conditions, entries


def _to_json(entry: Entry) -> dict[str, Any]:
    outcome, carried = entry
    actions = base64.b64encode(carried.actions.astype("<f4").tobytes()).decode()
    plain = {item.name: getattr(outcome, item.name) for item in fields(outcome) if item.name not in ("job", "arrays")}
    return {
        "task": outcome.job.task,
        "index": outcome.job.index,
        **plain,
        "carried": {**carried._asdict(), "actions": actions},
    }


def _from_json(value: dict[str, Any], jobs: Mapping[Key, Job], size: int) -> Entry:
    job = jobs[value.pop("task"), value.pop("index")]
    carried = dict(_tupled(value.pop("carried")))
    actions = np.frombuffer(base64.b64decode(carried.pop("actions"), validate=True), "<f4").reshape(-1, size)
    return Entry(Outcome(job, **value), Carried(actions.astype(np.float32), **carried))


def _tupled(value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        yield key, tuple(item) if isinstance(item, list) else item


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, allow_nan=False) + "\n"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
