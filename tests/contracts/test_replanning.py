"""Contracts over every policy: what a plan takes from the one before it, and from the clock."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from kinoise.policies import POLICIES, choices
from kinoise.policies.base import Policy
from kinoise.policies.core.budget import Budget
from kinoise.spec import KinoiseError, Plan
from small_policies import batch, generators, load_changed, observation, small, train


def replan(policy: Policy, seed: int = 0, **decode: object) -> tuple[Plan, Plan]:
    """A plan, and the one that follows two actions later."""
    changed, obs = load_changed(policy, **decode), observation(policy, seed=seed)
    previous = changed.plan(obs, generators(3))
    return previous, changed.plan(obs, generators(3), previous=previous, elapsed=2)


@pytest.mark.parametrize("name", choices())
def test_a_replan_starts_from_the_plan_before_and_costs_less(name: str) -> None:
    policy = small(name, decode={"steps": 4})
    train(policy)
    previous, cold = replan(policy)
    assert not cold.surprise
    assert cold.nfe == previous.nfe
    previous, warm = replan(policy, warm=0.5)
    assert 0 < warm.nfe < previous.nfe
    assert len(warm.surprise) == 3
    assert warm.actions.isfinite().all()
    used_up = load_changed(policy, warm=0.5).plan(observation(policy), generators(3), previous=previous, elapsed=4)
    assert torch.equal(used_up.actions, previous.actions)


@pytest.mark.parametrize("name", POLICIES)
def test_a_gate_decodes_what_surprises_from_noise(name: str) -> None:
    policy = small(name, decode={"steps": 4})
    train(policy)
    previous, open_gate = replan(policy, warm=0.5, gate=1e9)
    assert open_gate.cold == (False,) * 3
    _, shut = replan(policy, warm=0.5, gate=0.0)
    assert shut.cold == tuple(surprise > 0 for surprise in shut.surprise)
    assert any(shut.cold)
    assert all(each > 2 for each, cold in zip(shut.nfe_rows, shut.cold, strict=True) if cold)
    middle = sorted(open_gate.surprise)[1]
    _, some = replan(policy, warm=0.5, gate=middle)
    assert some.cold == tuple(surprise > middle for surprise in some.surprise)
    kept = [row for row in range(3) if not some.cold[row]]
    torch.testing.assert_close(some.actions[kept], open_gate.actions[kept])
    assert previous.actions.shape == some.actions.shape


@pytest.mark.parametrize("name", POLICIES)
def test_a_previous_plan_of_another_shape_is_refused(name: str) -> None:
    policy = load_changed(small(name), warm=0.5)
    obs = observation(policy)
    previous = policy.plan(obs, generators(3))
    with pytest.raises(KinoiseError, match="expected 3 rows, a chunk, 3 numbers"):
        policy.plan(obs, generators(3), previous=replace(previous, actions=previous.actions[:2]), elapsed=1)
    for wrong in ({"warm": 0.0}, {"warm_steps": 0}, {"gate": -1.0}):
        with pytest.raises(KinoiseError, match="decode"):
            load_changed(policy, **wrong)


@pytest.mark.parametrize("name", POLICIES)
def test_a_warm_start_looks_at_what_is_new(name: str) -> None:
    """From any level: what the plan before knew is asked about again under the new observation."""
    policy = small(name, decode={"steps": 4})
    train(policy, steps=8)
    for level in (0.1, 0.5, 0.9):
        warm = load_changed(policy, warm=level, warm_steps=1)
        previous = warm.plan(observation(policy), generators(3))
        same, other = (warm.plan(observation(policy, seed=s), generators(3), previous=previous, elapsed=2) for s in (0, 5))
        known = policy.config.chunk - 2
        assert not torch.equal(same.actions[:, :known], other.actions[:, :known])
        assert all(one != two for one, two in zip(same.surprise, other.surprise, strict=True))
        assert all(surprise > 0 for surprise in other.surprise)


@cache
def learnt(name: str, delay: int) -> Policy:
    """After a few updates; not to be changed."""
    policy = small(name, decode={"steps": 4}, simulated_delay=delay)
    train(policy, steps=8)
    return policy


@pytest.mark.parametrize("warm", [1.0, 0.5])
@pytest.mark.parametrize("delay", [0, 2])
@pytest.mark.parametrize("name", choices())
def test_a_prefix_comes_back_bit_for_bit_and_what_follows_goes_on_from_it(name: str, delay: int, warm: float) -> None:
    if delay and name == "dp_t":
        with pytest.raises(KinoiseError, match="isn't told which actions are clean"):
            small(name, simulated_delay=delay)
        return
    policy = load_changed(learnt(name, delay), warm=warm)
    obs = observation(policy)
    previous = policy.plan(obs, generators(3))
    for elapsed, prefix in ((1, 1), (1, 2), (2, 2), (0, 4)):
        plan = policy.plan(obs, generators(3), previous=previous, elapsed=elapsed, prefix=prefix)
        kept = previous.actions[:, elapsed : elapsed + prefix]
        assert torch.equal(plan.actions[:, :prefix], kept)
        assert plan.actions.isfinite().all()
        assert not plan.actions.requires_grad
    other = replace(previous, actions=-previous.actions)
    plans = [policy.plan(obs, generators(3), previous=item, elapsed=1, prefix=2).actions for item in (previous, other)]
    if name != "dd_vla":  # which says no more than in which bins actions lie
        assert not torch.equal(plans[0][:, 2:], plans[1][:, 2:])


@pytest.mark.parametrize("delay", [0, 2])
@pytest.mark.parametrize("name", POLICIES)
def test_what_was_carried_out_of_the_plan_before_does_not_matter(name: str, delay: int) -> None:
    """Without it, the plan is the same: a server is not sent it."""
    policy, obs = small(name, decode={"steps": 4, "warm": 0.5}, simulated_delay=delay).eval(), observation(small(name))
    previous = policy.plan(obs, generators(3))
    for elapsed, prefix in ((1, 0), (2, 0), (2, 2), (3, 1)):
        sure = previous.confidence
        left = replace(
            previous,
            actions=previous.actions[:, elapsed:],
            confidence=None if sure is None else sure[:, elapsed:],
        )
        whole = policy.plan(obs, generators(3), previous=previous, elapsed=elapsed, prefix=prefix)
        cut = policy.plan(obs, generators(3), previous=left, prefix=prefix)
        assert torch.equal(whole.actions, cut.actions)


@pytest.mark.parametrize("name", POLICIES)
def test_training_gives_prefixes_to_half_of_the_samples(name: str) -> None:
    policy = small(name, simulated_delay=3)
    whole = torch.ones(4000, 4, dtype=torch.bool)
    given = policy.simulated(whole, torch.Generator().manual_seed(0))
    counts = given.sum(-1).bincount(minlength=5) / 4000
    torch.testing.assert_close(counts, torch.tensor([1 / 2, 1 / 6, 1 / 6, 1 / 6, 0.0]), atol=0.03, rtol=0)
    assert (given.int().diff() <= 0).all()
    ends = torch.arange(4) < torch.randint(1, 5, (4000, 1), generator=torch.Generator().manual_seed(1))
    assert (ends & ~policy.simulated(ends, torch.Generator().manual_seed(0))).any(-1).all(), "something is left to ask for"
    assert small(name).simulated(whole, torch.Generator()) is None
    with pytest.raises(KinoiseError, match="simulated_delay=4"):
        small(name, simulated_delay=4)


@pytest.mark.parametrize("name", POLICIES)
def test_what_follows_a_prefix_is_learned_from_given_ones(name: str) -> None:
    """Chunks of one value, which nothing but a prefix tells."""
    policy = small(name, simulated_delay=3)
    optimizer, data = torch.optim.AdamW(policy.parameters(), lr=1e-2), batch(policy, 32)
    for step in range(120):
        gen = torch.Generator().manual_seed(step)
        values = 0.8 * torch.randint(0, 2, (32, 1, 1), generator=gen) * 2 - 0.8
        chunk = replace(data, actions=values.expand_as(data.actions).clone(), valid=torch.ones_like(data.valid))
        optimizer.zero_grad()
        policy.loss(chunk, gen).total.backward()
        optimizer.step()
    policy, obs = policy.eval(), observation(policy)
    for value in (-0.8, 0.8):
        previous = Plan(torch.full((3, 4, 3), value), 0.05, 1)
        found = policy.plan(obs, generators(3), previous=previous, elapsed=1, prefix=2).actions[:, 2:]
        assert (found - value).abs().mean() < 0.3


@pytest.mark.parametrize("name", choices())
def test_a_plan_takes_as_many_steps_as_its_budget(name: str) -> None:
    policy, obs = small(name, decode={"steps": 4}).eval(), observation(small(name))
    previous = policy.plan(obs, generators(3))
    ample = policy.plan(obs, generators(3), previous=previous, budget=60.0)
    assert torch.equal(ample.actions, policy.plan(obs, generators(3), previous=previous).actions)
    assert ample.nfe == previous.nfe
    cost = replace(previous, nfe=1, timing={"encode": 0.0, "denoise": 1.0, "evaluation": 1.0})
    each = policy.plan(obs, generators(3), previous=cost, budget=2.5)
    assert torch.equal(each.actions, load_changed(policy, steps=2).plan(obs, generators(3)).actions)
    late = policy.plan(obs, generators(3), budget=1e-9)
    assert late.nfe == 1
    assert late.actions.isfinite().all()
    with pytest.raises(KinoiseError, match="budget=0"):
        policy.plan(obs, generators(3), budget=0.0)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *((name, {"guidance": 2.0}) for name in POLICIES),
        *((name, {"sampler": "heun", "guidance": scale}) for name in ("diffusion", "mode") for scale in (1.0, 2.0)),
    ],
)
def test_a_step_of_several_evaluations_takes_as_much_of_a_budget(name: str, way: dict[str, object]) -> None:
    policy, obs = load_changed(small(name, decode={"steps": 20}), **way), observation(small(name))
    previous = replace(policy.plan(obs, generators(3)), nfe=1, timing={"encode": 0.0, "denoise": 1.0, "evaluation": 1.0})
    plan = policy.plan(obs, generators(3), previous=previous, budget=8.9)
    assert 4 < plan.nfe <= 8


class Standing(Budget):
    """A time in which nothing takes any, so that the same is always left."""

    left = property(lambda self: 1e-9)


@pytest.mark.parametrize("name", POLICIES)
def test_with_too_little_time_to_look_again_a_gate_stays_open(name: str) -> None:
    policy = small(name, decode={"steps": 4})
    train(policy)
    policy, obs = load_changed(policy, warm=0.5, gate=0.0), observation(policy)
    previous = policy.plan(obs, generators(3))
    late = policy.plan(obs, generators(3), previous=previous, elapsed=2, budget=Standing(1.0))
    assert not any(late.cold)
    assert late.nfe == 1


@pytest.mark.parametrize("name", POLICIES)
def test_a_low_level_asks_about_the_guess_beside_a_prefix_too(name: str) -> None:
    """Though the prefix is what the plan before was least sure of."""
    policy = small(name, decode={"steps": 4})
    train(policy, steps=8)
    policy = load_changed(policy, warm=0.1, warm_steps=1)
    previous = policy.plan(observation(policy), generators(3))
    if previous.confidence is not None:
        doubted = torch.arange(policy.config.chunk)[None, :, None] < 2
        previous = replace(previous, confidence=previous.confidence.masked_fill(doubted, 0.0))
    same, other = (policy.plan(observation(policy, seed=s), generators(3), previous=previous, prefix=2) for s in (0, 5))
    assert not torch.equal(same.actions[:, 2:], other.actions[:, 2:])
    assert all(surprise > 0 for surprise in other.surprise)


@pytest.mark.parametrize("delay", [0, 2])
def test_surprise_is_the_network_s_own_and_not_about_the_prefix(delay: int) -> None:
    """However strongly a prefix pulls; a plan that differs in nothing else surprises as much."""
    policy = small("diffusion", decode={"steps": 4}, simulated_delay=delay)
    train(policy, steps=8)
    obs = observation(policy)
    previous = policy.eval().plan(obs, generators(3))
    surprises = []
    for pull in (0.01, 5.0):
        changed = load_changed(policy, warm=0.5, warm_steps=1, pull=pull)
        surprises.append(changed.plan(obs, generators(3), previous=previous, elapsed=1, prefix=2).surprise)
    assert surprises[0] == surprises[1]
    assert all(surprise > 0 for surprise in surprises[0])
    whole = load_changed(policy, warm=0.5).plan(obs, generators(3), previous=previous, elapsed=1, prefix=3).surprise
    assert whole == (0.0,) * 3, "all that was known is settled"


@pytest.mark.parametrize("name", POLICIES)
def test_out_of_time_a_gate_stays_open(name: str) -> None:
    policy = small(name, decode={"steps": 4})
    train(policy)
    policy, obs = load_changed(policy, warm=0.5, gate=0.0), observation(policy)
    previous = policy.plan(obs, generators(3))
    assert any(policy.plan(obs, generators(3), previous=previous, elapsed=2).cold)
    late = policy.plan(obs, generators(3), previous=previous, elapsed=2, budget=1e-9)
    assert not any(late.cold)
    assert late.nfe == 1
