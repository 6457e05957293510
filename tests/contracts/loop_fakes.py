"""A robot, an inference and a clock for the control loop that do exactly what a test says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from kinoise.deploy.controller import Controller, ControllerConfig
from kinoise.deploy.fallback import FallbackConfig
from kinoise.deploy.guards import GuardConfig, Guards
from kinoise.deploy.inference import Reply, Request
from kinoise.deploy.latency import Record
from kinoise.deploy.robot import Reading
from kinoise.spec import Feature, Plan, Spec

RATE, CHUNK, EXECUTE = 20.0, 8, 4
PERIOD, START = 1 / RATE, 100.0
GRIPPER = 2


def make_spec(control: str = "delta") -> Spec:
    action = Feature((3,), low=(-1e3,) * 3, high=(1e3,) * 3)
    return Spec({"state": Feature((1,))}, action, rate=80.0, control=control, gripper=(GRIPPER,), language=False)


def tick_of(time: float) -> int:
    return round((time - START) / PERIOD)


class FakeClock:
    """Time passes by sleeping, `oversleep` seconds too long each time, and when a test adds to `time`."""

    def __init__(self, oversleep: float = 0.0) -> None:
        self.time, self.oversleep = START, oversleep

    def now(self) -> float:
        return self.time

    def sleep_until(self, deadline: float) -> None:
        if deadline > self.time:
            self.time = deadline + self.oversleep


class FakeRobot:
    """Observes a count of its observations; `before` runs at each, with that count. Nothing may be commanded once stopped."""

    def __init__(self, clock: FakeClock, control: str = "delta", before: Callable[[int], Any] = lambda count: None) -> None:
        self.spec = make_spec(control)
        self.clock, self.before = clock, before
        self.count, self.episode, self.stops = 0, 0, 0
        self.stamp: float | None = None
        self.sent: list[tuple[float, np.ndarray]] = []

    @property
    def commands(self) -> dict[int, np.ndarray]:
        """The last command of each tick."""
        return {tick_of(time): action for time, action in self.sent}

    def observe(self) -> Reading:
        self.before(self.count)
        reading = Reading({"state": np.float32([self.count])}, "", self.episode, self.stamp)
        self.count += 1
        return reading

    def command(self, action: np.ndarray) -> None:
        assert not self.stops
        self.sent.append((self.clock.now(), action.copy()))

    def stop(self) -> None:
        self.stops += 1


def plan_of(request: Request) -> Plan:
    """Each action names the tick that it is for, and the tick that its plan was asked at; the gripper is 5."""
    steps = torch.arange(request.tick, request.tick + CHUNK, dtype=torch.float32)
    actions = torch.stack([steps, torch.full_like(steps, request.tick), torch.full_like(steps, 5.0)], -1)
    return Plan(actions[None], dt=1 / 80, nfe=3)


class FakeInference:
    """Answers `delay` ticks after the question, with a plan or an error; not at all while `dead`."""

    def __init__(self, clock: FakeClock, delay: float, answer: Callable[[Request], Plan | str] = plan_of) -> None:
        self.clock, self.delay, self.answer = clock, delay, answer
        self.requests: list[Request] = []
        self.busy, self.dead = False, False
        self.asked = 0.0
        self.closed = 0

    def submit(self, request: Request) -> None:
        assert not self.busy
        self.requests.append(request)
        self.busy, self.asked = True, self.clock.now()

    def poll(self) -> Reply | None:
        if not self.busy or self.dead or self.clock.now() < self.asked + (self.delay - 0.5) * PERIOD:
            return None
        self.busy = False
        answer = self.answer(self.requests[-1])
        plan, error = (None, answer) if isinstance(answer, str) else (answer, "")
        return Reply(self.requests[-1], plan, error, self.delay * PERIOD)

    def close(self) -> str:
        self.closed += 1
        return ""


class Restarting(FakeInference):
    """One that comes to life again when it is begun again."""

    restarts = 0

    def restart(self) -> None:
        self.restarts += 1
        self.busy = self.dead = False


class Setup:
    """A controller with its fakes; keywords are settings of the controller, `hold`, `decay` and `on_stop` of its fallback."""

    def __init__(
        self,
        delay: float = 1,
        control: str = "delta",
        *,
        execute: int = EXECUTE,
        history: int = 1,
        oversleep: float = 0.0,
        before: Callable[[int], Any] = lambda count: None,
        answer: Callable[[Request], Plan | str] = plan_of,
        inference: type[FakeInference] = FakeInference,
        guards: GuardConfig | None = None,
        hold: float = 60.0,
        decay: float = 0.0,
        on_stop: str = "end",
        **settings: Any,
    ) -> None:
        self.clock = FakeClock(oversleep)
        self.robot = FakeRobot(self.clock, control, before)
        self.inference = inference(self.clock, delay, answer)
        self.guards = Guards(self.robot.spec, guards or GuardConfig(jump=None, velocity=None))
        config = ControllerConfig(**{"rate": RATE, **settings}, fallback=FallbackConfig(hold, decay, on_stop))
        self.controller = Controller(
            self.robot, self.inference, self.guards, config, execute=execute, history=history, clock=self.clock
        )

    def run(self, ticks: int) -> Record:
        return self.controller.run(ticks * PERIOD)
