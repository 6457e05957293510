"""Time for the loop: a monotonic clock, and a process arranged so that one thread can keep it."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

# CPython lets a thread hold the interpreter for 5 ms when another asks for it: a tenth of a 20 Hz period, and all of it
# would show as jitter whenever the policy runs Python code.
SWITCH_INTERVAL = 5e-4


@runtime_checkable
class Clock(Protocol):
    """Seconds that never go back."""

    def now(self) -> float: ...

    def sleep_until(self, deadline: float) -> None:
        """Returns at `deadline` or later, never earlier; at once when it has passed."""
        ...


class MonotonicClock:
    """The system's monotonic clock: no jumps when the wall clock is set."""

    def now(self) -> float:
        return time.monotonic()

    def sleep_until(self, deadline: float) -> None:
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(left)


@contextmanager
def prompt_threads() -> Iterator[None]:
    """While inside, a waking thread waits at most SWITCH_INTERVAL for the interpreter, and the garbage collector passes over
    what exists already: with torch and a simulator loaded, a full collection stops every thread for tens of milliseconds.
    """
    interval = sys.getswitchinterval()
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        gc.unfreeze()
