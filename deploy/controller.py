"""The control loop: a fixed rate on a monotonic clock, in a thread that never waits for the policy.

At tick k the newest observation goes to the inference, when it is idle and its turn has come; the plan arrives at some
later tick k + d. Actions are picked by time: plan step i belongs to time t0 + i dt, where t0 is the time of the observation,
so the first d actions of a late plan are never executed. Without a plan for the present the fallback's ladder takes over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from ..config import UsageError
from .clock import Clock, MonotonicClock, prompt_threads
from .fallback import FallbackConfig, Ladder
from .guards import Action, Guards, still
from .history import History
from .inference import Inference, Reply, Request, Restartable
from .latency import Arrival, DelayEstimate, Record, Stop, check_horizon
from .robot import ObservationTimeout, Robot
from .trajectory import Trajectory, fault, share
from .warmup import first_reading, warm_up


@dataclass
class ControllerConfig:
    """How the loop runs."""

    rate: float = field(default=20.0, metadata={"help": "control steps per second"})
    servo: int = field(default=1, metadata={"help": "commands per control step, on the line from action to action (absolute)"})
    pin: bool = field(
        default=False, metadata={"help": "plans begin with what is carried out before they arrive (policies that can)"}
    )
    budget: float | None = field(default=None, metadata={"help": "seconds that planning may take; null: as long as it takes"})
    fallback: FallbackConfig = field(default_factory=FallbackConfig)

    def __post_init__(self) -> None:
        for name in ("rate", "servo", "budget"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"{name}={value}: expected a number above 0")


@dataclass
class _Question:
    """An open one: when it was asked (seconds), whether its answer can still be used, whether it was given up."""

    request: Request
    asked: float
    void: bool = False
    overdue: bool = False


class Controller:
    """Runs a robot by plans, once.

    Args:
        robot: observed once a tick and commanded `config.servo` times, from the thread that calls `run`.
        inference: where plans come from.
        guards: between the plan and the robot.
        config: rate, joins and fallback. A plan's actions are one tick apart, whatever rate the policy was trained at.
        execute: ticks from one question to the next, when the inference keeps up; fewer where the plan would be over before the
            next one comes.
        history: observations that the policy sees, one a tick; before there are so many the oldest is repeated.
        clock: what time it is.

    Raises:
        UsageError: an execute or history that isn't positive.
    """

    def __init__(
        self,
        robot: Robot,
        inference: Inference,
        guards: Guards,
        config: ControllerConfig,
        *,
        execute: int,
        history: int = 1,
        clock: Clock | None = None,
    ) -> None:
        for name, value in (("execute", execute), ("history", history)):
            if value < 1:
                raise UsageError(f"{name}={value}: expected at least 1")
        self.robot, self.inference, self.guards, self.config, self.execute = robot, inference, guards, config, execute
        self.period = 1 / config.rate
        self.record = Record(self.period)
        self._clock = clock or MonotonicClock()
        self._ladder = Ladder(robot.spec, config.fallback)
        self._delay = DelayEstimate(self.period)
        self._history = History(history, self.period)
        self._start = 0.0
        self._last: Action | None = None
        self._plan: Trajectory | None = None
        self._question: _Question | None = None
        self._asked: int | None = None
        self._trouble = "no plan came"
        self._reset = threading.Event()

    def prepare(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Plans a few times on the robot's first observation, before anything moves, and measures how late plans will be.

        Raises KinoiseError when the policy can't plan, or its plans are over before the next ones come. The inference is
        closed then.
        """
        try:
            reading = first_reading(self.robot, self._clock, stopped)
            if reading is None:
                return
            request = Request(0, 0.0, (reading,) * self._history.length, budget=self.config.budget)
            replans = {"execute": self.execute, "pin": self.config.pin}
            plan = warm_up(self.inference, request, self.robot.spec, self._delay, self._clock, stopped, **replans)
            if plan is not None:
                check_horizon(self._delay, plan.actions.shape[1], self.config.rate, self.config.fallback.hold)
        except BaseException:
            self.inference.close()
            raise

    def run(self, seconds: float, stopped: Callable[[], bool] = lambda: False) -> Record:
        """Runs for `seconds`, until `stopped()`, which is asked every tick, or until the fallback stops the robot and
        `fallback.on_stop` is `end`. The robot is stopped, whatever happens.

        Returns the record, with what went wrong in planning among its `errors`.
        Raises what the robot raises, and KinoiseError for readings from the future.
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
                self.record.add_error(error)
        return self.record

    def reset(self) -> None:
        """Releases a latched stop at the next tick; the loop begins anew. To be called from any thread, by who has looked."""
        self._reset.set()

    def _loop(self, ticks: int, stopped: Callable[[], bool]) -> None:
        self._start, tick = self._clock.now(), 0
        self._history.begin(self._start)
        while tick < ticks and not stopped():
            begin, late = self._wait(tick)
            missed = min(int(late / self.period), ticks - tick)
            tick += missed
            self.record.missed += missed
            if tick == ticks:
                return
            self._tick(tick)
            self.record.add_tick(begin, late, self._clock.now() - begin)
            if self._ladder.rung == "stop" and self.config.fallback.on_stop == "end":
                return
            for slot in range(1, self.config.servo):
                part = slot / self.config.servo
                if self._wait(tick, part)[1] < self.period / self.config.servo:
                    self._send(tick, part)
                else:
                    self.record.missed_commands += 1
            tick += 1

    def _wait(self, tick: int, part: float = 0.0) -> tuple[float, float]:
        """Sleeps until a `part` of a period after `tick`; returns what time it is then, and how late that is."""
        deadline = self._start + (tick + part) * self.period
        self._clock.sleep_until(deadline)
        now = self._clock.now()
        return now, now - deadline

    def _tick(self, tick: int) -> None:
        age = self._observe(tick)
        if self._reset.is_set():
            self._reset.clear()
            self._begin_anew()
            self._ladder.reset()
            self._last = None if self.robot.spec.control == "absolute" else still(self.robot.spec, self._last)
        if (reply := self.inference.poll()) is not None:
            self._take(reply, tick)
        stopped = self._ladder.rung == "stop"
        stale = self.guards.stale(age)
        silent = self._watch()
        rung = self._ladder.step(self._start + tick * self.period, self._supply(tick, age))
        self.record.rungs[rung] += 1
        if rung == "stop":
            if not stopped:
                self.robot.stop()
                reason = f"the newest observation is {age:.2f} s old" if stale else silent or self._trouble
                self.record.stops.append(Stop(tick, reason))
            return
        self._send(tick)
        if self._history.readings and not stale and not self.inference.busy and self._due(tick):
            self._ask(tick)

    def _observe(self, tick: int) -> float:
        """Takes the newest reading; returns its age in seconds."""
        episode = self._history.episode
        try:
            reading = self.robot.observe()
        except ObservationTimeout:
            self.record.unseen += 1
        else:
            self._history.add(reading, tick, self._start + tick * self.period, self._clock.now())
            if episode is not None and reading.episode != episode:
                self._begin_anew()
                self._last = None
                if self._ladder.rung != "stop":
                    self._ladder.reset()
        return self._clock.now() - self._history.seen

    def _begin_anew(self) -> None:
        """Nothing from before is followed, nor what was asked before."""
        self._plan, self._asked = None, None
        if self._question is not None:
            self._question.void = True

    def _watch(self) -> str:
        """Has a silent inference started again, if it can be; says that it is silent, "" when it isn't."""
        question = self._question
        if question is None:
            return ""
        silence = self._clock.now() - question.asked
        if not question.overdue and self.guards.overdue(silence):
            question.overdue = True
            if isinstance(self.inference, Restartable):
                self.inference.restart()
        return f"the inference has been silent for {silence:.2f} s" if question.overdue else ""

    def _supply(self, tick: int, age: float) -> Literal["new", "old", "none"]:
        """What there is to follow at `tick`. On an old observation the plan is followed for a while, but not to its end."""
        plan, stale = self._plan, self.guards.config.stale
        if plan is None or plan.left(tick) <= 0:
            self._plan = None
            return "none"
        if stale is not None and age > 2 * stale:
            return "none"
        late = self._delay.ticks
        return "new" if tick < plan.tick + max(self._interval(plan), late) + late else "old"

    def _interval(self, plan: Trajectory) -> int:
        """Ticks from the question that `plan` answers to the next."""
        return max(1, min(self.execute, plan.length - self._delay.ticks))

    def _due(self, tick: int) -> bool:
        return self._plan is None or self._asked is None or tick - self._asked >= self._interval(self._plan)

    def _send(self, tick: int, part: float = 0.0) -> None:
        """The command for a `part` of a period after `tick`, past the guards."""
        spec, servo, rung = self.robot.spec, self.config.servo, self._ladder.rung
        if rung == "stop":
            return
        if part == 0 or spec.control == "absolute":
            if rung == "hold" or self._plan is None:
                command = self._ladder.hold(self._last)
            elif spec.control == "absolute":
                command = self.guards(self._plan.between(tick, part, spec), self._last, self.period / servo)
            else:
                command = self.guards(self._plan.action(tick), self._last, self.period)
            self._last = command
        if self._last is not None:
            self.robot.command(self._last if spec.control == "absolute" else share(self._last, servo, spec))

    def _ask(self, tick: int) -> None:
        self._asked = tick
        seen = self._history.tick
        request = Request(seen, self._start + seen * self.period, self._history.readings, budget=self.config.budget)
        if self._plan is not None and self._plan.left(seen) > 0:
            elapsed = max(0, seen - self._plan.tick)
            prefix = min(self._delay.ticks, self._plan.length - elapsed) if self.config.pin else 0
            request = replace(request, previous=self._plan.plan, elapsed=elapsed, prefix=prefix)
        self._question = _Question(request, self._clock.now())
        self.inference.submit(request)

    def _take(self, reply: Reply, tick: int) -> None:
        question, self._question = self._question, None
        request, plan = reply.request, reply.plan
        error = reply.error if plan is None else fault(plan, self.robot.spec)
        if plan is None or error:
            self.record.add_error(error)
            self._asked, self._trouble = None, error
            return
        if question is not None:
            self._delay.add(reply.seconds + question.asked - request.time)
        seen = request.readings[-1].time
        plan = replace(
            plan,
            actions=plan.actions.detach(),
            t0=request.time,
            obs_time=request.time if seen is None else seen,
            dt=self.period,
        )
        trajectory, delay = Trajectory(plan, request.tick), tick - request.tick
        if question is None or question.void:
            outcome = "stale"
        elif not plan.actions.isfinite().all():
            outcome = "nan"
            self.guards.interventions["nan"] += 1
            self._asked, self._trouble = None, "plans hold NaN or infinity"
        elif trajectory.left(tick) <= 0:
            outcome = "expired"
            self._trouble = f"plans of {trajectory.length} actions come {delay} ticks late"
        else:
            outcome = "used"
            self._plan, self._trouble = trajectory, "no plan came after the last"
        self.record.add_arrival(Arrival(request.tick, delay, reply.seconds, plan.nfe, outcome))
