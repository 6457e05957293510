"""The two sides of `benchmarks.controller`: a stretch of the controller among faults, and one of the bare loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from kinoise.deploy.clock import MonotonicClock, prompt_threads
from kinoise.deploy.controller import Controller, ControllerConfig
from kinoise.deploy.fallback import FallbackConfig
from kinoise.deploy.guards import GuardConfig, Guards, still
from kinoise.deploy.inferences import Load
from kinoise.deploy.latency import Record
from kinoise.deploy.process import ProcessInference
from kinoise.policies.base import Policy

from .faults import PATIENT_S, Fault, FaultyLoad, schedule
from .rig import NotedInference, Person, RigRobot
from .verdicts import Run


@dataclass(frozen=True)
class Bench:
    """What all segments share."""

    policy: Policy
    robot: RigRobot
    checkpoint: Path
    threads: int
    rate: float
    seed: int
    place: Path

    @property
    def execute(self) -> int:
        return self.policy.config.execute


@dataclass(frozen=True)
class Punctuality:
    """How a loop kept time.

    Args:
        deadlines, missed: how many there were, and how many of them had no tick.
        begins, late, work: when each tick began, how late that was, and how long it took; seconds.
        starts: from when to when planning processes were starting beside it, seconds on `time.monotonic()`.
    """

    deadlines: int
    missed: int
    begins: list[float]
    late: list[float]
    work: list[float]
    period: float
    starts: Sequence[tuple[float, float]] = ()

    @property
    def delays(self) -> list[tuple[float, float]]:
        """Those of a period or more, each of which misses one tick or several: seconds from the start, and how late."""
        pairs = zip(self.begins, self.late, strict=True)
        return [(begin - self.begins[0], late) for begin, late in pairs if late >= self.period]

    def counts(self, starting: bool) -> tuple[int, int]:
        """Delays and deadlines while a planning process was starting, or while none was."""
        at = self.begins[0] + self.period * np.arange(self.deadlines)
        deadlines = sum(self._starting(time) == starting for time in at)
        return sum(self._starting(self.begins[0] + time - late) == starting for time, late in self.delays), deadlines

    def _starting(self, time: float) -> bool:
        return any(begin <= time < end for begin, end in self.starts)


@dataclass(frozen=True)
class Segment:
    """A stretch of the controller: from outside, and what it says of itself."""

    large: str
    run: Run
    time: Punctuality
    record: Record
    interventions: dict[str, int]
    traffic: dict[str, int]


def bare(robot: RigRobot, rate: float, seconds: float) -> Punctuality:
    """The loop with nothing in it but the robot: it is told to stand still."""
    robot.begin(())
    clock, period, ticks = MonotonicClock(), 1 / rate, round(seconds * rate)
    command, late, work = still(robot.spec, np.zeros(robot.spec.action_dim, np.float32)), [], []
    assert command is not None
    with prompt_threads():
        start, tick = clock.now(), 0
        while tick < ticks:
            deadline = start + tick * period
            clock.sleep_until(deadline)
            begin = clock.now()
            robot.observe()
            robot.command(command)
            late.append(begin - deadline)
            work.append(clock.now() - begin)
            tick += 1 + int((begin - deadline) / period)
    return Punctuality(ticks, ticks - len(robot.log.begins), robot.log.begins, late, work, period)


def controlled(bench: Bench, large: str, seconds: float, waits: tuple[float, float], rng: np.random.Generator) -> Segment:
    """The controller for `seconds`, with a planning process of its own.

    Args:
        large: the large fault.
        waits: seconds of holding before the robot is stopped, where the large fault is none that has time to be ridden out,
            and of silence before the inference is begun again.

    Raises:
        KinoiseError: the policy can't plan in time on this machine.
    """
    hold, heartbeat = waits
    robot, guards = bench.robot, GuardConfig(heartbeat=heartbeat)
    assert guards.stale is not None
    patient = large in ("kill", "hang")
    fallback = FallbackConfig(hold=PATIENT_S if patient else hold, on_stop="wait")
    config = ControllerConfig(rate=bench.rate, fallback=fallback)
    faults: tuple[Fault, ...] = schedule(large, seconds, bench.rate, 2 * guards.stale + hold + 1, rng)
    barrier = bench.place / "barrier"
    load = Load(bench.checkpoint, True, "cpu", {}, bench.seed)
    noted = NotedInference(ProcessInference(FaultyLoad(load, faults, bench.rate, barrier), threads=bench.threads))
    watch = Guards(robot.spec, guards)
    controller = Controller(robot, noted, watch, config, execute=bench.execute, history=bench.policy.config.history)
    robot.begin(())
    noted.inner.about()
    controller.prepare()
    robot.begin(faults)
    noted.begin()
    person = Person(robot, noted.inner, controller.reset, faults, barrier)
    person.start()
    try:
        record = controller.run(seconds)
    finally:
        person.end()
        barrier.unlink(missing_ok=True)
    log = robot.log
    end = min(log.stops[-1], log.begins[-1] + 1 / bench.rate)
    resets = [item for item in person.resets if item < end]
    run = Run(log, noted.deliveries, resets, person.kills, faults, robot.spec, config, guards, end)
    starting = [time for _, time in person.kills] + noted.restarts
    starts = [(time, next((plan.time for plan in noted.deliveries if plan.observed > time), end)) for time in starting]
    deadlines = round(seconds * bench.rate)
    time_kept = Punctuality(
        deadlines, deadlines - len(log.begins), log.begins, record.late, record.work, 1 / bench.rate, starts
    )
    traffic = {
        "questions": noted.questions,
        "plans": len(noted.deliveries),
        "errors": noted.errors,
        "restarts": len(noted.restarts),
    }
    return Segment(large, run, time_kept, record, dict(watch.interventions), traffic)
