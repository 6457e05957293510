"""Plans that are made before the clock starts: the first ones allocate and compile, the others say how long they take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..spec import KinoiseError, Plan, Spec
from .clock import Clock
from .inference import Inference, Request
from .latency import DelayEstimate
from .robot import ObservationTimeout, Reading, Robot
from .trajectory import fault

FEWEST, MOST = 3, 20
"""Plans that are measured."""
SECONDS = 2.0
"""After the fewest, no more are begun once they took so long."""
PAUSE = 0.001
"""Seconds between two looks for an answer."""
SENSORS = 10.0
"""Seconds that sensors may take to show something."""


def first_reading(robot: Robot, clock: Clock, stopped: Callable[[], bool]) -> Reading | None:
    """Waits for the sensors; None when `stopped()` before they showed anything.

    Raises ObservationTimeout when they don't in SENSORS seconds, and what else the robot raises.
    """
    began = clock.now()
    while not stopped():
        try:
            return robot.observe()
        except ObservationTimeout:
            if clock.now() - began > SENSORS:
                raise
            clock.sleep_until(clock.now() + PAUSE)
    return None


def warm_up(
    inference: Inference,
    request: Request,
    spec: Spec,
    delay: DelayEstimate,
    clock: Clock,
    stopped: Callable[[], bool],
    *,
    execute: int = 1,
    pin: bool = False,
) -> Plan | None:
    """Plans a few times on `request`, by turns from nothing and from the plan before, as the loop will ask: a replan may cost
    more (a guided prefix takes a backward pass) or be impossible with settings that a first plan ignores. What the plans after
    the first of each kind took is added to `delay`.

    Args:
        execute: actions of the plan before that a replan finds carried out.
        pin: whether it keeps those that are carried out meanwhile.

    Returns the last plan; None when `stopped()` before it came.
    Raises KinoiseError when one could not be made, or is none for a robot of `spec`.
    """
    began, plan = clock.now(), None
    kinds = 3 if pin else 2
    for number in range(kinds + MOST):
        if number >= kinds + FEWEST and clock.now() - began > SECONDS:
            break
        question = replace(request, tick=number, time=clock.now())
        if plan is not None and (number % 2 == 1 or number < kinds):
            length = plan.actions.shape[1]
            elapsed = min(execute, length - 1)
            prefix = min(delay.ticks, length - elapsed) if pin else 0
            if number == 2:  # the loop may ask with a prefix now and without one then
                prefix = 0 if prefix else 1
            question = replace(question, previous=plan, elapsed=elapsed, prefix=prefix)
        inference.submit(question)
        while (reply := inference.poll()) is None:
            if stopped():
                return None
            clock.sleep_until(clock.now() + PAUSE)
        trouble = reply.error if reply.plan is None else fault(reply.plan, spec)
        if reply.plan is None or trouble:
            raise KinoiseError(f"the policy could not plan on the robot's first observation: {trouble}")
        if not reply.plan.actions.isfinite().all():
            raise KinoiseError("the plan on the robot's first observation holds NaN or infinity: take another checkpoint")
        plan = reply.plan
        if number >= kinds:
            delay.add(reply.seconds)
        else:
            began = clock.now()
    return plan
