"""What plans cost: timed while they are made, and one at a time afterwards."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from ..policies import Policy
from ..spec import Observation, Plan

Asked = tuple[Observation, Sequence[torch.Generator], dict[str, Any]]
"""What a policy was asked: the observation, its rows' generators, and what it was told of the plans before."""


class Stopwatch:
    """An actor that times another one's plans."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.seconds: list[float] = []
        self.batch: list[int] = []
        self.last: Asked | None = None

    def plan(self, obs: Observation, gen: Sequence[torch.Generator], **told: Any) -> Plan:
        begin = time.perf_counter()
        plan = self._policy.plan(obs, gen=gen, **told)
        self.seconds.append(time.perf_counter() - begin)
        self.batch.append(obs.batch)
        self.last = obs, gen, told
        return plan


def batch1(policy: Policy, last: Asked | None, plans: int, seconds: float) -> list[float]:
    """Seconds of plans for one observation while the simulators wait; the first, which warms up, left out."""
    if last is None:
        return []
    obs, gen, told = last
    if "previous" in told:
        told = {**told, "previous": told["previous"].row(0)}
    watch = Stopwatch(policy)
    while len(watch.seconds) <= plans and sum(watch.seconds) < seconds:
        with torch.no_grad():
            watch.plan(obs.rows([0]), gen[:1], **told)
    return watch.seconds[1:] or watch.seconds
