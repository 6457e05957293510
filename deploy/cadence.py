"""How often a robot can have a new plan: the controller's arithmetic, before there is a robot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..spec import KinoiseError
from .fallback import FallbackConfig
from .latency import DelayEstimate, check_horizon


@dataclass(frozen=True)
class Cadence:
    """What the control loop makes of plans that take so long, one of them made at a time.

    Args:
        seconds: that a plan takes, its 95th percentile.
        rate: of the loop, Hz.
        chunk: actions of a plan, one a tick.

    Raises:
        KinoiseError: seconds or a rate that aren't positive and finite, a chunk without actions.
    """

    seconds: float
    rate: float
    chunk: int

    def __post_init__(self) -> None:
        if not (0 < self.seconds < math.inf and 0 < self.rate < math.inf and self.chunk >= 1):
            raise KinoiseError(
                f"plans of {self.chunk} actions that take {self.seconds} s, at {self.rate} Hz: expected all of it above 0"
            )

    @property
    def delay(self) -> int:
        """Ticks from a question to the first that can use its plan; at least 1."""
        return self._estimate.ticks

    @property
    def every(self) -> int:
        """Ticks from plan to plan: the next is asked for where the last arrives."""
        return self.delay

    @property
    def lasts(self) -> bool:
        """Whether a plan isn't over before the next one comes: the bound of `check_horizon`."""
        return 2 * self.delay <= self.chunk

    @property
    def fastest(self) -> float | None:
        """The highest rate at which every tick can have a new plan, Hz; None where the loop takes no plan so short."""
        return 1 / self.seconds if self.chunk >= 2 else None

    @property
    def sustained(self) -> float | None:
        """The highest rate at which plans last until the next ones come, Hz; None where the loop takes no plan so short."""
        return self.chunk // 2 / self.seconds if self.chunk >= 2 else None

    @property
    def refusal(self) -> str:
        """Why `kinoise control` would not begin with its usual fallback; "" where it would."""
        try:
            check_horizon(self._estimate, self.chunk, self.rate, FallbackConfig().hold)
        except KinoiseError as error:
            return str(error)
        return ""

    @property
    def sentence(self) -> str:
        """What a user needs to know of it."""
        most = "" if self.sustained is None else f" A plan lasts until the next one comes at up to {hertz(self.sustained)}."
        if self.refusal:
            return f"kinoise control would refuse: {self.refusal}" + ("" if self.lasts else most)
        steps = "step" if self.every == 1 else f"{self.every} steps"
        said = f"at {self.rate:g} Hz you can replan every {steps} with delay {self.delay}"
        assert self.fastest is not None  # such plans are refused
        more = "the same" if self.delay == 1 else "every step with delay 1"
        return f"{said}; {more} at up to {hertz(self.fastest)}.{most}"

    def to_json(self) -> dict[str, Any]:
        return {
            "rate": self.rate,
            "chunk": self.chunk,
            "p95_ms": self.seconds * 1e3,
            "delay": self.delay,
            "every": self.every,
            "lasts": self.lasts,
            "fastest_hz": self.fastest,
            "sustained_hz": self.sustained,
            "refusal": self.refusal,
            "sentence": self.sentence,
        }

    @property
    def _estimate(self) -> DelayEstimate:
        found = DelayEstimate(1 / self.rate)
        found.add(self.seconds)
        return found


def hertz(rate: float) -> str:
    """A rate that is never above `rate`: whole, with tenths below 10 Hz, with thousandths below 0.1 Hz."""
    parts = 1 if rate >= 10 else 10 if rate >= 0.1 else 1000
    return f"{math.floor(rate * parts) / parts:.15g} Hz"
