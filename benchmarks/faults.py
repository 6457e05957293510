"""What goes wrong in `benchmarks.controller`, and when: a schedule, and the planner that keeps to it in its process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kinoise.deploy.inference import Planner, Request
from kinoise.deploy.inferences import Load
from kinoise.spec import Plan

SMALL = ("spike", "nan", "spike", "stall", "spike", "burst", "spike", "timeout", "wild", "spike")
"""In turn, one every SLOT seconds."""
LARGE = ("kill", "long", "kill", "dead", "kill", "hang", "long", "none", "dead", "none")
"""One for each segment."""
LATCHING = ("long", "dead")
"""Those that the ladder isn't to ride out."""
PLANNED = ("spike", "nan", "burst", "wild", "hang")
SENSED = ("stall", "timeout", "long")
KILLED = ("kill", "dead")
SLOT = 2.0
RECOVERY = 12.0
"""Seconds for a large fault, in which there are no small ones; a planning process starts in a part of that."""
LONGEST_SPIKE, SHORTEST_SPIKE = 1.0, 0.2
PATIENT_S = 20.0
"""Of holding, where a process that was killed has time to start again."""


@dataclass(frozen=True)
class Fault:
    """One fault.

    Args:
        kind: in planning `spike` (a plan that comes late), `nan` (one that holds NaN), `burst` (nothing but such), `wild` (one
            far outside the bounds), `hang` (a plan that never comes); in sensing `stall` (the reading stays the same),
            `timeout` (there is none), `long` (a stall that the ladder doesn't ride out); of the process `kill` and `dead`
            (killed, and its successor is not ready before the robot was stopped).
        at: seconds from the loop's start.
        seconds: how long it lasts; 0 for one plan, or where that is not up to it.
    """

    kind: str
    at: float
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.at:.2f} s: {self.kind}" + (f", {self.seconds:.2f} s" if self.seconds else "")


def schedule(large: str, seconds: float, rate: float, latching: float, rng: np.random.Generator) -> tuple[Fault, ...]:
    """A segment's faults in order.

    Args:
        large: the segment's one large fault.
        seconds: of the segment.
        latching: how long a stall is that has to end in a stop.
    """
    begin = 1 + 20 / rate  # the ticks before are also those of the plans that are made before the clock starts
    at = min(seconds / 3 + SLOT, begin + 12 * SLOT)
    found = [] if large == "none" else [Fault(large, at, latching if large == "long" else 0.0)]
    taken = (at - 0.8 * SLOT, at + RECOVERY) if found else (0.0, 0.0)
    turn = int(rng.integers(len(SMALL)))
    lasting = {"burst": 0.5, "stall": 0.8, "timeout": 0.8}
    for slot in np.arange(begin, seconds - SLOT, SLOT):
        if not taken[0] < slot < taken[1]:
            kind = SMALL[turn % len(SMALL)]
            spike = LONGEST_SPIKE if turn % len(SMALL) == 0 else rng.uniform(SHORTEST_SPIKE, LONGEST_SPIKE)
            length = spike if kind == "spike" else lasting.get(kind, 0.0)
            found.append(Fault(kind, float(slot + rng.uniform(0, 0.2)), float(length)))
            turn += 1
    return tuple(sorted(found, key=lambda fault: fault.at))


@dataclass(frozen=True)
class FaultyLoad:
    """Loads a policy as a planner with faults, in its process.

    Args:
        load: the policy.
        faults: a segment's.
        rate: of the loop, by which a request's tick says what time it is.
        barrier: a file; while it exists no planner is ready.
    """

    load: Load
    faults: tuple[Fault, ...]
    rate: float
    barrier: Path

    def __call__(self) -> tuple[Planner, Mapping[str, Any]]:
        planner, about = self.load()
        while self.barrier.exists():
            time.sleep(0.02)
        return FaultyPlanner(planner, self.faults, self.rate), about


class FaultyPlanner:
    """Each fault comes with the first plan that is asked for at its time or later, unless that was before the process began.

    A plan with a fault says so: `timing["fault"]` is its index.
    """

    def __init__(self, planner: Planner, faults: tuple[Fault, ...], rate: float) -> None:
        self._planner, self._faults, self._rate = planner, faults, rate
        self._due: list[int] | None = None

    def __call__(self, request: Request) -> Plan:
        now = request.tick / self._rate
        if self._due is None:
            self._due = [i for i, fault in enumerate(self._faults) if fault.kind in PLANNED and fault.at >= now]
        if not self._due or self._faults[self._due[0]].at > now:
            return self._planner(request)
        index = self._due[0]
        fault = self._faults[index]
        if fault.kind != "burst" or now >= fault.at + fault.seconds:
            self._due.pop(0)
        if fault.kind == "hang":
            time.sleep(600)
        if fault.kind == "spike":
            time.sleep(fault.seconds)
        plan = self._planner(request)
        actions = plan.actions
        if fault.kind in ("nan", "burst"):
            actions = actions.index_fill(2, torch.tensor([0]), torch.nan)
        elif fault.kind == "wild":
            actions = actions * 20 + 5
        return replace(plan, actions=actions, timing={**plan.timing, "fault": float(index)})
