"""The next batches, made while the current one is used."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Prefetch(Generic[Item]):
    """`make(step)` for one step after another, up to `depth` of them ahead, by one thread.

    What comes is what `make` would give: it is to be a function of the step. Its errors are raised by `take`, at their step.
    The thread ends with the last step, with `close`, or with this object.

    Args:
        depth: 0 makes everything when it is asked for, without a thread.
        last: one past the last step that will be asked for; later ones are not made ahead.

    Attributes:
        waited: seconds that `take` has taken so far.
    """

    def __init__(self, make: Callable[[int], Item], depth: int, last: int) -> None:
        self._make, self._depth, self._last = make, depth, last
        self._ahead: deque[tuple[int, Future[Item]]] = deque()
        self._thread: ThreadPoolExecutor | None = None
        self.waited = 0.0

    def take(self, step: int) -> Item:
        """What belongs to `step`, and the order for those after it."""
        began = time.perf_counter()
        try:
            while self._ahead and self._ahead[0][0] != step:  # the caller went elsewhere: resumed, or tries a step again
                self._ahead.popleft()[1].cancel()
            item = self._ahead.popleft()[1].result() if self._ahead else self._make(step)
            self._order(step + 1)
        finally:
            self.waited += time.perf_counter() - began
        return item

    def close(self) -> None:
        """Ends the thread; `take` would start another."""
        while self._ahead:
            self._ahead.pop()[1].cancel()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def _order(self, step: int) -> None:
        step += len(self._ahead)
        while len(self._ahead) < self._depth and step < self._last:
            self._thread = self._thread or ThreadPoolExecutor(1, "kinoise-data")
            self._ahead.append((step, self._thread.submit(self._make, step)))
            step += 1
        if not self._ahead:
            self.close()
