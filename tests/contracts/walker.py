"""For tests of rollouts: policies that walk to line_world's goal, its episodes, and what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from kinoise.envs import episode_seed
from kinoise.eval.slot import Driver, Job, Outcome, Terms
from kinoise.policies import DecodeConfig, Policy, PolicyConfig
from kinoise.policies.core.process.base import Losses
from kinoise.policies.core.random import Gen, normal
from kinoise.policies.replan import Start
from kinoise.spec import Batch, Observation, Plan, Spec, Stats
from line_world import HORIZON, SPEC

CHUNK = 8
TERMS = Terms(history=1, keys=("state",), horizon=HORIZON)


class Walker:
    """Walks to the goal, with noise from the episodes' generators, and remembers what it was asked."""

    def __init__(self, noise: float = 0.005) -> None:
        self.noise = noise
        self.asked: list[Observation] = []

    def plan(self, obs: Observation, gen: Sequence[torch.Generator]) -> Plan:
        self.asked.append(obs)
        gap = (obs.values["state"][:, -1, 1] - obs.values["state"][:, -1, 0])[:, None, None]
        step = (gap / 4).expand(-1, CHUNK, 1) + self.noise * normal((obs.batch, CHUNK, 1), gen)
        return Plan(step.clamp(-0.1, 0.1), 1 / 40, 1)


def line_jobs(*tasks: str, episodes: int = 6, terms: Terms = TERMS, driver: Driver | None = None, keep: bool = False):
    return [
        Job(f"line/{task}", index, episode_seed(5, f"line/{task}", index), terms, driver=driver, keep=keep)
        for task in tasks
        for index in range(episodes)
    ]


def summary(outcomes: Sequence[Outcome]) -> list[tuple]:
    return [(item.job.task, item.job.index, item.success, item.steps, item.total, item.error) for item in outcomes]


ONE = Stats((0.0,), (1.0,), (0.0,), (1.0,), (0.0,), (1.0,), 1)


@dataclass
class WalkerConfig(PolicyConfig):
    name: str = "walker"


class WalkerPolicy(Policy):
    """Walks to the goal with a little noise; its one weight is the share of the way that it plans."""

    def __init__(self, spec: Spec = SPEC, history: int = 1) -> None:
        config = WalkerConfig(observations=["state"], history=history, chunk=8, execute=4, decode=DecodeConfig(steps=3))
        super().__init__(config, spec, {"state": ONE, "action": ONE}, ())
        self.share = torch.nn.Parameter(torch.tensor(1.0))

    def loss(self, batch: Batch, gen: Gen) -> Losses:
        raise NotImplementedError

    def decode(self, obs: Observation, gen: Gen, start: Start) -> Plan:
        gap = (obs.values["state"][:, -1, 1] - obs.values["state"][:, -1, 0])[:, None, None]
        step = self.share * (gap / 4).expand(-1, 8, 1) + 0.005 * normal((obs.batch, 8, 1), gen)
        return Plan(step.clamp(-0.1, 0.1), 1 / 40, 3)
