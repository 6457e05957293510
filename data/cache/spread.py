"""Methods of an object for each of many items, by several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import Any, Generic, TypeVar

from ...spec import KinoiseError

Item = TypeVar("Item")
Result = TypeVar("Result")
Job = TypeVar("Job")


class Unfinished(KinoiseError):
    """The machine's doing, or a decoder's crash: what was done until now is worth going on with."""


class Spread(Generic[Job]):
    """Processes that each hold a copy of `job`, for the block; they end with this one, however it ends.

    Args:
        job: sent once to each process, by multiprocessing's own pipes.
        workers: processes; with one all is done here, without any.
    """

    def __init__(self, job: Job, workers: int) -> None:
        self.job = job
        self._pool = None
        if workers > 1:
            self._pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (job,))

    def __enter__(self) -> Spread[Job]:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def each(self, method: Callable[[Job, Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
        """(item, method(job, item)) of every item, in the order in which they are done.

        The method's first error is raised; when the block is left, what is under way ends and the rest is never begun. Raises
        Unfinished when a process dies.
        """
        if self._pool is None:
            for item in items:
                yield item, method(self.job, item)
            return
        resource_tracker.ensure_running()  # it unblocks SIGINT when it is first started
        # A process starts with the signals blocked that its parent's thread blocks: Ctrl-C is then this process's alone.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            under_way = {self._pool.submit(_call, method, item): item for item in items}
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        try:
            for future in as_completed(under_way):
                yield under_way.pop(future), future.result()
        except BrokenProcessPool as error:
            raise Unfinished(
                "a process that decodes died: memory ran out, or a file crashes its decoder. What was done is kept: "
                "run the command again, with more memory free; kinoise inspect tells which file it is."
            ) from error


_job: Any


def _begin(job: Any) -> None:
    """In a new process: what it will work on, and a thread that ends it when its parent is gone."""
    global _job
    _job = job
    threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _call(method: Callable[[Any, Any], Any], item: Any) -> Any:
    return method(_job, item)
