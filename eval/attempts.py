"""Attempts at demonstrations in worker processes, until each task has as many successes as it should."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import wait

from ..spec import KinoiseError
from .demonstration import Attempted, Folder, Recipe, serve
from .protocol import Shard
from .pulse import Pulse
from .workers import STRIKES, end, ended, start

# An expert that does no better than this in so many attempts is broken, or the noise is too much for it.
TRIES, HOPELESS = 50, 0.9
# A simulator under which so many attempts broke off, and more than succeeded, is broken.
BROKEN = 5


class Ledger:
    """Which attempts at a task have been made, and which are still to be made for its first `episodes` demonstrations.

    Args:
        found: by index whether an attempt was a success, of those that have been made.
        shard: the part of several that is to be made here: of every `total` attempts one, and its share of the
            demonstrations. What other parts' attempts come to decides which of these are kept in the end, and so which few
            are still missing: that is for a ledger without a shard.
    """

    def __init__(self, task: str, episodes: int, found: dict[int, bool], shard: Shard | None = None) -> None:
        first, self._step = (0, 1) if shard is None else (shard.number - 1, shard.total)
        self.task, self._first, self._episodes = task, first, len(range(first, episodes, self._step))
        self.found = {index: success for index, success in found.items() if index % self._step == first}
        self.broken: dict[int, str] = {}
        """By index why an attempt could not be played to its end; it counts as failed."""
        self._under_way: set[int] = set()
        self._strikes: Counter[int] = Counter()

    @property
    def wanted(self) -> list[int]:
        """Attempts to be started now.

        One that is not finished counts as a success until it has failed; so when none is wanted and none is under way, none
        below the last kept is missing, and what is kept depends neither on the order in which they finished nor on what else
        was tried.
        """
        missing, kept, index = [], 0, self._first
        while kept < self._episodes:
            success = self.found.get(index)
            if success is None and index not in self._under_way:
                missing.append(index)
            kept += success is not False
            index += self._step
        return missing

    @property
    def kept(self) -> dict[int, int]:
        """The first `episodes` demonstrations, in the order of their indices, with the failures since the one before."""
        kept, failures = {}, 0
        for index in sorted(self.found):
            if len(kept) == self._episodes:
                break
            if self.found[index]:
                kept[index], failures = failures, 0
            else:
                failures += 1
        return kept

    def start(self) -> int:
        """The next attempt to be made, from now on under way."""
        index = self.wanted[0]
        self._under_way.add(index)
        return index

    def enter(self, index: int, success: bool) -> None:
        """Notes an outcome. Raises KinoiseError when it is clear by now that the expert fails nearly always."""
        self._under_way.discard(index)
        self.found[index] = success
        failures, tried = 0, 0
        while (index := self._first + tried * self._step) in self.found:
            failures += not self.found[index]
            tried += 1
            if tried >= TRIES and failures > HOPELESS * tried:
                raise KinoiseError(
                    f"the expert of {self.task} failed in {failures} of its first {tried} attempts. "
                    f"Lower noise=, or collect other tasks."
                )

    def lose(self, index: int) -> bool:
        """Notes that an attempt's process is gone; whether it is given up, otherwise it is to be made again."""
        self._under_way.discard(index)
        self._strikes[index] += 1
        return self._strikes[index] >= STRIKES

    def give_up(self, index: int, trouble: str) -> None:
        """Notes a failure for want of a simulator that plays on. Raises KinoiseError when these are too many."""
        self.broken[index] = trouble
        succeeded = list(self.found.values()).count(True)
        if len(self.broken) >= BROKEN and len(self.broken) > succeeded:
            raise KinoiseError(
                f"{len(self.broken)} attempts at {self.task} could not be played to their end, and {succeeded} succeeded. The "
                f"last: {trouble}"
            )
        self.enter(index, False)


class Worker:
    """A process that plays one attempt at a time. It ends with the `with` block, or with the main process.

    Args:
        timeout: s, for a simulator to be built, to be reset or to make a step; a process that takes longer is ended.
    """

    def __init__(self, recipe: Recipe, folder: Folder, timeout: float) -> None:
        self._recipe, self._folder, self._timeout = recipe, folder, timeout
        self.ledger: Ledger | None = None
        self._index = 0
        self._start()

    def start(self, ledger: Ledger) -> None:
        """Begins the ledger's next attempt."""
        self.ledger, self._index = ledger, ledger.start()
        self.pulse.watch()
        with suppress(OSError):  # of a process that is gone: `finish` notices
            self.connection.send((ledger.task, self._index))

    def finish(self) -> int:
        """Enters what came of the attempt, which is over or hangs, in the ledger; the steps it took.

        An attempt whose process is gone is made again, and given up when that has happened STRIKES times.

        Raises KinoiseError when no attempt can be made, the expert is hopeless, the simulator broken or the disk full.
        """
        assert self.ledger is not None
        try:
            hung = not self.connection.poll()
            reply = None if hung else self.connection.recv()
        except (EOFError, OSError):
            hung, reply = False, None
        if isinstance(reply, str):
            raise KinoiseError(reply)
        if reply is None:
            trouble = self._restart(hung)
            written = self._folder.found(self.ledger.task).get(self._index)  # by a process that died before it could say so
            reply = Attempted(trouble=trouble, lost=True) if written is None else Attempted(success=written)
        if not reply.trouble:
            self.ledger.enter(self._index, reply.success)
        elif not reply.lost or self.ledger.lose(self._index):
            self._folder.give_up(self.ledger.task, self._index, reply.trouble)
            self.ledger.give_up(self._index, reply.trouble)
        return reply.steps

    def _start(self) -> None:
        self.pulse = Pulse(self._timeout)
        self._process, self.connection = start(serve, self._recipe, self._folder, self.pulse.shared, name="kinoise-collect")

    def _restart(self, hung: bool) -> str:
        """Another process in place of one that is gone; how that one ended."""
        self.connection.close()
        how = ended(self._process, self._timeout if hung else None)
        self._start()
        return f"the process that played it {how}" + ("" if hung else ". If memory ran out, take fewer workers=")

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        end(self._process, 0.0)


def make_attempts(ledgers: Sequence[Ledger], recipe: Recipe, folder: Folder, workers: int, timeout: float) -> Iterator[int]:
    """Plays what the ledgers want; yields each attempt's steps once its file is written and its outcome entered.

    Each worker stays with a task while there is something to do, so that a simulator is built once a task and process.

    Raises:
        KinoiseError: a simulator can't be built, has no expert or is broken, an expert is hopeless, the disk is full.
    """
    wanted = sum(len(ledger.wanted) for ledger in ledgers)
    if not wanted:
        return
    with ExitStack() as stack:
        idle = [stack.enter_context(Worker(recipe, folder, timeout)) for _ in range(min(workers, wanted))]
        busy: list[Worker] = []
        while True:
            for worker in list(idle):
                ledger = _next(ledgers, worker.ledger, [item.ledger for item in busy])
                if ledger is not None:
                    worker.start(ledger)
                    idle.remove(worker)
                    busy.append(worker)
            if not busy:
                return
            ready = wait([worker.connection for worker in busy], min(worker.pulse.tick for worker in busy))
            for worker in [item for item in busy if item.connection in ready or item.pulse.hangs]:
                busy.remove(worker)
                yield worker.finish()
                idle.append(worker)


def _next(ledgers: Sequence[Ledger], own: Ledger | None, others: Sequence[Ledger | None]) -> Ledger | None:
    """The task that a worker goes on with: its own, else the one with the fewest workers, of those the one with most to do."""
    if own is not None and own.wanted:
        return own
    open_ = [ledger for ledger in ledgers if ledger.wanted]
    return min(open_, key=lambda ledger: (others.count(ledger), -len(ledger.wanted)), default=None)
