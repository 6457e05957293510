"""What `benchmarks.controller` holds a run against, from the robot's log and the inference's traffic alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import comb, inf
from typing import Any

import numpy as np
from kinoise.deploy.controller import ControllerConfig
from kinoise.deploy.guards import GuardConfig
from kinoise.eval.metrics import wilson
from kinoise.spec import Spec

from .faults import SENSED, Fault
from .rig import Delivery, Log

WITHIN = 2
"""Ticks."""
CLOSE = 1e-5
"""Rounding of float32 at a command's size."""


@dataclass(frozen=True)
class Run:
    """One run of the controller, seen from outside.

    Args:
        deliveries: plans that the loop was given, in order.
        resets, kills: when, seconds on `time.monotonic()`.
        faults: that were due.
        end: when the loop was over.
    """

    log: Log
    deliveries: Sequence[Delivery]
    resets: Sequence[float]
    kills: Sequence[tuple[Fault, float]]
    faults: Sequence[Fault]
    spec: Spec
    config: ControllerConfig
    guards: GuardConfig
    end: float

    @property
    def period(self) -> float:
        return 1 / self.config.rate

    def until(self, plan: Delivery) -> float:
        """When `plan` is over; infinity before the beginning for one that may not be followed."""
        void = not np.isfinite(plan.actions).all() or any(plan.asked < reset <= plan.time for reset in self.resets)
        return -inf if void else plan.t0 + len(plan.actions) * self.period

    @property
    def kept(self) -> float:
        """For how long the newest observation may be acted on, seconds."""
        return inf if self.guards.stale is None else 2 * self.guards.stale


def stops_due(run: Run) -> list[float]:
    """When the robot should have been stopped: `hold` seconds after there was nothing to follow any more.

    There is something while a plan lasts and the newest observation may be acted on, in continuous time: where the loop's
    ticks lie has no part in it.
    """
    events: list[tuple[float, str, float]] = [(plan.time, "plan", run.until(plan)) for plan in run.deliveries]
    events += [(begin, "seen", stamp) for begin, stamp in zip(run.log.begins, run.log.stamps, strict=True)]
    events += [(reset, "reset", 0.0) for reset in run.resets] + [(run.end, "end", 0.0)]
    due, stopped, until, seen = [], False, -inf, -inf
    since: float | None = run.log.begins[0]
    for time, what, value in sorted(events):
        supplied = min(until, seen + run.kept)
        if since is None and supplied < time:
            since = supplied
        if since is not None and not stopped and time >= since + run.config.fallback.hold:
            due.append(since + run.config.fallback.hold)
            stopped = True
        if what == "plan":
            until = max(until, value)
        elif what == "seen":
            seen = value
        elif what == "reset":
            until, since, stopped = -inf, time, False
        if not stopped and min(until, seen + run.kept) > time:
            since = None
    return due


def judge_stops(run: Run) -> dict[str, Any]:
    """Ticks that began from when each stop was due until it came, and how long that was in periods, with what the machine
    kept from the loop; commands to a stopped robot; `well` when all came that were due, in time, and no other."""
    due, came = stops_due(run), run.log.stops[:-1]  # the last is the end of every run
    pairs, begins = list(zip(due, came, strict=False)), np.array(run.log.begins)
    ticks = [int(((begins > before) & (begins <= after)).sum()) for before, after in pairs]
    early = any(after < before - run.period / 2 for before, after in pairs)
    ends = [next((reset for reset in run.resets if reset > stop), run.end) for stop in came]
    sent = np.array(run.log.sent)
    return {
        "due": len(due),
        "came": len(came),
        "ticks": ticks,
        "periods": [round((after - before) / run.period, 3) for before, after in pairs],
        "commands_while_stopped": int(sum(((sent > stop) & (sent < end)).sum() for stop, end in zip(came, ends, strict=True))),
        "well": len(due) == len(came) and not early and all(item <= WITHIN for item in ticks),
    }


def judge_commands(run: Run) -> tuple[dict[str, int], list[tuple[float, Delivery | None]]]:
    """Violations by kind, which all should be 0; and for each command when it came and the plan that it was carried out of.

    `other` counts commands of ticks for which there was a plan that aren't what the guards leave of its action for that tick.
    """
    spec, log = run.spec, run.log
    low, high = np.array(spec.action.low, np.float32), np.array(spec.action.high, np.float32)
    shares = [run.guards.jump]
    if spec.control == "absolute" and run.guards.velocity is not None:
        shares.append(run.guards.velocity * run.period)
    jump = min((item for item in shares if item is not None), default=inf) * (high - low)
    gripper = list(spec.gripper)
    jump[gripper] = inf
    found = Counter[str](dict.fromkeys(("finite", "bounds", "jump", "gripper", "other"), 0))
    outcome: list[tuple[float, Delivery | None]] = []
    plans, resets = _in_force(run), iter([*run.resets, inf])
    reset, last = next(resets), None
    for sent, tick, command in zip(log.sent, log.ticks, log.commands, strict=True):
        begin = log.begins[tick]
        anew = last is None
        while reset < sent:
            reset, anew = next(resets), True
        if anew and spec.control != "absolute":  # it stood still
            rest = np.zeros_like(command)
            rest[gripper] = 0 if last is None else last[gripper]
            last = rest
        plan = plans(sent)
        index = -1 if plan is None else int((begin - plan.t0) / run.period + 1e-3)
        followed = plan is not None and 0 <= index < len(plan.actions) and begin - log.stamps[tick] <= run.kept
        found["finite"] += not np.isfinite(command).all()
        found["bounds"] += bool(((command < low) | (command > high)).any())
        if last is not None:
            found["jump"] += bool((np.abs(command - last) > jump + CLOSE).any())
            if not followed:
                found["gripper"] += bool((command[gripper] != last[gripper]).any())
        if followed and plan is not None:
            wanted = np.clip(plan.actions[index], low, high)
            wanted = wanted if last is None else np.clip(wanted, last - jump, last + jump)
            found["other"] += not np.allclose(command, wanted, rtol=0, atol=CLOSE)
        outcome.append((sent, plan if followed else None))
        last = command
    return dict(found), outcome


def _in_force(run: Run) -> Callable[[float], Delivery | None]:
    """A function of a time that never goes back: the plan to follow then, None for none."""
    plans = iter([plan for plan in run.deliveries if run.until(plan) > plan.time])
    resets = iter([*run.resets, inf])
    ahead, reset = next(plans, None), next(resets)
    now: Delivery | None = None

    def at(time: float) -> Delivery | None:
        nonlocal ahead, now, reset
        while ahead is not None and ahead.time <= time:
            ahead, now = next(plans, None), ahead
        while reset <= time:
            now = None if now is not None and now.asked < reset else now
            reset = next(resets)
        return now

    return at


def recoveries(run: Run, outcome: Sequence[tuple[float, Delivery | None]]) -> Iterator[dict[str, Any]]:
    """Of each fault that happened: seconds until a plan was carried out that saw what was after its beginning (None: never),
    ticks without a plan meanwhile, and resets that it took."""
    for fault, begin in happened(run):
        came = next((sent for sent, plan in outcome if plan is not None and plan.observed > begin), None)
        until = run.end if came is None else came
        held = sum(begin < sent < until and plan is None for sent, plan in outcome)
        resets = sum(begin < reset < until for reset in run.resets)
        seconds = None if came is None else round(came - begin, 4)
        yield {"kind": fault.kind, "seconds": seconds, "held_ticks": held, "resets": resets}


def happened(run: Run) -> Iterator[tuple[Fault, float]]:
    """The faults that came to be, and when: the late or bad plan's observation, the kill, or the time that was set."""
    yield from run.kills
    seen = set()
    for plan in run.deliveries:
        if plan.fault is not None and plan.fault not in seen:
            seen.add(plan.fault)
            yield run.faults[plan.fault], plan.observed
    for fault in run.faults:
        if fault.kind in (*SENSED, "hang"):
            yield fault, run.log.begins[0] + fault.at


def beyond(controller: tuple[int, int], bare: tuple[int, int]) -> dict[str, Any]:
    """Whether one loop is late more often than another: each told as (times late, deadlines).

    Under the same rate the controller's share of all late times is binomial in the deadlines; `p` is how likely a share as
    large as the one found would be (one-sided, exact).
    """
    (late, ticks), (other, others) = controller, bare
    total, share = late + other, ticks / max(1, ticks + others)
    p = sum(comb(total, k) * share**k * (1 - share) ** (total - k) for k in range(late, total + 1))
    both = {"controller": controller, "bare": bare}
    per_1000 = {name: [round(1e3 * value, 4) for value in wilson(*pair)[1:]] for name, pair in both.items() if pair[1]}
    return {"delays": both, "per_1000_between": per_1000, "p": round(p, 4)}
