"""How far a worker process has got, which it says in shared memory: one that gets no further hangs. No torch here."""

from __future__ import annotations

import time
from ctypes import c_int
from multiprocessing.sharedctypes import RawValue
from typing import Any

TIMEOUT_S, TICK_S = 300.0, 1.0


class Pulse:
    """The main process's side.

    Args:
        timeout: s after which a process that got no further hangs; before its first beat, at least TIMEOUT_S: importing is no
            hang.
    """

    def __init__(self, timeout: float) -> None:
        self.shared: Any = RawValue(c_int, 0)
        """Sent to the process, which beats by adding to its `value`."""
        self._timeout = timeout
        self.tick = min(TICK_S, timeout)
        """s after which to ask again whether it hangs."""
        self.watch()

    def watch(self) -> None:
        """From now on it has something to do."""
        self._last, self._since = self.shared.value, time.monotonic()

    @property
    def hangs(self) -> bool:
        """Whether it got no further for too long. To be asked every `tick`."""
        if self.shared.value != self._last:
            self.watch()
        return time.monotonic() - self._since > (self._timeout if self._last else max(self._timeout, TIMEOUT_S))
