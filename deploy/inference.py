"""Planning beside the loop: a question goes in, an answer comes out later, or never."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from ..policies.base import Policy
from ..policies.core.random import derived
from ..spec import Observation, Plan
from .clock import Clock, MonotonicClock
from .robot import Reading


@dataclass(frozen=True)
class Request:
    """What a plan is asked for.

    Args:
        tick: that the newest reading belongs to: the plan's first action is for it.
        time: of that tick's deadline, seconds on the loop's clock.
        readings: the observation history, oldest first.
        previous: the plan that is being carried out, if there is one.
        elapsed: actions of it whose time was before `tick`.
        prefix: how many of those that follow are carried out whatever the answer.
        budget: seconds that planning may take; None for as long as it takes.
    """

    tick: int
    time: float
    readings: tuple[Reading, ...]
    previous: Plan | None = None
    elapsed: int = 0
    prefix: int = 0
    budget: float | None = None


@dataclass(frozen=True)
class Reply:
    """An answer: a plan, or why there is none; `seconds` from the question to the answer."""

    request: Request
    plan: Plan | None
    error: str
    seconds: float


Planner = Callable[[Request], Plan]


@runtime_checkable
class Inference(Protocol):
    """One question at a time; no call waits for an answer."""

    @property
    def busy(self) -> bool:
        """Whether a question is open: asked, and its reply not yet taken."""
        ...

    def submit(self, request: Request) -> None: ...

    def poll(self) -> Reply | None:
        """The reply to the open question, once, when there is one."""
        ...

    def close(self) -> str:
        """Ends planning; says what was wrong with the way it ended, "" when nothing was."""
        ...


@runtime_checkable
class Restartable(Protocol):
    """An inference that can be begun again when it is silent for too long; others are left to themselves."""

    def restart(self) -> None:
        """Begins planning afresh, without waiting for it. An open question is answered, by an error.

        While it is beginning already, that is left to it; questions are taken meanwhile, and wait.
        """
        ...


class ThreadInference:
    """Plans in a thread of this process.

    Args:
        planner: called in that thread. What it raises becomes the reply's error.
        threads: torch's threads for it; None leaves torch's own number.
        patience: how long `close` waits for a plan under way, seconds.
    """

    def __init__(
        self, planner: Planner, *, threads: int | None = None, patience: float = 2.0, clock: Clock | None = None
    ) -> None:
        self._planner, self._threads, self._patience = planner, threads, patience
        self._clock = clock or MonotonicClock()
        self._requests: queue.SimpleQueue[tuple[Request, float] | None] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[Reply] = queue.SimpleQueue()
        self._asked: float | None = None
        # A daemon: a plan that never returns must not keep the process alive.
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        return self._asked is not None

    def submit(self, request: Request) -> None:
        self._asked = self._clock.now()
        self._requests.put((request, self._asked))

    def poll(self) -> Reply | None:
        try:
            reply = self._replies.get_nowait()
        except queue.Empty:
            return None
        self._asked = None
        return reply

    def close(self) -> str:
        self._requests.put(None)
        self._thread.join(self._patience)
        if not self._thread.is_alive() or self._asked is None:
            return ""
        return f"planning did not return: the last plan was asked for {self._clock.now() - self._asked:.1f} s before the end"

    def _work(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        while (item := self._requests.get()) is not None:
            request, asked = item
            plan, error = None, ""
            try:
                plan = self._planner(request)
            except Exception as raised:  # whatever it is, the loop goes on and the run reports it
                error = f"planning failed: {type(raised).__name__}: {' '.join(str(raised).split())}"
            self._replies.put(Reply(request, plan, error, self._clock.now() - asked))


def tick_generator(seed: int, tick: int) -> torch.Generator:
    """The noise of the plan that answers the observation of `tick`: a function of both, whatever was planned before."""
    return derived(seed, tick)


class PolicyPlanner:
    """A policy as a planner. A plan depends on the seed and on its request alone, so a recorded request can be planned again.

    Args:
        policy: in eval mode.
        seed: with a request's tick, of the noise that its plan is made from.
    """

    def __init__(self, policy: Policy, seed: int = 0) -> None:
        self.policy, self.seed = policy, seed

    def __call__(self, request: Request) -> Plan:
        return self.policy.plan(
            self.observation(request.readings),
            tick_generator(self.seed, request.tick),
            previous=request.previous,
            elapsed=request.elapsed,
            prefix=request.prefix,
            budget=request.budget,
        )

    def observation(self, readings: tuple[Reading, ...]) -> Observation:
        """A batch of one, with the observations that the policy uses; no instruction where the policy knows no language."""
        values = {
            key: torch.from_numpy(np.stack([reading.values[key] for reading in readings]))[None]
            for key in self.policy.spec.observations
        }
        if not self.policy.spec.language:
            return Observation(values)
        return Observation(values, (readings[-1].instruction,), torch.zeros(1, dtype=torch.int64))
