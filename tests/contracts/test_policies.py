"""Contracts over every policy and preset: trains, saves, loads, plans; and what is wrong with a checkpoint is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kinoise.policies import POLICIES, build_policy, choices
from kinoise.policies.checkpoint import load_policy, save_policy
from kinoise.spec import Feature, KinoiseError, Observation
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from small_policies import HEUN, IMAGES, OTHER, SHARED, SPEC, STATS, TEXTS, generators, load_changed, observation, small, train


@pytest.mark.parametrize("name", choices())
def test_trains_saves_loads_and_plans(name: str, tmp_path: Path) -> None:
    policy = small(name)
    assert all(loss > 0 for loss in train(policy))
    ema = {key: item * 0.5 for key, item in policy.named_parameters()}
    save_policy(tmp_path, policy, ema)
    for averaged in (False, True):
        if averaged:
            policy.load_state_dict({**policy.state_dict(), **ema})
        loaded = load_policy(tmp_path, ema=averaged)
        obs = observation(policy)
        plan, again = (item.eval().plan(obs, generators(3)) for item in (policy, loaded))
        assert plan.actions.shape == (3, policy.config.chunk, 3)
        assert plan.actions.isfinite().all()
        assert plan.nfe > 0
        assert torch.equal(plan.actions, again.actions)


@pytest.mark.parametrize("name", POLICIES)
def test_learns(name: str) -> None:
    losses = train(small(name, goal_dropout=0.0), steps=60, lr=3e-3)
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


@pytest.mark.parametrize("name", POLICIES)
def test_sees_images_and_histories(name: str) -> None:
    policy = small(name, observations=["state", "image.front"], history=2, encoder=IMAGES.get(name, SHARED))
    train(policy)
    obs = observation(policy.eval())
    plan = policy.plan(obs, generators(3))
    mirrored = replace(obs, values={**obs.values, "image.front": obs.values["image.front"].flip(2)})
    older = replace(obs, values={**obs.values, "state": obs.values["state"].flip(1)})
    for other in (mirrored, older):
        assert not torch.equal(policy.plan(other, generators(3)).actions, plan.actions)


@pytest.mark.parametrize("name", POLICIES)
def test_rows_of_a_batch_do_not_meet(name: str) -> None:
    policy = small(name)
    train(policy)
    obs = observation(policy.eval())
    together = policy.plan(obs, generators(3)).actions
    for row in range(3):
        one = Observation({"state": obs.values["state"][row : row + 1]}, TEXTS, obs.text[row : row + 1])
        torch.testing.assert_close(
            policy.plan(one, generators(3)[row : row + 1]).actions[0], together[row], atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("name", POLICIES)
def test_instructions_matter_and_guidance_of_one_is_none(name: str) -> None:
    policy = small(name, decode={"steps": 4})
    train(policy, steps=5)
    obs = observation(policy.eval())
    swapped = replace(obs, text=1 - obs.text)
    plan = policy.plan(obs, generators(3))
    assert not torch.allclose(policy.plan(swapped, generators(3)).actions, plan.actions)
    guided = load_changed(policy, guidance=3.0)
    assert guided.plan(obs, generators(3)).nfe == 2 * plan.nfe
    assert load_changed(policy, guidance=0.0).plan(obs, generators(3)).nfe == plan.nfe == policy.config.decode.steps
    sampler, evaluations = OTHER.get(name, HEUN)
    assert load_changed(policy, sampler=sampler).plan(obs, generators(3)).nfe == evaluations(plan.nfe)
    assert not torch.allclose(guided.plan(obs, generators(3)).actions, plan.actions)


@pytest.mark.parametrize("name", POLICIES)
def test_levels_follow_the_weights(name: str) -> None:
    """What is remembered per noise level has to go when the weights change."""
    policy, other = small(name), small(name)
    train(policy, steps=3)
    train(other, steps=6)
    obs = observation(policy)
    expected = other.eval().plan(obs, generators(3)).actions
    before = policy.eval().plan(obs, generators(3)).actions
    policy.load_state_dict(other.state_dict())
    assert not torch.equal(before, expected)
    assert torch.equal(policy.plan(obs, generators(3)).actions, expected)


def test_images_too_small_to_be_seen_are_refused() -> None:
    tiny = replace(SPEC, observations={"image.front": Feature((32, 32, 3), kind="image")})
    with pytest.raises(KinoiseError, match="32 pixels"):
        build_policy(choices()["mode"], tiny, STATS, TEXTS)


def test_expert_use_is_a_distribution() -> None:
    use = small("mode").eval().expert_use()
    assert use is not None
    torch.testing.assert_close(torch.tensor(use["use"]).sum(-1), torch.ones(len(use["noise"]), 2))
    config = choices()["mode"]
    assert (use["measure"], use["noise"][0], use["chosen"]) == ("sigma", pytest.approx(config.process.sigma_max), 2)
    assert len(use["visited"]) == config.decode.steps
    assert small("mode_dense").eval().expert_use()["chosen"] == 4
    assert small("diffusion").expert_use() is None
    assert small("mode_token").expert_use() is None


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    policy = small("mode")
    save_policy(tmp_path, policy, dict(policy.named_parameters()))
    return tmp_path


def edit(directory: Path, change: dict) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(OmegaConf.to_container(OmegaConf.merge(json.loads(path.read_text()), change))))


def test_a_wrong_checkpoint_says_what_is_wrong(saved: Path) -> None:
    weights = load_file(saved / "ema.safetensors")
    key = next(iter(weights))
    (saved / "ema.safetensors").write_bytes((saved / "ema.safetensors").read_bytes()[:-100])
    with pytest.raises(KinoiseError, match="cut short"):
        load_policy(saved)
    save_file(
        {**{name: item for name, item in weights.items() if name != key}, "other": weights[key].clone()},
        saved / "ema.safetensors",
    )
    with pytest.raises(KinoiseError, match=rf"{key} is missing; other is unknown"):
        load_policy(saved)
    (saved / "ema.safetensors").unlink()
    with pytest.raises(KinoiseError, match="is missing"):
        load_policy(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": {"network": {"width": 64}}}, "has shape"),
        ({"policy": {"colour": 1}}, "colour"),
        ({"policy": {"name": "other"}}, "'other' is unknown"),
        ({"spec": {"colour": 1}}, "unknown keys"),
        ({"format": 99}, "format"),
        ({"spec": None}, "'spec'"),
        ({"texts": None}, "'texts'"),
        ({"stats": {"state": None}}, "expected an object"),
    ],
)
def test_a_wrong_config_says_what_is_wrong(saved: Path, change: dict, message: str) -> None:
    edit(saved, change)
    with pytest.raises(KinoiseError, match=message):
        load_policy(saved)


def test_no_checkpoint_and_wrong_settings(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(KinoiseError, match="no checkpoint there"):
        load_policy(tmp_path / "nowhere")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "kinoise.json").write_text("{}")
    with pytest.raises(KinoiseError, match="It is a data set"):
        load_policy(tmp_path / "data")
    with pytest.raises(KinoiseError, match="sampler"):
        load_policy(saved, decode={"sampler": "magic"})
    with pytest.raises(KinoiseError, match="the data hold"):
        small("mode", observations=["camera"])
    with pytest.raises(KinoiseError, match="policy=diffusion"):
        build_policy(replace(small("mode").config, name="diffusion"), SPEC, STATS, TEXTS)
    policy = small("mode")
    with pytest.raises(KinoiseError, match="training mode"):
        policy.plan(observation(policy), generators(3))


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("state", lambda x: x[..., :4], r"'state' is torch.float32 of \(4,\); the policy needs float32 of \(5,\)"),
        ("state", lambda x: x.index_fill(2, torch.tensor([1]), float("nan")), "'state' holds NaN"),
        ("image.front", lambda x: x[:, :, :40, :40], r"of \(40, 40, 3\); the policy needs uint8 of \(48, 48, 3\)"),
        ("image.front", lambda x: x.float(), "torch.float32 of"),
        ("image.front", lambda x: x[:, 0], "steps of history"),
    ],
)
def test_observations_of_another_kind_are_refused(name: str, key: str, change: Callable, message: str) -> None:
    policy = small(name, observations=["state", "image.front"]).eval()
    obs = observation(policy)
    wrong = replace(obs, values={**obs.values, key: change(obs.values[key])})
    with pytest.raises(KinoiseError, match=message):
        policy.plan(wrong, generators(3))
