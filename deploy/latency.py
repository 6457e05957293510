"""How late plans come, and what a run of the loop measured: its ticks, its plans and their percentiles."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..spec import KinoiseError
from .ring import Ring

WINDOW = 40
QUANTILE = 0.95


def percentiles(values: Sequence[float | int], scale: float = 1.0) -> dict[str, float | None]:
    """p50, p95, p99 and max of `values * scale` (linear interpolation between ranks); None each when there are no values."""
    if len(values) == 0:
        return {"p50": None, "p95": None, "p99": None, "max": None}
    scaled = np.asarray(values, dtype=np.float64) * scale
    # Interpolation rounds: between equal ranks a later percentile can come out smaller than one before it.
    p50, p95, p99 = np.maximum.accumulate(np.percentile(scaled, (50, 95, 99))).clip(max=scaled.max())
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99), "max": float(scaled.max())}


class DelayEstimate:
    """How late the next plan may come: the 95th percentile of the newest WINDOW latencies.

    Args:
        period: of the loop, seconds.
    """

    def __init__(self, period: float) -> None:
        self._period = period
        self._latencies: deque[float] = deque(maxlen=WINDOW)

    def add(self, seconds: float) -> None:
        """A plan's latency: from the time that its observation belongs to until the plan could be used."""
        self._latencies.append(seconds)

    @property
    def seconds(self) -> float:
        """The percentile, one of the latencies that were measured; 0 before the first."""
        if not self._latencies:
            return 0.0
        return float(np.quantile(self._latencies, QUANTILE, method="inverted_cdf"))

    @property
    def ticks(self) -> int:
        """Ticks from an observation to the first that can use its plan; at least 1, since no tick waits for a plan."""
        return max(1, math.ceil(self.seconds / self._period - 1e-6))


def check_horizon(delay: DelayEstimate, chunk: int, rate: float, hold: float) -> None:
    """Refuses plans that are over before the next ones come.

    One plan is made at a time. The next observation is looked at when a plan arrives, `delay` ticks after its own, and answered
    as much later again, so that the plan has to last for twice the delay (the bound of real-time chunking, arXiv:2506.07339,
    with an execution horizon as short as planning allows). The first plan is waited for in the hold of the fallback.

    Args:
        chunk: actions of a plan, one a tick.
        rate: ticks per second.
        hold: seconds that the fallback holds before it stops the robot.

    Raises:
        KinoiseError: with the numbers.
    """
    late = delay.ticks
    cost = f"plans take {delay.seconds * 1e3:.0f} ms at p95 = {late} tick{'s' * (late > 1)} at {rate:g} Hz"
    remedy = "Lower rate=, take fewer decode.steps or a faster device=, or train with a longer policy.chunk"
    actions = f"{chunk} action{'s' * (chunk > 1)}"
    if late >= chunk:
        raise KinoiseError(f"{cost}; a chunk of {actions} is over by then. {remedy}.")
    if 2 * late > chunk:
        raise KinoiseError(
            f"{cost}; the next plan comes after {2 * late} ticks, and a chunk of {actions} is over by then: "
            f"the robot would stand still {2 * late - chunk} of every {late} ticks. {remedy}."
        )
    if late / rate >= hold:
        raise KinoiseError(f"{cost}; the robot is stopped before its first plan comes. Raise fallback.hold={hold:g}.")


@dataclass(frozen=True, slots=True)
class Arrival:
    """A plan that came back.

    Args:
        tick: that the observation belongs to which it answers.
        delay: ticks from that one to the first that could use the plan.
        seconds: from asking to the answer.
        nfe: network evaluations spent.
        outcome: `used`; `expired`, when every action's time had passed; `stale`, when the scene was restarted or the robot
            stopped since the question; `nan`, refused for NaN or infinity in it.
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


@dataclass(frozen=True)
class Stop:
    """A latched stop: the tick at which the robot was stopped, and why there was no plan to follow."""

    tick: int
    reason: str


KEPT = 200_000
"""Ticks, and plans, whose times a record keeps, the newest: an hour at 50 Hz, in 12 MB. Counts are of the whole run."""
MESSAGES, OTHERS = 100, "other messages"
"""How many messages a record tells apart: some hold numbers, and each is another one."""
OUTCOMES = ("used", "expired", "stale", "nan")
ARRIVAL = np.dtype([("tick", np.int64), ("delay", np.int64), ("seconds", np.float64), ("nfe", np.int64), ("outcome", np.uint8)])


@dataclass
class Record:
    """One run of the loop, however long: its times are those of the newest KEPT ticks and plans.

    Args:
        period: seconds between deadlines.
        ticks: how many there were.
        missed: deadlines that passed without a tick.
        missed_commands: interpolated commands whose time passed before they could be sent.
        unseen: ticks at which the robot had nothing new to show (ObservationTimeout).
        rungs: ticks spent on each rung of the fallback's ladder.
        outcomes: plans that came back, by what became of them.
        stops: latched stops, in order.
        errors: how often planning failed, by message; the first MESSAGES of them.
        begins: when each tick began, seconds on the loop's clock.
        late: how long after its deadline each tick began, seconds.
        work: how long each tick took, seconds.
    """

    period: float
    ticks: int = 0
    missed: int = 0
    missed_commands: int = 0
    unseen: int = 0
    rungs: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    stops: list[Stop] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    begins: Ring = field(default_factory=lambda: Ring(KEPT))
    late: Ring = field(default_factory=lambda: Ring(KEPT))
    work: Ring = field(default_factory=lambda: Ring(KEPT))
    _arrivals: Ring = field(default_factory=lambda: Ring(KEPT, ARRIVAL))

    def add_tick(self, begin: float, late: float, work: float) -> None:
        self.ticks += 1
        self.begins.append(begin)
        self.late.append(late)
        self.work.append(work)

    def add_arrival(self, arrival: Arrival) -> None:
        self.outcomes[arrival.outcome] += 1
        self._arrivals.append((arrival.tick, arrival.delay, arrival.seconds, arrival.nfe, OUTCOMES.index(arrival.outcome)))

    def add_error(self, message: str) -> None:
        told = message in self.errors or len(self.errors) < MESSAGES
        self.errors[message if told else OTHERS] += 1

    @property
    def arrivals(self) -> list[Arrival]:
        """The plans that came back, in order."""
        return [Arrival(tick, delay, seconds, nfe, OUTCOMES[which]) for tick, delay, seconds, nfe, which in self._arrivals]

    @property
    def plans(self) -> int:
        return self.outcomes.total()

    def to_json(self) -> dict[str, Any]:
        """The timing part of `control.json`; milliseconds, and ticks for `delay_steps`."""
        arrivals = self.arrivals
        return {
            "ticks": self.ticks,
            "missed": self.missed,
            "missed_commands": self.missed_commands,
            "unseen": self.unseen,
            "period_ms": percentiles(np.diff(self.begins).tolist(), 1e3),
            "late_ms": percentiles(self.late, 1e3),
            "work_ms": percentiles(self.work, 1e3),
            "plan_ms": percentiles([item.seconds for item in arrivals], 1e3),
            "delay_steps": percentiles([item.delay for item in arrivals]),
            "plans": self.plans,
            "expired": self.outcomes["expired"],
            "stale": self.outcomes["stale"],
            "rungs": {name: self.rungs[name] for name in ("plan", "rest", "hold", "stop")},
            "stops": [{"tick": item.tick, "reason": item.reason} for item in self.stops],
            "errors": [{"message": message, "count": count} for message, count in self.errors.most_common()],
            "plans_timeline": [item.to_json() for item in arrivals],
        }
