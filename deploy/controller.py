"""The control loop: a fixed rate on a monotonic clock, in a thread that never waits for the policy.

At tick k the newest observation goes to the inference, when it is idle and its turn has come; the plan arrives at some
later tick k + d. Actions are picked by time: plan step i belongs to time t0 + i dt, where t0 is the time of the observation,
so the first d actions of a late plan are never executed. Without a plan for the present the robot holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

import torch

from ..spec import KinoiseError, Plan
from .clock import Clock, MonotonicClock, prompt_threads
from .guards import Action, Guards, hold
from .inference import Inference, Reply, Request
from .latency import Arrival, Record
from .robot import Reading, Robot

WINDOW = 20
"""Plans whose delays say how late the next may be."""


class Controller:
    """Runs a robot by plans, one run at a time.

    Args:
        robot: observed and commanded once a tick, from the thread that calls `run`.
        inference: where plans come from.
        guards: between the plan and the robot.
        rate: ticks per second. A plan's actions are one tick apart, whatever rate the policy was trained at.
        execute: ticks from one observation that is planned on to the next, when the inference keeps up.
        history: readings that the policy sees, one a tick; before there are so many the oldest is repeated.
        pin: ask for plans that begin with the actions that will have been carried out when they arrive, as many as the last
            WINDOW plans took ticks at most: so a late plan goes on where the one before is left.
        clock: what time it is.

    Raises:
        KinoiseError: a rate, execute or history that isn't positive.
    """

    def __init__(
        self,
        robot: Robot,
        inference: Inference,
        guards: Guards,
        *,
        rate: float,
        execute: int,
        history: int = 1,
        pin: bool = False,
        clock: Clock | None = None,
    ) -> None:
        for name, value in (("rate", rate), ("execute", execute), ("history", history)):
            if not value > 0:
                raise KinoiseError(f"{name}={value}: expected more than 0")
        self.robot, self.inference, self.guards = robot, inference, guards
        self.period, self.execute, self.pin = 1 / rate, execute, pin
        self.record = Record(self.period)
        self._clock = clock or MonotonicClock()
        self._readings: deque[Reading] = deque(maxlen=history)
        self._last: Action | None = None
        self._plan: Plan | None = None
        self._asked: int | None = None

    def run(self, seconds: float, stopped: Callable[[], bool] = lambda: False) -> Record:
        """Runs for `seconds`, or until `stopped()`, which is asked every tick. The robot is stopped, whatever happens.

        Returns the record, with what went wrong in planning among its `errors`.
        Raises what the robot raises.
        """
        try:
            with prompt_threads():
                self._loop(round(seconds / self.period), stopped)
        finally:
            self.robot.stop()
            trouble = self.inference.close()
        reply = self.inference.poll()
        for error in (trouble, reply.error if reply else ""):
            if error:
                self.record.errors[error] += 1
        return self.record

    def _loop(self, ticks: int, stopped: Callable[[], bool]) -> None:
        start, tick = self._clock.now(), 0
        while tick < ticks and not stopped():
            deadline = start + tick * self.period
            self._clock.sleep_until(deadline)
            begin = self._clock.now()
            missed = int((begin - deadline) / self.period)
            self._tick(tick + missed, start + (tick + missed) * self.period, missed)
            self.record.missed += missed
            self.record.begins.append(begin)
            self.record.late.append(begin - deadline)
            self.record.work.append(self._clock.now() - begin)
            tick += missed + 1

    def _tick(self, tick: int, time: float, missed: int) -> None:
        self._remember(self.robot.observe(), missed)
        reply = self.inference.poll()
        if reply is not None:
            self._take(reply, tick, time)
        action = self._planned(time)
        if action is None:
            self.record.holds += 1
            command = hold(self.robot.spec, self._last)
        else:
            command = self.guards(action, self._last)
        if command is not None:
            self.robot.command(command)
            self._last = command
        if not self.inference.busy and (self._plan is None or self._asked is None or tick - self._asked >= self.execute):
            self._ask(tick, time)

    def _remember(self, reading: Reading, missed: int) -> None:
        """Keeps one reading a tick. What a missed tick would have shown is unknown: the reading before stands for it."""
        if self._readings and self._readings[-1].episode != reading.episode:
            self._readings.clear()
            self._plan, self._last, self._asked = None, None, None
        if not self._readings:
            self._readings.extend([reading] * (self._readings.maxlen or 1))
        else:
            self._readings.extend([self._readings[-1]] * min(missed, len(self._readings)))
            self._readings.append(reading)

    def _ask(self, tick: int, time: float) -> None:
        self._asked = tick
        plan, readings = self._plan, tuple(self._readings)
        if plan is None or not plan.actions.isfinite().all():  # nothing can follow on NaN, from which the guards keep the robot
            self.inference.submit(Request(tick, time, readings))
            return
        elapsed = self._step(plan, time)
        late = max((item.delay for item in self.record.arrivals[-WINDOW:]), default=0)
        prefix = min(late, plan.actions.shape[1] - elapsed) if self.pin else 0
        self.inference.submit(Request(tick, time, readings, plan, elapsed, prefix))

    def _take(self, reply: Reply, tick: int, time: float) -> None:
        request, plan = reply.request, reply.plan
        error = reply.error if plan is None else self._fault(plan)
        if plan is None or error:
            self.record.errors[error] += 1
            self._asked = None
            return
        plan = replace(plan, actions=plan.actions.detach(), t0=request.time, obs_time=request.time, dt=self.period)
        if request.readings[-1].episode != self._readings[-1].episode:
            outcome = "stale"
        elif self._step(plan, time) >= plan.actions.shape[1]:
            outcome = "expired"
        else:
            outcome = "used"
            self._plan = plan
        self.record.arrivals.append(Arrival(request.tick, tick - request.tick, reply.seconds, plan.nfe, outcome))

    def _fault(self, plan: Plan) -> str:
        """What makes `plan` unusable, "" when nothing does."""
        actions, wanted = plan.actions, self.robot.spec.action_dim
        if actions.ndim == 3 and actions.shape[::2] == (1, wanted) and actions.dtype == torch.float32 and actions.is_cpu:
            return ""
        found = f"{actions.dtype} of shape {list(actions.shape)} on {actions.device}"
        return f"expected a plan in float32 of shape [1, chunk, {wanted}] on the CPU, it is {found}"

    def _planned(self, time: float) -> Action | None:
        """The plan's action for `time`; None when there is no plan or it has run out."""
        if self._plan is None:
            return None
        step = self._step(self._plan, time)
        if step >= self._plan.actions.shape[1]:
            self._plan = None
            return None
        return self._plan.actions[0, step].numpy()

    @staticmethod
    def _step(plan: Plan, time: float) -> int:
        return round((time - plan.t0) / plan.dt)
