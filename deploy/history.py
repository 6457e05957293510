"""The observations that a policy sees: true ones of the past, one a tick."""

from __future__ import annotations

import math
from collections import deque

from ..spec import KinoiseError
from .robot import Reading


class History:
    """A ring of readings, each at the tick that it belongs to.

    A tick that nothing was seen at (it was missed, or the sensors are slower than the loop) holds the reading before.

    Args:
        length: ticks.
        period: of the loop, seconds.
    """

    def __init__(self, length: int, period: float) -> None:
        self.length, self._period = length, period
        self._ring: deque[Reading] = deque(maxlen=length)
        self.tick = 0
        self.seen = 0.0

    def begin(self, time: float) -> None:
        """The age of what is seen counts from here (seconds), until something is seen."""
        self.seen = time

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The newest `length`, oldest first; the last belongs to `tick` and was measured at `seen`, seconds."""
        return tuple(self._ring)

    @property
    def episode(self) -> int | None:
        """Of the newest reading; None before the first."""
        return self._ring[-1].episode if self._ring else None

    def add(self, reading: Reading, tick: int, deadline: float, now: float) -> None:
        """Keeps a reading that was taken in `tick`, whose deadline was `deadline`, at the tick that its own time says.

        One that is no newer than the last changes nothing. With another episode's first, all before it is forgotten.

        Raises:
            KinoiseError: a reading from the future: another clock.
        """
        seen = now if reading.time is None else reading.time
        if seen > now + self._period:
            raise KinoiseError(
                f"a reading was measured {seen - now:.3f} s in the future: stamp it by the loop's clock, time.monotonic()"
            )
        late = 0 if reading.time is None else math.floor((deadline - seen) / self._period + 0.5)
        own = max(0, tick - max(0, late))
        if self.episode != reading.episode:
            self._ring.clear()
            self._ring.extend([reading] * self.length)
            self.tick, self.seen = own, seen
        elif reading.time is None or seen > self.seen:
            self._ring.extend([self._ring[-1]] * min(own - self.tick - 1, self.length))
            if own <= self.tick:  # sensors faster than the loop
                self._ring.pop()
            self._ring.append(reading)
            self.tick, self.seen = max(own, self.tick), seen
