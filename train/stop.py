"""SIGTERM and Ctrl-C as requests: the update at hand is finished and saved first, by all processes alike."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .processes import Processes

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption(BaseException):
    """Raised inside `Stop.at_once`; no Exception, so that nothing takes it for a failed episode."""


class Stop:
    """Within the block, the first signal is a request, and a second one acts as it did before the block.

    Where several processes train, a signal to any of them counts for all, after the same update: had they stopped after
    different ones, they would wait for each other. Further signals then do nothing, since launchers pass on what a terminal
    sends as well, and kill what does not end soon.

    Attributes:
        received: what this process was sent.
        signal: what all processes end for, which they learn in `agreed`.
    """

    def __init__(self, processes: Processes | None = None) -> None:
        self._processes = processes or Processes()
        # Only the main thread may set handlers; elsewhere signals stay the caller's business.
        self._enabled = threading.current_thread() is threading.main_thread()
        self.received: int | None = None
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
    def agreed(self) -> Iterator[None]:
        """After the block all processes have the same `signal`: alone, what came until its end; else, until its beginning."""
        alone = self._processes.count == 1
        count = self._processes.voted(self.received or 0)  # goes on beside the block's work
        yield
        self.signal = (self.received if alone else count()) or None

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
        first, self.received = self.received is None, self.received or number
        if self._processes.count == 1:
            self._restore()
        if first and self._at_once:
            raise Interruption

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}
