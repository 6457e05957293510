"""Planning beside the loop: in a thread, by a policy."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from kinoise.deploy.controller import Controller, ControllerConfig
from kinoise.deploy.fallback import FallbackConfig
from kinoise.deploy.guards import GuardConfig, Guards
from kinoise.deploy.inference import PolicyPlanner, Request, Restartable, ThreadInference
from kinoise.deploy.latency import Record
from kinoise.deploy.robot import Reading
from kinoise.policies import Policy, PolicyConfig
from kinoise.spec import Feature, Observation, Plan, Spec, Stats
from loop_fakes import CHUNK, PERIOD, RATE, FakeClock, FakeRobot, Restarting, plan_of


class Threaded:
    """A controller whose planner runs in its thread; `pace` can make a tick wait for it, since the clock doesn't."""

    def __init__(
        self, planner: Callable[[Request], Plan], patience: float, pace: Callable[[int], None] = lambda count: None
    ) -> None:
        self.clock = FakeClock()
        self.robot = FakeRobot(self.clock, before=pace)
        self.inference = ThreadInference(planner, patience=patience)
        guards = Guards(self.robot.spec, GuardConfig(jump=None))
        config = ControllerConfig(rate=RATE, fallback=FallbackConfig(hold=60.0))
        self.controller = Controller(self.robot, self.inference, guards, config, execute=1, clock=self.clock)

    def run(self, ticks: int) -> Record:
        return self.controller.run(ticks * PERIOD)


def test_the_planner_runs_in_a_thread_of_its_own():
    planned, threads = threading.Event(), set()

    def planner(request: Request) -> Plan:
        threads.add(threading.get_ident())
        planned.set()
        return plan_of(request)

    record = Threaded(planner, 10.0, pace=lambda count: count == 0 or planned.wait(10)).run(5)
    assert not record.errors
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_a_planner_that_raises_does_not_stop_the_loop():
    def planner(request: Request) -> Plan:
        raise RuntimeError("no plan today")

    setup = Threaded(planner, 10.0)
    record = setup.run(20)
    assert record.ticks == record.rungs["hold"] == len(setup.robot.commands) == 20
    assert list(record.errors) == ["planning failed: RuntimeError: no plan today"]


def test_a_planner_that_never_returns_does_not_stop_the_loop():
    never = threading.Event()

    def planner(request: Request) -> Plan:
        never.wait()
        return plan_of(request)

    setup = Threaded(planner, 0.05)
    record = setup.run(20)
    assert record.ticks == record.rungs["hold"] == len(setup.robot.commands) == 20
    assert setup.robot.stops == 1
    (message,) = record.errors
    assert "did not return" in message
    never.set()


class StubPolicy(Policy):
    """Remembers what it was asked; its plan is noise."""

    def __init__(self, language: bool) -> None:
        observations = {"state": Feature((2,)), "image.front": Feature((4, 4, 3), "image"), "unused": Feature((1,))}
        spec = Spec(observations, Feature((3,)), rate=80.0, language=language)
        stats = {key: Stats((0.0,), (1.0,), (0.0,), (1.0,), (0.0,), (1.0,), 1) for key in [*observations, "action"]}
        super().__init__(PolicyConfig("stub", ["state", "image.front"], history=2), spec, stats, ("push",))

    def loss(self, batch, gen):
        raise NotImplementedError

    def decode(self, obs: Observation, gen: torch.Generator, start: object) -> Plan:
        self.seen = obs
        return Plan(torch.randn(1, CHUNK, 3, generator=gen), dt=1 / 80, nfe=1)


@pytest.mark.parametrize("language", [True, False])
def test_a_policy_is_asked_in_its_own_terms(language):
    readings = tuple(
        Reading(
            {
                "unused": np.zeros(1, np.float32),
                "image.front": np.full((4, 4, 3), step, np.uint8),
                "state": np.float32([step, -step]),
            },
            "push",
        )
        for step in (1, 2)
    )
    policy = StubPolicy(language).eval()
    plan = PolicyPlanner(policy, seed=3)(Request(0, 0.0, readings))
    assert list(policy.seen.values) == ["state", "image.front"]
    assert policy.seen.values["state"].tolist() == [[[1, -1], [2, -2]]]
    assert policy.seen.values["image.front"].shape == (1, 2, 4, 4, 3)
    assert policy.seen.values["image.front"].dtype == torch.uint8
    assert policy.seen.texts == (("push",) if language else ())
    assert (policy.seen.text is not None) == language
    again = PolicyPlanner(policy, seed=3)(Request(0, 0.0, readings))
    assert torch.equal(plan.actions, again.actions)


def readings(value: float = 1.0) -> tuple[Reading, ...]:
    values = {"image.front": np.zeros((4, 4, 3), np.uint8), "state": np.float32([value, 0])}
    return (Reading(values, "push"),) * 2


def test_every_plan_can_be_made_again_from_its_request_alone():
    policy = StubPolicy(True).eval()
    planner = PolicyPlanner(policy, seed=3)
    plans = [planner(Request(tick, 0.0, readings())).actions for tick in range(5)]
    for tick in reversed(range(5)):
        assert torch.equal(PolicyPlanner(policy, seed=3)(Request(tick, 9.0, readings())).actions, plans[tick])
    others = [*plans, PolicyPlanner(policy, seed=4)(Request(0, 0.0, readings())).actions]
    assert len({tuple(actions.flatten().tolist()) for actions in others}) == 6


@pytest.mark.parametrize("budget", [None, 0.25])
def test_what_is_told_reaches_the_policy(budget: float | None):
    class Asked(StubPolicy):
        def plan(self, obs: Observation, gen: torch.Generator, **told: object) -> Plan:
            self.told = told
            return super().plan(obs, gen)

    policy = Asked(True).eval()
    previous = Plan(torch.zeros(1, CHUNK, 3), dt=0.05, nfe=1)
    PolicyPlanner(policy)(Request(0, 0.0, readings(), previous, 2, 3, budget))
    assert policy.told == {"previous": previous, "elapsed": 2, "prefix": 3, "budget": budget}


def test_what_can_be_begun_again_says_so():
    assert isinstance(Restarting(FakeClock(), 1), Restartable)
    inference = ThreadInference(plan_of)
    assert not isinstance(inference, Restartable)
    assert inference.close() == ""
