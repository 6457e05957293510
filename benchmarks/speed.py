"""Seconds of things done in turn, in one process: every round does each once, and who begins moves on by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # worker processes import the benchmarks too: they are not to load torch
    from kinoise.data.base import EpisodeStore
    from kinoise.policies import Policy
    from kinoise.spec import Observation, Plan

    from .played import Row

WARMUP = 3
"""Rounds that don't count."""


def alternate(sides: Mapping[str, Callable[[int], float]], rounds: int) -> dict[str, list[float]]:
    """By side, its seconds in each round.

    Args:
        sides: each does its work for the round of that number and says how many seconds it took. The first rounds, which
            don't count, have negative numbers.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(-WARMUP, rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            seconds = sides[name](number)
            if number >= 0:
                times[name].append(seconds)
    return times


def observations(policy: Policy, store: EpisodeStore, count: int, seed: int) -> list[Observation]:
    """Single ones, at random places of demonstrations."""
    import numpy as np
    from kinoise.data.windows import Windows

    windows = Windows(store, policy.config.chunk, policy.config.history, keys=list(policy.spec.observations))
    places = np.random.default_rng(seed).choice(len(windows), min(count, len(windows)), replace=False)
    return [windows.batch(places[i : i + 1]).observation for i in range(len(places))]


class Planner:
    """Plans by a row for one observation after the other. A warm row goes on from a full plan for the same one.

    Args:
        row: how to plan.
        seen: what is observed, in turn.
    """

    def __init__(self, row: Row, seen: Sequence[Observation]) -> None:
        self.row, self.seen = row, seen
        self.made: Plan | None = None
        self._before: dict[int, Plan] = {}

    def __call__(self, number: int) -> float:
        """Seconds of the plan of that number, whose noise depends on the number alone. Afterwards `made` is the plan."""
        import torch

        policy, index = self.row.take(), number % len(self.seen)
        previous: dict[str, Plan | int] = {}
        if self.row.decode.warm < 1:
            if index not in self._before:
                self._before[index] = policy.plan(self.seen[index], [torch.Generator().manual_seed(index)])
            previous = {"previous": self._before[index], "elapsed": self.row.execute}
        gen = torch.Generator().manual_seed(index)
        started = time.perf_counter()
        self.made = policy.plan(self.seen[index], [gen], **previous)  # type: ignore[arg-type]
        return time.perf_counter() - started


def as_fast(seconds: float, known: Mapping[int, float]) -> int:
    """How many steps take `seconds`, on the line through what two numbers of steps take; one at least."""
    (few, short), (many, long) = sorted(known.items())
    per_step = (long - short) / (many - few)
    return max(1, round(few + (seconds - short) / per_step)) if per_step > 0 else few
