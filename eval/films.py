"""Videos of a few episodes that succeeded and a few that failed: played once more, from the actions that were carried out.

Which episodes are worth seeing is known only once they have ended, and pictures for people cost more than most steps: so no
episode is recorded while it is evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .ledger import Entry, Key
from .result import alike
from .rollout import Rollout
from .slot import Job, Outcome, ReplayDriver
from .workers import Workers


def film_name(job: Job) -> str:
    return f"{job.task.replace('/', '-')}-{job.index}.mp4"


def chosen(entries: Sequence[Entry], most: int) -> list[Entry]:
    """Of each task the first `most` episodes that succeeded and the first `most` that failed, by index; errors are left out."""
    ordered = sorted(entries, key=lambda item: item.outcome.job.index)
    found: dict[tuple[str, bool], list[Entry]] = {}
    for entry in ordered:
        if entry.outcome.error is None:
            found.setdefault((entry.outcome.job.task, entry.outcome.success), []).append(entry)
    return [entry for group in found.values() for entry in group[:most]]


def film(
    pool: Workers, entries: Sequence[Entry], most: int, folder: Path, slots: int
) -> tuple[list[Entry], list[dict[str, Any]]]:
    """Writes the videos to `folder`.

    Returns:
        The entries, those that are filmed with the video's path; and `task`, `index` and `why` of those chosen ones that went
        another way when they were played again, of which there is no video.
    """
    picked = {item.key: item for item in chosen(entries, most)}
    jobs = [
        replace(item.outcome.job, driver=ReplayDriver(item.carried.actions), film=folder / film_name(item.outcome.job))
        for item in picked.values()
    ]
    filmed: dict[Key, Path] = {}
    unfilmed = []
    if jobs:
        rollout = Rollout(pool, jobs, slots=slots)
        rollout.prepare()
        for again in rollout.run():
            key = again.job.task, again.job.index
            why = again.error or _difference(picked[key].outcome, again)
            path = folder / film_name(again.job)
            if why is None:
                filmed[key] = path
            else:
                path.unlink(missing_ok=True)
                unfilmed.append({"task": key[0], "index": key[1], "why": why})
    shown = [
        Entry(replace(item.outcome, job=replace(item.outcome.job, film=filmed.get(item.key))), item.carried) for item in entries
    ]
    return shown, sorted(unfilmed, key=lambda item: (item["task"], item["index"]))


def _difference(first: Outcome, again: Outcome) -> str | None:
    """None when the episode went as it did before."""
    if not alike(first.initial, again.initial):
        return "played again, it began in another state"
    if (first.success, first.steps) == (again.success, again.steps):
        paid = f"a return of {first.total:g}, but played from the same actions {again.total:g}"
        return None if alike(first.total, again.total) else paid
    words = [f"{'success' if item.success else 'no success'} after {item.steps} steps" for item in (first, again)]
    return f"{words[0]}, but played from the same actions {words[1]}"
