"""Plays an evaluation's missing episodes, and writes each down once it has ended."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

from .ledger import Entry, Ledger
from .progress import EpisodeProgress
from .rollout import Actor, Rollout
from .slot import Job
from .until import Until
from .workers import Workers

BLOCK = 5
"""Rounds that are played before the next begin, where there are more tasks than slots and a few rounds may do."""


class Player:
    """Plays what is missing.

    Args:
        pool: the simulators' processes.
        ledger: takes the episodes as they end.
        until: when there are enough; None: once all have ended.
    """

    def __init__(self, pool: Workers, ledger: Ledger, until: Until | None) -> None:
        self._pool, self._ledger, self._until = pool, ledger, until
        self.seconds = 0.0
        """From the first reset to the last episode's end, without the building of simulators."""
        self.repeated = 0
        """How often an episode was begun again, for its process had died."""

    def play(
        self, jobs: Sequence[Job], kept: Sequence[Entry], actor: Actor, bar: EpisodeProgress, how: Mapping[str, Any]
    ) -> list[Entry]:
        """Those of `jobs` that are not `kept`, as they end; `how` goes to `Rollout`."""
        bar.add(*(item.outcome for item in kept))
        for item in kept:
            self._note(item)
        known, played = {item.key for item in kept}, []
        for part in self._parts([job for job in jobs if (job.task, job.index) not in known], how["slots"]):
            if self._enough:
                break
            rollout = Rollout(self._pool, part, **how)
            rollout.prepare()
            started = time.perf_counter()
            with closing(rollout.run(actor)) as outcomes:
                for place, outcome in enumerate(outcomes):
                    played.append(Entry(outcome, rollout.carried[place]))
                    self._ledger.add(played[-1])
                    bar.add(outcome)
                    self._note(played[-1])
                    if self._enough:
                        break
            self.seconds += time.perf_counter() - started
            self.repeated += rollout.repeated
        return played

    def _note(self, entry: Entry) -> None:
        if self._until is not None:
            self._until.add(entry.outcome)

    @property
    def _enough(self) -> bool:
        return self._until is not None and self._until.reached

    def _parts(self, jobs: list[Job], slots: int) -> list[list[Job]]:
        """With more tasks than slots they would be played one after the other, and no round end before nearly all do."""
        if self._until is None or len({job.task for job in jobs}) <= slots:
            return [jobs] if jobs else []
        blocks = sorted({job.index // BLOCK for job in jobs})
        return [[job for job in jobs if job.index // BLOCK == block] for block in blocks]
