"""Contracts over every policy and sampler: what a cache may change about a plan, and what it may not."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from kinoise.policies import choices
from kinoise.policies.base import Policy
from kinoise.policies.caching import check_fit, fingerprint
from kinoise.policies.checkpoint import load_policy, save_policy
from kinoise.policies.core.budget import Budget
from kinoise.policies.decode import CacheSchedule
from kinoise.spec import KinoiseError, Plan
from omegaconf import OmegaConf
from small_policies import generators, load_changed, observation, small, train

STEPS = 6
POLICIES = {name: OmegaConf.to_object(OmegaConf.structured(config)) for name, config in choices().items()}
CASES = [(name, sampler) for name, config in POLICIES.items() for sampler in config.decode.samplers()]


def planned(policy: Policy, **decode: object) -> Plan:
    changed = load_changed(policy, steps=STEPS, **decode)
    return changed.plan(observation(policy), generators(3))


@cache
def trained(name: str, **over: object) -> Policy:
    """Not to be changed."""
    policy = small(name, **over)
    train(policy, steps=4)
    return policy.eval()


def fitted(policy: Policy, refresh: dict[str, list[int]]) -> CacheSchedule:
    return CacheSchedule("by hand", policy.config.decode.sampler, policy.evaluations, fingerprint(policy), refresh)


def sites(policy: Policy) -> list[str]:
    recorder = policy.record()
    policy.plan(observation(policy), generators(3))
    return list(recorder.features)


@pytest.mark.parametrize(("name", "sampler"), CASES)
def test_a_cache_that_computes_everything_changes_nothing(name: str, sampler: str) -> None:
    policy = trained(name)
    how = {"sampler": sampler} | ({"value": "centre"} if sampler == "ancestral" else {})
    plain = planned(policy, **how)
    for order in (0, 1):
        cached = planned(policy, **how, cache="every", cache_every=1, cache_order=order)
        assert torch.equal(cached.actions, plain.actions)
        assert cached.nfe == plain.nfe


@pytest.mark.parametrize(("name", "sampler"), CASES)
def test_every_third_evaluation_computes_a_branch(name: str, sampler: str) -> None:
    how = {"sampler": sampler} | ({"value": "centre"} if sampler == "ancestral" else {})
    policy = load_changed(trained(name), steps=STEPS, **how, cache="every", cache_every=3)
    computed = []
    network = policy.backbone.network if hasattr(policy, "backbone") else policy.network
    network.blocks[-1].feedforward.register_forward_hook(lambda *_: computed.append(1))
    assert len(computed) == 0
    nfe = policy.plan(observation(policy), generators(3)).nfe
    assert nfe >= STEPS
    assert len(computed) == -(-nfe // 3)


@pytest.mark.parametrize("name", choices())
def test_reuse_shows_in_the_plan_and_is_the_same_each_time(name: str) -> None:
    policy = trained(name)
    plain, cached, again = planned(policy), *(planned(policy, cache="every", cache_every=4) for _ in range(2))
    assert torch.equal(cached.actions, again.actions)
    assert not torch.equal(cached.actions, plain.actions)


@pytest.mark.parametrize("name", choices())
def test_a_fitted_schedule_holds_for_full_plans_alone(name: str) -> None:
    policy = load_changed(trained(name), steps=STEPS)
    refresh = {item: [0] for item in sites(policy)}
    obs, schedule = observation(policy), fitted(policy, refresh)
    plain = policy.plan(obs, generators(3))
    warm = {"warm": 0.5, "warm_steps": 2}
    policy.config.decode = replace(policy.config.decode, **warm)
    replan = policy.plan(obs, generators(3), previous=plain, elapsed=1)
    policy.config.decode = replace(policy.config.decode, cache="fitted", schedule=schedule)
    assert not torch.equal(policy.plan(obs, generators(3)).actions, plain.actions)
    assert torch.equal(policy.plan(obs, generators(3), previous=plain, elapsed=1).actions, replan.actions)
    hasty = policy.plan(obs, generators(3), budget=Budget(1e3, cost=400.0))  # time for two
    policy.config.decode = replace(policy.config.decode, cache="none")
    assert torch.equal(policy.plan(obs, generators(3), budget=Budget(1e3, cost=400.0)).actions, hasty.actions)


def test_a_schedule_of_other_weights_steps_or_samplers_is_refused(tmp_path: Path) -> None:
    policy = load_changed(trained("diffusion"), steps=STEPS)
    schedule = fitted(policy, {item: [0, 2] for item in sites(policy)})
    policy.config.decode = replace(policy.config.decode, cache="fitted", schedule=schedule)
    save_policy(tmp_path / "a", policy, {})
    same = load_policy(tmp_path / "a")
    assert torch.equal(
        same.plan(observation(policy), generators(3)).actions, policy.plan(observation(policy), generators(3)).actions
    )
    for change, told in (({"steps": 5}, "5 of ddim"), ({"sampler": "heun"}, "11 of heun")):
        with pytest.raises(KinoiseError, match=told):
            load_policy(tmp_path / "a", decode=change).plan(observation(policy), generators(3))
    with torch.no_grad():
        policy.network.head.bias += 1
    save_policy(tmp_path / "b", policy, {})
    with pytest.raises(KinoiseError, match="other weights"):
        load_policy(tmp_path / "b")
    load_policy(tmp_path / "b", decode={"cache": "none"})
    check_fit(replace(policy.config.decode, cache="none"), policy)
