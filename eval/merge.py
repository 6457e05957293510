"""`kinoise merge OUT1 OUT2 ... out=DIR`: one result of the parts that several processes played with shard=."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING
from rich.console import Console

from ..config import UsageError, parse
from ..files import write_json
from ..spec import KinoiseError
from .ledger import LEDGER, Conditions, Entry, Key, read_ledger, write_ledger
from .result import Planning, account, evaluating
from .shown import show
from .sources import RESULT, read_record

ABOUT = """kinoise merge OUT1 OUT2 ... out=DIR puts together what kinoise eval wrote with shard=1/2 and shard=2/2: the result
that one process would have written, but for times. Refuses parts of different evaluations, and lists episodes that are missing
or there twice."""


@dataclass
class Settings:
    """The whole command line of `kinoise merge`, besides the parts."""

    out: str = field(default=MISSING, metadata={"help": "where result.json goes"})


def main(argv: Sequence[str]) -> int:
    """0, or 1 when not a single episode could be played to its end.

    Raises:
        UsageError: fewer than two parts, or wrong settings.
        KinoiseError: parts that don't make an evaluation.
    """
    parts = [item for item in argv if not item.startswith("-") and ("=" not in item or "/" in item.partition("=")[0])]
    settings = parse("merge", Settings, [item for item in argv if item not in parts], about=ABOUT)
    if len(parts) < 2:
        raise UsageError("expected kinoise merge OUT1 OUT2 ... out=DIR, with at least two parts. See kinoise merge --help.")
    out, console = Path(settings.out), Console()
    if out.exists() and any(Path(item).exists() and out.samefile(item) for item in parts):
        raise UsageError(f"out={out} is one of the parts, whose episodes would be replaced: choose another folder")
    conditions, entries, result = merge([Path(item) for item in parts])
    with evaluating(out):
        write_ledger(out / LEDGER, conditions, entries)
        write_json(out / "result.json", result)
    show(result, console)
    console.print(f"{out / 'result.json'}", highlight=False, soft_wrap=True)
    return int(result["success"]["errors"] == result["success"]["n"])


def merge(parts: Sequence[Path]) -> tuple[Conditions, list[Entry], dict[str, Any]]:
    """What episodes.jsonl holds, and result.json.

    Args:
        parts: directories of `kinoise eval`, at least one.

    Raises:
        KinoiseError: one without episodes, or unfinished; different protocols, weights or settings; episodes that are missing
            or twice. With all of them.
    """
    read = {part: _read(part) for part in parts}
    conditions = read[parts[0]][0]
    for part, (other, _) in read.items():
        differences = conditions.differences(other, "shard")
        if differences:
            raise KinoiseError(f"{parts[0]} and {part} are not of one evaluation: {'; '.join(differences)}")
    holders: dict[Key, list[Path]] = {}
    for part in parts:
        for key in read[part][1]:
            holders.setdefault(key, []).append(part)
    problems = {
        "missing": [key for key in conditions.jobs() if key not in holders],
        "twice": [key for key, item in holders.items() if len(item) > 1],
    }
    if any(problems.values()):
        said = "; ".join(f"{len(keys)} {name} ({_listed(keys)})" for name, keys in problems.items() if keys)
        raise KinoiseError(
            f"the parts don't make an evaluation of {len(conditions.jobs())} episodes: {said}. Finish a part with resume=true, "
            f"and name each once."
        )
    whole = replace(conditions, shard=None)
    played = [entry for _, entries in read.values() for entry in entries.values()]
    results = {part: read_record(part / "result.json", RESULT, "eval") for part in parts}
    merged = account(
        whole,
        played,
        Planning((), (), (), ()),
        rollout_s=0.0,
        wall_s=max(item["wall_s"] for item in results.values()),
        rollout={"parts": [_carried_out(part, item) for part, item in results.items()]},
    )
    # The parts play side by side: their speeds add up, and the longest decides how long it took.
    merged["env_steps_per_s"] = sum(item["env_steps_per_s"] for item in results.values())
    merged["decode_cost"]["plans"] = sum(item["decode_cost"].get("plans", 0) for item in results.values())
    return whole, played, merged | _overlap(results)


def _read(part: Path) -> tuple[Conditions, dict[Key, Entry]]:
    found = read_ledger(part / LEDGER)
    if found is None:
        raise KinoiseError(f"{part / LEDGER} does not exist: expected a directory that kinoise eval wrote, with shard=")
    return found


def _listed(keys: Iterable[Key]) -> str:
    tasks: dict[str, list[str]] = {}
    for task, index in keys:
        tasks.setdefault(task, []).append(str(index))
    return "; ".join(f"{task} {', '.join(indices)}" for task, indices in tasks.items())


def _carried_out(part: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """How a part was played, which the merged result does not say elsewhere."""
    names = ("shard", "machine", "rollout", "env_steps_per_s", "wall_s")
    return {"part": str(part), **{name: result[name] for name in names if name in result}}


def _overlap(results: Mapping[Path, Mapping[str, Any]]) -> dict[str, Any]:
    """The sum of what was counted, where all counted with the same demonstrations."""
    counted = [item["overlap"] for item in results.values() if "overlap" in item]
    if not counted:
        return {}
    if len(counted) < len(results) or len({item["demonstrations"] for item in counted}) > 1:
        raise KinoiseError("the parts were not all played with the same data=. Play them with it, or without.")
    return {"overlap": {**counted[0], "episodes": sum(item["episodes"] for item in counted)}}
