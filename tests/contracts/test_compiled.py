"""Contracts of compiled plans: those of the same policy uncompiled but for rounding, and no graph made twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kinoise.policies.base import Policy
from kinoise.policies.core.budget import Budget
from kinoise.spec import KinoiseError, Plan
from small_policies import generators, load_changed, observation, small, train
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler

CLOSE = 1e-4
ROWS = 1
ONE = {"network": {"depth": 1}, "decode": {"steps": 2}}
WARM = {"warm": 0.6, "warm_steps": 1}


def pair(name: str, decode: dict[str, object] | None = None, **over: object) -> tuple[Policy, Policy]:
    """A policy, and one with the same weights whose plans are compiled."""
    policy = small(name, **{**ONE, **over})
    train(policy, steps=4)
    policy = load_changed(policy.eval(), **(decode or {}))
    return policy, load_changed(policy).compiled()


def check(eager: Policy, compiled: Policy, previous: Plan | None = None, **how: object) -> Plan:
    """The compiled plan, which is the other's."""
    obs = observation(eager, ROWS)
    mine, theirs = (
        policy.plan(obs, generators(ROWS), previous=previous, elapsed=0 if previous is None else 1, **how)  # type: ignore[arg-type]
        for policy in (compiled, eager)
    )
    assert torch.allclose(mine.actions, theirs.actions, atol=CLOSE)
    assert mine.surprise == pytest.approx(theirs.surprise, abs=CLOSE)
    assert (mine.nfe, mine.nfe_rows) == (theirs.nfe, theirs.nfe_rows)
    return mine


def graphs(policy: Policy) -> int:
    assert policy._graphs is not None
    return len(policy._graphs)


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(KinoiseError, match=r"install g\+\+"):
        small("mode", **ONE).eval().compiled()


def test_whole_plans_and_warm_starts_of_one_and_two_steps() -> None:
    eager, compiled = pair("mode", WARM, network={"depth": 1, "experts": 2, "top_k": 2})
    plan = check(eager, compiled)
    check(eager, compiled, plan)
    made = graphs(compiled)
    assert made == 3  # the observation, a cold plan, a warm one
    obs = observation(eager, ROWS, seed=1)
    again = compiled.plan(obs, generators(ROWS), previous=plan, elapsed=2)
    assert torch.allclose(again.actions, eager.plan(obs, generators(ROWS), previous=plan, elapsed=2).actions, atol=CLOSE)
    assert graphs(compiled) == made
    for policy in (eager, compiled):
        policy.config.decode.warm_steps = 2
    check(eager, compiled, plan)
    assert graphs(compiled) == made + 1


def test_given_prefixes_and_budgets() -> None:
    eager, compiled = pair("diffusion", simulated_delay=2)
    plan = check(eager, compiled)
    pinned = check(eager, compiled, plan, prefix=2)
    assert torch.equal(pinned.actions[:, :2], plan.actions[:, 1:3])
    made = graphs(compiled)
    assert made == 3  # the observation, a plan, an evaluation, of which all prefixes and both levels share one
    check(eager, compiled, plan, prefix=1)
    assert graphs(compiled) == made
    check(eager, compiled, budget=Budget(100.0))
    assert graphs(compiled) == made + 1


def test_rounds_of_tokens() -> None:
    eager, compiled = pair("discrete_vla", {**WARM, "value": "centre"})
    plan = check(eager, compiled)
    assert plan.confidence is not None
    check(eager, compiled, plan)
    check(eager, compiled, plan, prefix=1)
    assert graphs(compiled) == 2  # what the observation offers, and a round


def test_cross_attention_with_guidance_and_weights_that_change() -> None:
    network = {"depth": 1, "context": "cross", "noise_token": True}
    eager, compiled = pair("diffusion", {"guidance": 2.0, "steps": 1}, network=network)
    check(eager, compiled)
    weights = {key: 0.5 * item if item.is_floating_point() else item for key, item in eager.state_dict().items()}
    for policy in (eager, compiled):
        policy.load_state_dict(weights)
    assert graphs(compiled) == 0
    check(eager, compiled)


@pytest.mark.parametrize(
    ("name", "decode", "prefix"), [("mode_token", {}, 0), ("diffusion", {"cache": "every"}, 0), ("diffusion", {}, 1)]
)
def test_what_cannot_be_compiled_is_decoded_as_ever(name: str, decode: dict[str, object], prefix: int) -> None:
    """Tokens that choose experts, a cache, a prefix that is pulled along a gradient."""
    eager, compiled = pair(name, decode)
    obs = observation(eager, ROWS)
    plan = replace(eager.plan(obs, generators(ROWS)), timing={})
    mine, theirs = (policy.plan(obs, generators(ROWS), previous=plan, prefix=prefix) for policy in (compiled, eager))
    assert torch.equal(mine.actions, theirs.actions)
    assert compiled._graphs is None or graphs(compiled) == 0
