"""How the discrete-diffusion VLA decodes: pinned prefixes, rounds and their evaluations."""

from __future__ import annotations

import pytest
import torch
from kinoise.policies.decode import DecodeChanges
from kinoise.policies.discrete_vla import DiscreteVLAPolicy
from kinoise.spec import KinoiseError, Plan
from tiny_vla import CHUNK, changed, config, generators, observation, row, small, trained


@pytest.fixture(scope="module")
def policy() -> DiscreteVLAPolicy:
    return trained(small())


def previous(rows: int = 3, length: int = CHUNK) -> Plan:
    """Numbers that no bin stands for, some of them beyond all bins."""
    actions = torch.randn(rows, length, 3, generator=torch.Generator().manual_seed(7))
    return Plan(actions=actions, dt=0.05, nfe=1)


# Pinned prefixes


@pytest.mark.parametrize(
    "how", [{}, {"threshold": 0.9, "temperature": 1.0, "value": "centre"}, {"sampler": "autoregressive"}, {"guidance": 2.0}]
)
@pytest.mark.parametrize("prefix", [1, 3, CHUNK])
@pytest.mark.parametrize("elapsed", [0, 2])
def test_a_pinned_prefix_comes_back_bit_by_bit(policy: DiscreteVLAPolicy, prefix: int, elapsed: int, how: dict) -> None:
    before = previous(length=CHUNK + 2)
    plan = changed(policy, **how).plan(observation(), generators(), previous=before, elapsed=elapsed, prefix=prefix)
    assert torch.equal(plan.actions[:, :prefix], before.actions[:, elapsed : elapsed + prefix])


def test_a_pinned_prefix_saves_evaluations_and_shapes_what_follows(policy: DiscreteVLAPolicy) -> None:
    twelve, obs = changed(policy, steps=12), observation()
    nfe = [twelve.plan(obs, generators(), previous=previous(), elapsed=0, prefix=prefix).nfe for prefix in range(CHUNK + 1)]
    assert nfe == sorted(nfe, reverse=True)
    assert nfe[3] < nfe[0] <= 12
    assert nfe[CHUNK] == 0
    free, pinned = (policy.plan(obs, generators(), previous=previous(), prefix=prefix).actions for prefix in (0, 3))
    assert not torch.equal(free[:, 3:], pinned[:, 3:])


def test_without_a_prefix_the_previous_plan_plays_no_part(policy: DiscreteVLAPolicy) -> None:
    free = policy.plan(observation(), generators())
    assert torch.equal(policy.plan(observation(), generators(), previous=previous(), elapsed=4).actions, free.actions)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"prefix": CHUNK + 1, "previous": previous(length=9)}, "chunk of 6"),
        ({"prefix": 3, "elapsed": 4, "previous": previous()}, "needs 7 actions; the previous plan has 6"),
        ({"prefix": 1}, "previous="),
        ({"prefix": -1, "previous": previous()}, "at least 0"),
        ({"elapsed": -1, "previous": previous()}, "at least 0"),
        ({"prefix": 1, "previous": previous(rows=2)}, "expected 3 rows, a chunk, 3 numbers"),
    ],
)
def test_a_prefix_that_cannot_be_kept_is_refused(policy: DiscreteVLAPolicy, arguments: dict, said: str) -> None:
    with pytest.raises(KinoiseError, match=said):
        policy.plan(observation(), generators(), **arguments)


# Rounds


def test_evaluations_are_counted_for_the_batch_and_for_each_row(policy: DiscreteVLAPolicy) -> None:
    obs = observation()
    plan = policy.plan(obs, generators())
    assert (plan.nfe, plan.nfe_rows) == (5, (5,) * 3)
    assert policy.plan(obs, generators()).timing.keys() == {"encode", "denoise", "evaluation"}
    guided = changed(policy, guidance=2.0).plan(obs, generators())
    assert (guided.nfe, guided.nfe_rows) == (10, (10,) * 3)
    assert not torch.allclose(guided.actions, plan.actions)
    assert changed(policy, guidance=0.0).plan(obs, generators()).nfe == 5
    assert changed(policy, steps=1).plan(obs, generators()).nfe == 1
    assert changed(policy, sampler="autoregressive").plan(obs, generators()).nfe == 3 * CHUNK


def test_an_adaptive_row_spends_what_it_needs_whatever_the_others_do(policy: DiscreteVLAPolicy) -> None:
    obs, rounds = observation(), changed(policy, steps=9)
    sure = changed(rounds, adaptive=0.0).plan(obs, generators())
    assert (sure.nfe, sure.nfe_rows) == (1, (1,) * 3)
    found = set()
    for level in torch.linspace(0.05, 0.9, 18).tolist():
        adaptive = changed(rounds, adaptive=level, temperature=1.0, value="centre")
        plan = adaptive.plan(obs, generators())
        assert plan.nfe == max(plan.nfe_rows)
        found |= {plan.nfe_rows}
        alone = [adaptive.plan(row(obs, index), generators()[index : index + 1]) for index in range(3)]
        assert tuple(item.nfe for item in alone) == plan.nfe_rows
        torch.testing.assert_close(torch.cat([item.actions for item in alone]), plan.actions, atol=1e-5, rtol=1e-4)
    assert any(len(set(item)) > 1 for item in found), "no batch had a row that was done before another"


def test_centres_are_what_tokens_stand_for(policy: DiscreteVLAPolicy) -> None:
    plan = changed(policy, value="centre").plan(observation(), generators())
    assert torch.equal(policy.bins.decode(policy.bins.encode(plan.actions)), plan.actions)
    expected = policy.plan(observation(), generators()).actions
    assert not torch.allclose(expected, plan.actions)
    assert torch.equal(expected[..., 2], plan.actions[..., 2])
    assert (expected[..., :2].abs() <= 0.98).all()


def test_settings_of_rounds_are_the_command_line_s() -> None:
    assert set(vars(DecodeChanges())) | {"schedule"} == set(vars(config().decode))
