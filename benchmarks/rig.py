"""What `benchmarks.controller` puts around a controller: a robot that keeps its own log, an inference whose traffic is noted,
and a person who kills processes at set times and looks after a stopped robot."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from kinoise.deploy.guards import Action
from kinoise.deploy.inference import Reply, Request
from kinoise.deploy.process import ProcessInference
from kinoise.deploy.robot import ObservationTimeout, Reading
from kinoise.policies.base import Policy

from .faults import KILLED, SENSED, Fault

PHASES = 512
LOOKING = 0.5
"""Seconds from a stop until the person has looked."""


@dataclass
class Log:
    """What the robot saw of the loop; seconds on `time.monotonic()`.

    Args:
        begins: when each reading was asked for: once a tick.
        stamps: when what was shown then was measured; that of the reading before where nothing was.
        sent: when each command came.
        ticks: in which tick that was, as an index of `begins`.
        commands: as they came.
        stops: when it was told to stop; the last time by the loop's end.
    """

    begins: list[float] = field(default_factory=list)
    stamps: list[float] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)
    ticks: list[int] = field(default_factory=list)
    commands: list[Action] = field(default_factory=list)
    stops: list[float] = field(default_factory=list)


class RigRobot:
    """A robot that costs next to nothing: its state wanders through what the policy was trained on, and moves as it is told.

    Args:
        policy: whose observations it shows.
    """

    def __init__(self, policy: Policy) -> None:
        self.spec = policy.spec
        self.halted = threading.Event()
        self.log = Log()
        self._text = policy.texts[0] if policy.spec.language else ""
        phase = np.linspace(0, 2 * np.pi, PHASES, endpoint=False)[:, None]
        self._states, self._fixed = {}, {}
        for key, feature in policy.spec.observations.items():
            stats = policy.stats[key]
            mean, std, low, high = (np.array(item) for item in (stats.mean, stats.std, stats.min, stats.max))
            if feature.kind == "image":
                self._fixed[key] = np.broadcast_to(mean, feature.shape).astype(np.uint8)
            else:
                waves = mean + 0.5 * std * np.sin(phase + np.arange(len(mean)))
                self._states[key] = tuple(item.astype(np.float32) for item in (waves, 0.5 * std, low, high))
        self._where = np.zeros(self.spec.action_dim, np.float32)
        self.begin(())

    def begin(self, faults: tuple[Fault, ...]) -> None:
        """A new log; `faults` are counted from the next observation."""
        self.log = Log()
        self.halted.clear()
        self._stalls = [(fault.at, fault.at + fault.seconds, fault.kind) for fault in faults if fault.kind in SENSED]
        self._newest: Reading | None = None

    @property
    def stalled(self) -> bool:
        """Whether its sensors are, now."""
        return self._stall(time.monotonic()) is not None

    def observe(self) -> Reading:
        now, log = time.monotonic(), self.log
        log.begins.append(now)
        kind = self._stall(now)
        newest = self._newest
        if kind is None or newest is None:
            newest = self._newest = Reading(self._measure(len(log.begins)), self._text, time=now)
        log.stamps.append(newest.time or now)
        if kind == "timeout":
            raise ObservationTimeout("the sensors show nothing")
        return newest

    def command(self, action: Action) -> None:
        log = self.log
        log.sent.append(time.monotonic())
        log.ticks.append(len(log.begins) - 1)
        log.commands.append(action.copy())
        self._where = action if self.spec.control == "absolute" else 0.98 * self._where + 0.02 * action

    def stop(self) -> None:
        self.log.stops.append(time.monotonic())
        self.halted.set()

    def _stall(self, now: float) -> str | None:
        since = now - self.log.begins[0] if self.log.begins else 0.0
        return next((kind for begin, end, kind in self._stalls if begin <= since < end), None)

    def _measure(self, count: int) -> dict[str, np.ndarray]:
        values = dict(self._fixed)
        for key, (waves, scale, low, high) in self._states.items():
            state = waves[count % PHASES].copy()
            moved = min(len(state), len(self._where))
            state[:moved] += scale[:moved] * self._where[:moved]
            values[key] = np.clip(state, low, high)
        return values


class Delivery(NamedTuple):
    """A plan that the loop was given: when, for what question, and what it holds.

    Args:
        time: when it was taken, `asked` when the question was put.
        t0: the time of its first action.
        observed: when what it answers was measured.
        actions: `[chunk, action]`.
        fault: index of the fault that it was made with; None for none.
    """

    time: float
    asked: float
    t0: float
    observed: float
    actions: np.ndarray
    fault: int | None


class NotedInference:
    """A planning process with everything that went to and fro noted, for one run of a loop."""

    def __init__(self, inner: ProcessInference) -> None:
        self.inner = inner
        self.begin()

    def begin(self) -> None:
        """Forgets what was noted."""
        self.deliveries: list[Delivery] = []
        self.restarts: list[float] = []
        self.questions = self.errors = 0
        self._asked = 0.0

    @property
    def busy(self) -> bool:
        return self.inner.busy

    def submit(self, request: Request) -> None:
        self._asked = time.monotonic()
        self.questions += 1
        self.inner.submit(request)

    def poll(self) -> Reply | None:
        reply = self.inner.poll()
        if reply is not None and reply.plan is not None:
            request, fault = reply.request, reply.plan.timing.get("fault")
            observed, actions = request.readings[-1].time or request.time, reply.plan.actions[0].numpy()
            index = None if fault is None else int(fault)
            self.deliveries.append(Delivery(time.monotonic(), self._asked, request.time, observed, actions, index))
        elif reply is not None:
            self.errors += 1
        return reply

    def restart(self) -> None:
        self.restarts.append(time.monotonic())
        self.inner.restart()

    def close(self) -> str:
        return self.inner.close()


class Person(threading.Thread):
    """Kills the planning process when the schedule says so, and resets a stopped controller once all is well again.

    Args:
        reset: of the controller.
        barrier: exists from a `dead` fault until the robot was stopped.
    """

    def __init__(
        self, robot: RigRobot, inference: ProcessInference, reset: Callable[[], None], faults: tuple[Fault, ...], barrier: Path
    ) -> None:
        super().__init__(name="person", daemon=True)
        self.kills: list[tuple[Fault, float]] = []
        self.resets: list[float] = []
        self._robot, self._inference, self._reset, self._barrier = robot, inference, reset, barrier
        self._plan = [fault for fault in faults if fault.kind in KILLED]
        self._over = threading.Event()

    def end(self) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(0.02):
            log = self._robot.log
            if self._plan and log.begins and time.monotonic() >= log.begins[0] + self._plan[0].at:
                self._kill(self._plan.pop(0))
            if self._robot.halted.is_set() and not self._over.wait(LOOKING):
                self._barrier.unlink(missing_ok=True)
                while not (self._inference.ready and not self._robot.stalled):
                    if self._over.wait(0.02):
                        return
                self._robot.halted.clear()
                self.resets.append(time.monotonic())
                self._reset()

    def _kill(self, fault: Fault) -> None:
        """Only a process that is up; its id is the one that our own inference started."""
        pid = self._inference.pid
        if pid is not None and self._inference.ready:
            if fault.kind == "dead":
                self._barrier.touch()
            os.kill(pid, signal.SIGKILL)
            self.kills.append((fault, time.monotonic()))
