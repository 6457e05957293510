"""Plans for many askers in one thread: questions that wait at the same time share a plan, each with its own noise."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from ..policies.base import Policy
from ..policies.core.budget import Budget
from ..policies.core.random import derived
from ..spec import Plan
from .messages import Question, observation, previous_plan


def connection_generator(seed: int, number: int) -> torch.Generator:
    """The noise of one connection, the `number`-th of a server: a function of both, whoever else is connected."""
    return derived(seed, number)


class Answer(NamedTuple):
    """A plan of one row, how long its question waited and the plan took (seconds), and how many rows it shared it with."""

    plan: Plan
    waited: float
    seconds: float
    rows: int


@dataclass(eq=False)
class Ask:
    question: Question
    gen: torch.Generator
    at: float = field(default_factory=time.monotonic)
    answer: Future[Answer] = field(default_factory=Future)


class Batcher:
    """Plans in a thread of its own.

    Args:
        policy: in eval mode.
        rows: at most so many questions share a plan.
        wait: seconds that a question waits for others, at most, where others could come.
        threads: torch's threads; None leaves torch's own number.

    `company` is how many may ask at all: with one nobody is waited for, and never for more.
    """

    def __init__(self, policy: Policy, *, rows: int, wait: float, threads: int | None = None) -> None:
        self.company = 1
        self._policy, self._rows, self._wait, self._threads = policy, rows, wait, threads
        self._asks: list[Ask] = []
        self._costs: dict[int, float] = {}
        self._changed = threading.Condition()
        self._closed = False
        # A daemon: a plan that never returns must not keep the process alive.
        self._thread = threading.Thread(target=self._work, name="planning", daemon=True)
        self._thread.start()

    def ask(self, question: Question, gen: torch.Generator) -> Future[Answer]:
        """Doesn't wait. What planning raises becomes the future's exception."""
        ask = Ask(question, gen)
        with self._changed:
            self._asks.append(ask)
            self._changed.notify()
        return ask.answer

    def close(self, patience: float) -> bool:
        """Ends the thread when all questions are answered; False when that takes longer than `patience` seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(patience)
        return not self._thread.is_alive()

    def _work(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        while asks := self._next():
            asks = [ask for ask in asks if ask.answer.set_running_or_notify_cancel()]
            if asks:
                self._plan(asks)

    def _next(self) -> list[Ask]:
        """The next questions to answer together, in the order they came; none when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._asks or self._closed)
            self._changed.wait_for(self._complete, self._wait)
            batch = self._alike()
            self._asks = [ask for ask in self._asks if ask not in batch]
            return batch

    def _alike(self) -> list[Ask]:
        """The oldest question, and those that can share a plan with it."""
        return [ask for ask in self._asks if ask.question.kind == self._asks[0].question.kind][: self._rows]

    def _complete(self) -> bool:
        """Whether there is nobody to wait for."""
        return self._closed or len(self._alike()) >= self._rows or len(self._asks) >= self.company

    def _plan(self, asks: list[Ask]) -> None:
        began = time.monotonic()
        states = [ask.gen.get_state() for ask in asks]
        questions = [ask.question for ask in asks]
        first, spec = questions[0], self._policy.spec
        try:
            plan = self._policy.plan(
                observation(questions, spec.language),
                [ask.gen for ask in asks],
                previous=previous_plan(questions, 1 / spec.rate),
                prefix=first.prefix,
                budget=self._budget(asks, began),
            )
            if "evaluation" in plan.timing:
                self._costs[len(asks)] = plan.timing["evaluation"]
            rows = [plan.row(row) for row in range(len(asks))]
        except Exception as error:
            if len(asks) == 1:
                asks[0].answer.set_exception(error)
                return
            for ask, state in zip(asks, states, strict=True):  # one question may have spoilt it: each alone, as if it had been
                ask.gen.set_state(state)
                self._plan([ask])
            return
        seconds = time.monotonic() - began
        for row, ask in zip(rows, asks, strict=True):
            ask.answer.set_result(Answer(row, began - ask.at, seconds, len(asks)))

    def _budget(self, asks: list[Ask], now: float) -> Budget | None:
        """The time that is left to the question that has least of it; what is over already counts as a millisecond."""
        left = [ask.at + ask.question.budget - now for ask in asks if ask.question.budget is not None]
        return Budget(max(1e-3, min(left)), self._costs.get(len(asks))) if left else None
