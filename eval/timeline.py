"""One episode's plans in the simulator's time: when each is asked for and there, and what the robot does meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ..deploy.guards import still
from ..spec import Plan
from .latency import Late


class Carried(NamedTuple):
    """What a policy had carried out in an episode.

    Args:
        actions: physical units.
        joins: the steps at which a plan began to have its say.
        held: how many of the actions came from no plan.
        delays: by how many steps the replans came late.
        nfe: network evaluations that each plan needed.
        cold: for each replan that could start from the plan before, whether the gate had it start from noise.
    """

    actions: Float[np.ndarray, "steps action"]
    joins: tuple[int, ...]
    held: int
    delays: tuple[int, ...]
    nfe: tuple[int, ...] = ()
    cold: tuple[bool, ...] = ()


@dataclass(frozen=True)
class _Known:
    """A plan that is there from step `there` on and answers the observation of step `begin`."""

    plan: Plan
    begin: int
    there: int

    @property
    def end(self) -> int:
        return self.begin + self.plan.actions.shape[1]


class Timeline:
    """An episode from the planner's side.

    The first plan is waited for. A further one is asked for `execute` steps after the last was, or as soon as that is there,
    whichever is later: one question at a time, as the control loop does it.

    Args:
        execute: steps from one question to the next, when plans keep up.
        late: by how many steps plans come late, and what robot is held where no plan is there; None for never.
        seed: the episode's, which the delays are drawn by.
        ensemble: each action is a mean over all plans at hand that know of its step, with weights exp(-ensemble i), i = 0 the
            oldest (ACT, arXiv 2304.13705, algorithm 2); None: the newest plan's.
    """

    def __init__(self, execute: int, late: Late | None = None, seed: int = 0, ensemble: float | None = None) -> None:
        self._execute, self._late, self._ensemble = execute, late, ensemble
        self._delays = late.delays(seed) if late else repeat(0)
        self._step = 0
        self._known: list[_Known] = []
        self._sent: list[Float[np.ndarray, "steps action"]] = []
        self._joins: list[int] = []
        self._held: list[int] = []
        self._drawn: list[int] = []
        self._nfe: list[int] = []
        self._cold: list[bool] = []

    @property
    def previous(self) -> tuple[Plan, int] | None:
        """The plan that the next one follows, and how many of its actions have passed.

        None at the beginning, when it has run out, and when it holds NaN, on which nothing can follow.
        """
        if not self._known:
            return None
        last = self._known[-1]
        return (last.plan, self._step - last.begin) if self._step <= last.end and last.plan.actions.isfinite().all() else None

    def take(self, plan: Plan, prefix: int = 0) -> Float[np.ndarray, "steps action"]:
        """The answer to this step's observation; returns what is carried out until the next question.

        Args:
            plan: of one row.
            prefix: how many of its first actions it was told to keep.
        """
        begin, chunk = self._step, plan.actions.shape[1]
        self._nfe.append(plan.nfe)
        self._cold += plan.cold
        delay = 0 if begin == 0 else next(self._delays)
        if begin:
            self._drawn.append(delay)
        there = begin + delay
        if delay < chunk:
            self._known.append(_Known(plan, begin, there))
            self._join(there, begin + max(delay, min(prefix, chunk)))
        self._step += max(self._execute, delay)
        actions = self._actions(begin, self._step, plan.actions.shape[2])
        self._known = [item for item in self._known if item.end > self._step] or self._known[-1:]
        self._sent.append(actions)
        return actions

    def carried(self, steps: int) -> Carried:
        """What was carried out, of an episode that has ended after so many steps."""
        actions = np.concatenate(self._sent)[:steps] if self._sent else np.zeros((0, 0), np.float32)
        joins = tuple(step for step in self._joins if step < steps)
        held = sum(step < steps for step in self._held)
        return Carried(actions, joins, held, tuple(self._drawn), tuple(self._nfe), tuple(self._cold))

    def _join(self, there: int, first: int) -> None:
        """Notes the first step that is this plan's own. Those before it whose own steps never came are forgotten."""
        if there == 0:
            return
        while self._joins and self._joins[-1] > there:
            self._joins.pop()
        if not self._joins or self._joins[-1] < first:
            self._joins.append(first)

    def _actions(self, begin: int, end: int, size: int) -> Float[np.ndarray, "steps action"]:
        """What is carried out in these steps, by the plans that are there."""
        newest = self._known[-1] if self._known else None
        if self._ensemble is None and newest is not None and newest.there <= begin and newest.end >= end:
            return newest.plan.actions[0, begin - newest.begin : end - newest.begin].numpy()
        found, weights = np.zeros((end - begin, size)), np.zeros((end - begin, 1))
        count = np.zeros((end - begin, 1), int)
        for item in self._known:
            first, last = max(item.there, begin), min(item.end, end)
            if first >= last:
                continue
            own = item.plan.actions[0, first - item.begin : last - item.begin].numpy()
            steps = slice(first - begin, last - begin)
            if self._ensemble is None:
                found[steps], weights[steps] = own, 1
            else:
                weight = np.exp(-self._ensemble * count[steps])
                found[steps] += weight * own
                weights[steps] += weight
            count[steps] += 1
        known = count[:, 0] > 0
        found[known] /= weights[known]
        return self._filled(begin, found.astype(np.float32), known)

    def _filled(
        self, begin: int, actions: Float[np.ndarray, "steps action"], known: Bool[np.ndarray, "steps"]
    ) -> Float[np.ndarray, "steps action"]:
        """`actions`, with the robot held where nothing is known."""
        for row in np.flatnonzero(~known):
            assert self._late is not None
            last = actions[row - 1] if row else self._sent[-1][-1]
            held = still(self._late.spec, last.astype(np.float32))
            assert held is not None
            actions[row] = held
            self._held.append(begin + int(row))
        return actions
