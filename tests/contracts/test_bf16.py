"""Contracts of plans in bfloat16: near those in float32, the same however they are made, and never what is trained."""

from __future__ import annotations

import pytest
import torch
from kinoise.policies import POLICIES
from kinoise.policies.base import Policy
from small_policies import generators, load_changed, observation, small, train

NEAR = 0.05
"""Of the actions' range; bfloat16 has 8 bits, and a plan adds up some evaluations."""
ROWS = 2


def pair(name: str) -> tuple[Policy, Policy]:
    policy = small(name)
    train(policy, steps=4)
    policy = load_changed(policy.eval())
    return policy, load_changed(policy).reduced()


@pytest.mark.parametrize("name", POLICIES)
def test_matrices_are_rounded_and_plans_stay_float32(name: str) -> None:
    full, reduced = pair(name)
    wide = {key for key, item in reduced.named_parameters() if item.ndim > 1 and item.dtype != torch.bfloat16}
    assert not wide
    plan = reduced.plan(observation(reduced, ROWS), generators(ROWS))
    assert plan.actions.dtype == torch.float32
    assert plan.actions.isfinite().all()
    again = reduced.plan(observation(reduced, ROWS), generators(ROWS))
    assert torch.equal(plan.actions, again.actions)
    assert all(item.dtype == torch.float32 for item in full.parameters())


@pytest.mark.parametrize("name", ["diffusion", "mode"])
def test_plans_are_near_those_in_float32(name: str) -> None:
    full, reduced = pair(name)
    mine, theirs = (policy.plan(observation(full, ROWS), generators(ROWS)).actions for policy in (reduced, full))
    assert not torch.equal(mine, theirs)
    assert (mine - theirs).abs().max() < NEAR * (theirs.max() - theirs.min())


def test_compiled_plans_in_bfloat16_are_those_that_are_not_compiled() -> None:
    _, reduced = pair("mode")
    eager = reduced.plan(observation(reduced, ROWS), generators(ROWS)).actions
    compiled = reduced.compiled().plan(observation(reduced, ROWS), generators(ROWS)).actions
    assert (compiled - eager).abs().max() < NEAR * (eager.max() - eager.min())
