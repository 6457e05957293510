"""What a run of the loop measured: when every tick began, what every plan cost, and their percentiles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


def percentiles(values: Sequence[float | int], scale: float = 1.0) -> dict[str, float | None]:
    """p50, p95, p99 and max of `values * scale` (linear interpolation between ranks); None each when there are no values."""
    if len(values) == 0:
        return {"p50": None, "p95": None, "p99": None, "max": None}
    scaled = np.asarray(values, dtype=np.float64) * scale
    p50, p95, p99 = np.percentile(scaled, (50, 95, 99))
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99), "max": float(scaled.max())}


@dataclass(frozen=True)
class Arrival:
    """A plan that came back.

    Args:
        tick: whose observation it answers.
        delay: ticks from that observation to the first tick that could use the plan.
        seconds: from asking to the answer.
        nfe: network evaluations spent.
        outcome: `used`; `expired`, when every action's time had passed; `stale`, when the scene had been restarted.
    """

    tick: int
    delay: int
    seconds: float
    nfe: int
    outcome: str

    def to_json(self) -> dict[str, Any]:
        return {
            "tick": self.tick,
            "delay": self.delay,
            "ms": round(self.seconds * 1e3, 3),
            "nfe": self.nfe,
            "outcome": self.outcome,
        }


@dataclass
class Record:
    """One run of the loop.

    Args:
        period: seconds between deadlines.
        begins: when each tick began, seconds on the loop's clock.
        late: how long after its deadline each tick began, seconds.
        work: how long each tick took, seconds.
        missed: deadlines that passed without a tick.
        holds: ticks without a plan to follow.
        arrivals: every plan that came back, in order.
        errors: how often planning failed, by message.
    """

    period: float
    begins: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)
    missed: int = 0
    holds: int = 0
    arrivals: list[Arrival] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def ticks(self) -> int:
        return len(self.begins)

    def count(self, outcome: str) -> int:
        return sum(item.outcome == outcome for item in self.arrivals)

    def to_json(self) -> dict[str, Any]:
        """The timing part of `control.json`; milliseconds, and ticks for `delay_steps`."""
        delays = percentiles([item.delay for item in self.arrivals])
        return {
            "ticks": self.ticks,
            "missed": self.missed,
            "period_ms": percentiles(np.diff(self.begins).tolist(), 1e3),
            "late_ms": percentiles(self.late, 1e3),
            "work_ms": percentiles(self.work, 1e3),
            "plan_ms": percentiles([item.seconds for item in self.arrivals], 1e3),
            "delay_steps": delays,
            "plans": len(self.arrivals),
            "expired": self.count("expired"),
            "stale": self.count("stale"),
            "holds": self.holds,
            "errors": [{"message": message, "count": count} for message, count in self.errors.most_common()],
            "plans_timeline": [item.to_json() for item in self.arrivals],
        }
