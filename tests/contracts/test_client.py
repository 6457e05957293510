"""The client of the policy server: a policy far away, over connections that break and servers that hang."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from kinoise.deploy.batching import connection_generator
from kinoise.deploy.client import Backoff, PolicyClient, RemoteInference, ServerTimeout
from kinoise.deploy.controller import Controller, ControllerConfig
from kinoise.deploy.guards import GuardConfig, Guards
from kinoise.deploy.messages import Served
from kinoise.deploy.robot import Reading
from kinoise.policies.base import Policy
from kinoise.spec import KinoiseError, Plan
from tiny_server import SPEC, TEXTS, Slow, assert_same_plan, expected, serving, small, state


@pytest.fixture(scope="module")
def policy() -> Policy:
    return small()


def test_the_client_is_a_policy_far_away(policy: Policy) -> None:
    with serving(policy) as (_, url), PolicyClient(url) as client:
        assert client.served == Served.of(policy)
        for wanted, seed in zip(expected(policy, [3, 4]), (3, 4), strict=True):
            plan = client.plan({"state": state(seed)}, TEXTS[seed % 2])
            assert_same_plan(plan.actions[0], wanted)
            assert (plan.dt, plan.actions.dtype, plan.actions.shape) == (1 / 20, torch.float32, (1, 6, 3))
            assert plan.nfe > 0
            assert {"encode", "denoise", "server_wait"} < set(plan.timing)


def test_a_prefix_comes_back_bit_for_bit() -> None:
    policy = small("discrete_vla", bins={"count": 16}, decode={"steps": 3})
    with serving(policy) as (_, url), PolicyClient(url) as client:
        before = client.plan({"state": state()}, TEXTS[0])
        before = replace(before, actions=before.actions + 0.01234567)
        plan = client.plan({"state": state(1)}, TEXTS[0], previous=before, elapsed=1, prefix=3)
        assert torch.equal(plan.actions[:, :3], before.actions[:, 1:4])
        assert not torch.equal(plan.actions[:, 3:5], before.actions[:, 4:6])


def test_what_is_left_of_the_plan_before_reaches_a_policy_that_starts_from_it() -> None:
    policy, gen = Slow(warm=0.5), torch.Generator().manual_seed(0)
    actions, confidence = torch.randn(1, 6, 3, generator=gen), torch.rand(1, 6, 3, generator=gen)
    with serving(policy) as (_, url), PolicyClient(url) as client:
        for sure in (None, confidence):
            before = Plan(actions, dt=0.05, nfe=1, confidence=sure)
            client.plan({"state": state()}, TEXTS[0], previous=before, elapsed=2, prefix=3)
            previous = policy.told["previous"]
            assert torch.equal(previous.actions, actions[:, 2:])
            assert policy.told["prefix"] == 3
            assert previous.confidence is None if sure is None else torch.equal(previous.confidence, sure[:, 2:])


def test_a_policy_that_starts_from_noise_is_told_of_the_plan_before_with_a_prefix_only() -> None:
    policy, before = Slow(), Plan(torch.randn(1, 6, 3, generator=torch.Generator().manual_seed(0)), dt=0.05, nfe=1)
    with serving(policy) as (_, url), PolicyClient(url) as client:
        client.plan({"state": state()}, TEXTS[0], previous=before, elapsed=2, prefix=3)
        assert torch.equal(policy.told["previous"].actions, before.actions[:, 2:])
        assert policy.told["prefix"] == 3
        for told in ({"previous": before, "elapsed": 2}, {"previous": before, "elapsed": 6}, {}):
            client.plan({"state": state()}, TEXTS[0], **told)
            assert (policy.told["previous"], policy.told["prefix"]) == (None, 0)


def test_a_budget_reaches_the_policy_less_what_was_waited() -> None:
    policy = Slow()
    with serving(policy) as (_, url), PolicyClient(url) as client:
        client.plan({"state": state()}, TEXTS[0], budget=5.0)
        assert 0 < policy.told["budget"].left <= 5.0
        client.plan({"state": state()}, TEXTS[0])
        assert policy.told["budget"] is None


def test_a_late_answer_is_given_up_and_never_taken_for_the_next() -> None:
    policy = Slow()
    with serving(policy) as (_, url), PolicyClient(url, timeout=2.0) as client:
        policy.go.clear()
        with pytest.raises(ServerTimeout, match="within 2 s"):
            client.plan({"state": state()}, TEXTS[0])
        policy.go.set()
        gen = connection_generator(0, 0)
        torch.randn(6, 3, generator=gen)
        assert torch.equal(client.plan({"state": state()}, TEXTS[0]).actions[0], torch.randn(6, 3, generator=gen))


def test_a_client_finds_a_server_that_was_started_again(policy: Policy) -> None:
    with serving(policy) as (_, url):
        client = PolicyClient(url, timeout=30.0, backoff=Backoff(0.01, 0.05))
        client.plan({"state": state()}, TEXTS[0])
    port = int(url.rsplit(":", 1)[1])
    started, answered = threading.Event(), threading.Event()

    def again() -> None:
        time.sleep(0.2)
        with serving(policy, port=port):
            started.set()
            answered.wait(30)

    thread = threading.Thread(target=again)
    thread.start()
    assert_same_plan(client.plan({"state": state()}, TEXTS[0]).actions[0], expected(policy, [0])[0])
    assert started.is_set()
    answered.set()
    thread.join()
    with pytest.raises(ServerTimeout, match="no connection"):
        PolicyClient(url, timeout=0.2)
    with serving(small(chunk=8), port=port), pytest.raises(KinoiseError, match="chunk=8; it was 6"):
        client.plan({"state": state()}, TEXTS[0])


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nonsense"])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(KinoiseError, match="no address"):
        PolicyClient(url)


def test_a_server_that_takes_nothing_any_more_is_given_up(policy: Policy) -> None:
    stuck = threading.Event()
    with serving(policy) as (server, url), PolicyClient(url, timeout=0.3) as client:
        server._read = lambda message: stuck.wait(10)  # type: ignore[assignment]
        with pytest.raises(ServerTimeout, match="did not answer"):
            client.plan({"state": state()}, TEXTS[0])
        with pytest.raises(ServerTimeout, match="no connection"):
            client.plan({"state": np.zeros(1 << 24, np.uint8)}, TEXTS[0])
        client.close()
        with pytest.raises(KinoiseError, match="was closed"):
            client.plan({"state": state()}, TEXTS[0])
        stuck.set()


class Arm:
    """Stands where it is told to."""

    spec = replace(SPEC.select(["state"]), rate=20.0)

    def __init__(self) -> None:
        self.commands: list[np.ndarray] = []

    def observe(self) -> Reading:
        return Reading({"state": state()}, TEXTS[0])

    def command(self, action: np.ndarray) -> None:
        self.commands.append(action.copy())

    def stop(self) -> None:
        pass


def test_the_controller_runs_on_a_remote_policy(policy: Policy) -> None:
    arm = Arm()
    with serving(policy) as (_, url):
        inference = RemoteInference(PolicyClient(url))
        guards = Guards(arm.spec, GuardConfig(jump=None))
        controller = Controller(arm, inference, guards, ControllerConfig(rate=10.0), execute=2)
        record = controller.run(20.0, lambda: controller.record.outcomes["used"] >= 3)
        assert not record.errors
        assert record.outcomes["used"] >= 3
        first = np.clip(expected(policy, [0])[0], -1, 1)
        assert any(np.allclose(command, row, rtol=0, atol=1e-5) for command in arm.commands for row in first)


def test_the_controller_pins_what_will_have_been_carried_out() -> None:
    policy, arm = Slow(), Arm()
    with serving(policy) as (server, url):
        inference = RemoteInference(PolicyClient(url))
        guards = Guards(arm.spec, GuardConfig(jump=None))
        controller = Controller(arm, inference, guards, ControllerConfig(rate=10.0, pin=True), execute=2)
        record = controller.run(20.0, lambda: getattr(policy, "told", {"prefix": 0})["prefix"] > 0)
        assert not record.errors
        assert policy.told["prefix"] > 0
        assert server.metrics.requests >= 2


def test_the_controller_holds_while_the_server_is_away(policy: Policy) -> None:
    with serving(policy) as (_, url):
        client = PolicyClient(url, timeout=0.1)
    arm = Arm()
    controller = Controller(arm, RemoteInference(client), Guards(arm.spec), ControllerConfig(rate=50.0), execute=2)
    record = controller.run(0.5)
    assert record.rungs["hold"] == record.ticks
    assert any("no connection" in message for message in record.errors)
