"""SIGTERM and Ctrl-C as requests: the update at hand is finished and saved first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption(BaseException):
    """Raised inside `Stop.at_once`; no Exception, so that nothing takes it for a failed episode."""


class Stop:
    """Within the block, the first signal sets `signal`; a second one acts as it did before the block.

    Args:
        enabled: false leaves signals alone.
    """

    def __init__(self, enabled: bool = True) -> None:
        # Only the main thread may set handlers; elsewhere signals stay the caller's business.
        self._enabled = enabled and threading.current_thread() is threading.main_thread()
        self.signal: int | None = None
        self._at_once = False
        self._before: dict[int, object] = {}

    @property
    def code(self) -> int:
        """The exit code by convention: 143 after SIGTERM, 130 after Ctrl-C, 0 without either."""
        return 0 if self.signal is None else 128 + self.signal

    def __enter__(self) -> Stop:
        if self._enabled:
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """For work that can be dropped midway: a signal ends the block early instead of waiting for it."""
        self._at_once = True
        try:
            yield
        except Interruption:
            pass
        finally:
            self._at_once = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()
        if self._at_once:
            raise Interruption

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}
