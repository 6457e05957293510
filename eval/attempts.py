"""Attempts at demonstrations in worker processes, until each task has as many successes as it should."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from multiprocessing.connection import wait

from ..spec import KinoiseError
from .demonstration import Folder, Recipe, serve
from .protocol import Shard
from .workers import start

# An expert that does no better than this in so many attempts is broken, or the noise is too much for it.
TRIES, HOPELESS = 50, 0.9


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
        self._under_way: set[int] = set()

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


class Worker:
    """A process that plays one attempt at a time. It ends with the `with` block, or with the main process."""

    def __init__(self, recipe: Recipe, folder: Folder) -> None:
        self._process, self.connection = start(serve, recipe, folder, name="kinoise-collect")
        self.ledger: Ledger | None = None
        self._index = 0

    def start(self, ledger: Ledger) -> None:
        """Begins the ledger's next attempt."""
        self.ledger, self._index = ledger, ledger.start()
        try:
            self.connection.send((ledger.task, self._index))
        except OSError as error:
            raise self._died(ledger) from error

    def finish(self) -> int:
        """Waits for the attempt and enters its outcome in the ledger; the steps it took.

        Raises KinoiseError when the attempt raised, the process died or the expert is hopeless.
        """
        assert self.ledger is not None
        try:
            reply = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._died(self.ledger) from error
        if isinstance(reply, str):
            raise KinoiseError(reply)
        success, steps = reply
        self.ledger.enter(self._index, success)
        return steps

    def _died(self, ledger: Ledger) -> KinoiseError:
        self._process.join()
        return KinoiseError(
            f"the process that played {ledger.task}, attempt {self._index}, died (exit code {self._process.exitcode}). "
            f"If memory ran out, take fewer workers=. The same command goes on where this one was."
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        self._process.terminate()
        self._process.join()


def make_attempts(ledgers: Sequence[Ledger], recipe: Recipe, folder: Folder, workers: int) -> Iterator[int]:
    """Plays what the ledgers want; yields each attempt's steps once its file is written and its outcome entered.

    Each worker stays with a task while there is something to do, so that a simulator is built once a task and process.

    Raises:
        KinoiseError: a simulator can't be built, an attempt raised, a process died, an expert is hopeless, the disk is full.
    """
    wanted = sum(len(ledger.wanted) for ledger in ledgers)
    if not wanted:
        return
    with ExitStack() as stack:
        idle = [stack.enter_context(Worker(recipe, folder)) for _ in range(min(workers, wanted))]
        busy: dict[object, Worker] = {}
        while True:
            for worker in list(idle):
                ledger = _next(ledgers, worker.ledger, [item.ledger for item in busy.values()])
                if ledger is not None:
                    worker.start(ledger)
                    idle.remove(worker)
                    busy[worker.connection] = worker
            if not busy:
                return
            for connection in wait([worker.connection for worker in busy.values()]):
                worker = busy.pop(connection)
                yield worker.finish()
                idle.append(worker)


def _next(ledgers: Sequence[Ledger], own: Ledger | None, others: Sequence[Ledger | None]) -> Ledger | None:
    """The task that a worker goes on with: its own, else the one with the fewest workers, of those the one with most to do."""
    if own is not None and own.wanted:
        return own
    open_ = [ledger for ledger in ledgers if ledger.wanted]
    return min(open_, key=lambda ledger: (others.count(ledger), -len(ledger.wanted)), default=None)
