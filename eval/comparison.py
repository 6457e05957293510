"""Two evaluations of the same episodes, paired: who succeeds more often, and what its plans cost.

McNemar's exact test (McNemar 1947, Psychometrika 12:153), Newcombe's interval of the paired difference (Newcombe 1998,
Statistics in Medicine 17:2635, method 10), Holm's correction over tasks (Holm 1979, Scandinavian Journal of Statistics 6:65).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ..config import flat
from ..provenance import origin
from ..spec import KinoiseError
from .metrics import compare_paired, holm
from .presets import FOLLOWING, as_settings
from .sources import RESULT, Each, read_record

CONFIDENCE = 0.95
METHODS = {
    "success": {
        "name": "Wilson's score interval",
        "source": "Wilson 1927, J. Am. Stat. Assoc. 22:209",
        "confidence": CONFIDENCE,
    },
    "difference": {
        "name": "Newcombe's paired interval (method 10), A minus B",
        "source": "Newcombe 1998, Statistics in Medicine 17:2635",
        "confidence": CONFIDENCE,
    },
    "p": {"name": "McNemar's exact test, two-sided", "source": "McNemar 1947, Psychometrika 12:153"},
    "p_holm": {"name": "Holm's correction over tasks", "source": "Holm 1979, Scandinavian Journal of Statistics 6:65"},
}
SHAPE = {**RESULT, "protocol": {**RESULT["protocol"], "tasks": Each(str)}, "commit": (str, type(None)), "rollout": dict}
SIDE = ("kinoise", "versions", "commit", "machine", "policy", "decode", "decode_cost", "rollout", "env_steps_per_s", "wall_s")
CONDITIONS = ("policy", "decode", "rollout", "versions", "machine")
"""Parts of a result that may differ between two that are compared; where they do, it is said."""


@dataclass(frozen=True)
class Key:
    """What an episode is paired by."""

    task: str
    index: int
    seed: int


@dataclass(frozen=True)
class Evaluation:
    """One of the two.

    Args:
        name: "A" or "B".
        path: of its result.json.
        record: what that holds.
        episodes: of the record.
    """

    name: str
    path: Path
    record: Mapping[str, Any]
    episodes: Mapping[Key, Mapping[str, Any]]

    def outcomes(self, keys: Iterable[Key]) -> list[bool]:
        return [self.episodes[key]["success"] and not self.episodes[key]["error"] for key in keys]

    def errors(self, keys: Iterable[Key]) -> int:
        return sum(bool(self.episodes[key]["error"]) for key in keys)


def compare(a: Path, b: Path) -> dict[str, Any]:
    """What out= holds: both identities, the methods, success overall and by task, cost, and every pair of episodes.

    Args:
        a, b: two files result.json; differences are the first's success minus the second's.

    Raises:
        KinoiseError: a broken file, different protocols, episodes that one of the two lacks or has twice.
    """
    first, second = _read("A", a), _read("B", b)
    _check_protocols(first, second)
    _check_seeds(first, second)
    protocol, keys = first.record["protocol"], list(first.episodes)
    by_task = {task: [key for key in keys if key.task == task] for task in protocol["tasks"]}
    tasks = {task: _figures(first, second, of_it) for task, of_it in by_task.items()}
    for figures, p in zip(tasks.values(), holm([item["p"] for item in tasks.values()]), strict=True):
        figures["p_holm"] = p
    starts = [(first.episodes[key].get("initial"), second.episodes[key].get("initial")) for key in keys]
    return {
        **origin(),
        "protocol": protocol,
        "a": _side(first),
        "b": _side(second),
        "same": a.samefile(b) or first.record == second.record,
        "differences": _differences(first.record, second.record),
        "other_initial_states": sum(one != other for one, other in starts if one is not None and other is not None),
        "methods": METHODS,
        "success": _figures(first, second, keys),
        "tasks": tasks,
        "cost": _cost(first.record["decode_cost"], second.record["decode_cost"]),
        "episodes": [{**asdict(key), "a": _episode(first.episodes[key]), "b": _episode(second.episodes[key])} for key in keys],
    }


def _read(name: str, path: Path) -> Evaluation:
    """Raises KinoiseError for a file that is not what `kinoise eval` writes, or hasn't every episode of its protocol once."""
    record = read_record(path, SHAPE, "eval")
    protocol = record["protocol"]
    keys = [Key(item["task"], item["index"], item["seed"]) for item in record["episodes"]]
    found = Counter((key.task, key.index) for key in keys)
    wanted = {(task, index): 1 for task in protocol["tasks"] for index in range(protocol["episodes"])}
    if not wanted:
        raise KinoiseError(f"{name} ({path}) has a protocol without episodes. It was edited: evaluate {name} again.")
    problems = {
        f"lacks {{}} of its protocol's {len(wanted)} episodes": [place for place in wanted if place not in found],
        "has {} episodes that its protocol has not": [place for place in found if place not in wanted],
        "has {} episodes more than once": [place for place, count in found.items() if count > 1],
    }
    if texts := [f"{text.format(len(places))}: {_names(places)}" for text, places in problems.items() if places]:
        raise KinoiseError(f"{name} ({path}) {'; it '.join(texts)}. {_remedy(name, record)}")
    return Evaluation(name, path, record, dict(zip(keys, record["episodes"], strict=True)))


def _remedy(name: str, record: Mapping[str, Any]) -> str:
    """What to do about a result without all of its episodes."""
    if "shard" in record:
        return f"It is only shard {record['shard']}: put all of them together with kinoise merge."
    if "stopped" in record:
        return "It was stopped early by until=: play the rest with kinoise eval, resume=true and no until=."
    return f"It was cut short or edited: evaluate {name} again."


def _check_protocols(a: Evaluation, b: Evaluation) -> None:
    """Raises KinoiseError with all that differs, and with the command that plays B's policy by A's protocol."""
    one, other = a.record["protocol"], b.record["protocol"]
    differ = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    if not differ:
        return
    texts = []
    for key in [item for item in differ if item != "hash"] or differ:  # which is made of the others
        if key == "tasks" and set(one[key]) != set(other[key]):
            sides = (("A", one, other), ("B", other, one))
            alone = [(name, [item for item in mine[key] if item not in theirs[key]]) for name, mine, theirs in sides]
            texts += [f"tasks only in {name}: {', '.join(items)}" for name, items in alone if items]
        else:
            texts.append(f"{key} {one.get(key, 'absent')} in A, {other.get(key, 'absent')} in B")
    wanted = as_settings(one)
    settings = " ".join(f"{key}={value}" for key, value in wanted.items() if value is not None)
    explained = {*wanted, *FOLLOWING} & {*differ}
    alike = explained and {*differ} <= {*explained, "hash", *(["tasks"] if "env" in explained else [])}
    checkpoint = b.record["policy"]["checkpoint"] or "RUN"
    raise KinoiseError(
        f"A ({a.path}) and B ({b.path}) were not played by the same protocol: {'; '.join(texts)}. They can't be paired, and no "
        f"part of one is compared with the other. Evaluate B as A was, kinoise eval {checkpoint} "
        f"{settings} out=DIR with B's other settings{'' if alike else ', both with the same version of kinoise'}."
    )


def _check_seeds(a: Evaluation, b: Evaluation) -> None:
    """Raises KinoiseError when an episode of A has another seed than that of B with its task and index."""
    if moved := [(key.task, key.index) for key in a.episodes if key not in b.episodes]:
        raise KinoiseError(
            f"A ({a.path}) and B ({b.path}) drew {len(moved)} episodes from different seeds: {_names(moved)}. They began "
            "elsewhere: evaluate both with the same version of kinoise."
        )


def _names(places: Iterable[tuple[str, int]]) -> str:
    """Every (task, index), the indices of a task together: `metaworld/push 0, 4-9; metaworld/reach 1`."""
    texts = []
    for task, of_it in groupby(sorted(places), key=lambda place: place[0]):
        numbered = enumerate(index for _, index in of_it)
        runs = [[index for _, index in run] for _, run in groupby(numbered, key=lambda pair: pair[1] - pair[0])]
        texts.append(f"{task} {', '.join(f'{run[0]}-{run[-1]}' if len(run) > 1 else str(run[0]) for run in runs)}")
    return "; ".join(texts)


def _figures(a: Evaluation, b: Evaluation, keys: Sequence[Key]) -> dict[str, Any]:
    found = compare_paired(a.outcomes(keys), b.outcomes(keys), CONFIDENCE)
    return {
        "n": found.n,
        "a": {**found.first._asdict(), "errors": a.errors(keys)},
        "b": {**found.second._asdict(), "errors": b.errors(keys)},
        "difference": found.difference._asdict(),
        "only_a": found.test.first,
        "only_b": found.test.second,
        "p": found.test.p,
    }


def _side(result: Evaluation) -> dict[str, Any]:
    return {"path": str(result.path), **{key: result.record[key] for key in SIDE if key in result.record}}


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By full name, the settings and conditions that are not the same; None for what one of the two lacks."""
    one, other = (dict(flat({key: record[key] for key in CONDITIONS})) for record in (a, b))
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    return {name: {"a": one.get(name), "b": other.get(name)} for name in names}


def _cost(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a plan took: network evaluations, milliseconds of a batched plan and of one alone; `ratio` is A's by B's."""
    figures = {"nfe_per_plan": (a["nfe_per_plan"], b["nfe_per_plan"])}
    for name in ("plan_ms", "plan_ms_batch1"):
        figures |= {f"{name}.{share}": (a[name][share], b[name][share]) for share in ("p50", "p95")}
    return {
        name: {"a": one, "b": other, "ratio": one / other if one and other else None} for name, (one, other) in figures.items()
    }


def _episode(episode: Mapping[str, Any]) -> dict[str, Any]:
    return {key: episode[key] for key in ("success", "steps", "return", "error")}
