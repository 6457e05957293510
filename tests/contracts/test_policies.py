"""Contracts over every policy and preset: trains, saves, loads, plans; and what is wrong with a checkpoint is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kinoise.policies import POLICIES, build_policy, choices
from kinoise.policies.base import Policy
from kinoise.policies.checkpoint import load_policy, save_policy
from kinoise.spec import Batch, Feature, KinoiseError, Observation, Plan, Spec, Stats
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

TEXTS = ("open the drawer", "close the drawer")
SPEC = Spec(
    observations={"state": Feature((5,)), "image.front": Feature((48, 48, 3), kind="image")},
    action=Feature((3,), low=(-1.0,) * 3, high=(1.0,) * 3),
    rate=20.0,
)
STATS = {
    key: Stats(mean=(0.1,) * n, std=(0.5,) * n, min=(-1.0,) * n, max=(1.0,) * n, q01=(-0.9,) * n, q99=(0.9,) * n, count=9)
    for key, n in (("state", 5), ("image.front", 3), ("action", 3))
}
SMALL = {"network": {"width": 32, "depth": 2}, "chunk": 4, "execute": 2}
IMAGES = {"discrete_vla": {"patch": 8}}
"""Settings of each policy's encoder when it sees images; of most this:"""
SHARED = {"shared_cameras": True}
OTHER = {"discrete_vla": ("autoregressive", lambda steps: 4 * 3)}
"""Each policy's second sampler and the evaluations it takes for so many steps; of most this:"""
HEUN = ("heun", lambda steps: 2 * steps - 1)


def small(name: str, **over: object) -> Policy:
    config = OmegaConf.merge(OmegaConf.structured(choices()[name]), SMALL, {"observations": ["state"]}, over)
    return build_policy(OmegaConf.to_object(config), SPEC, STATS, TEXTS, seed=0)


def observation(policy: Policy, rows: int = 3, seed: int = 0) -> Observation:
    gen = torch.Generator().manual_seed(seed)
    shape = (rows, policy.config.history)
    values = {"state": torch.randn(*shape, 5, generator=gen)}
    if "image.front" in policy.spec.observations:
        values["image.front"] = torch.randint(0, 256, (*shape, 48, 48, 3), generator=gen, dtype=torch.uint8)
    return Observation(values, TEXTS, torch.arange(rows) % 2)


def batch(policy: Policy, rows: int = 8) -> Batch:
    gen = torch.Generator().manual_seed(1)
    chunk = policy.config.chunk
    actions = torch.randn(rows, chunk, 3, generator=gen).clamp(-1, 1)
    return Batch(observation(policy, rows), actions, torch.arange(chunk)[None] < torch.arange(1, rows + 1)[:, None])


def train(policy: Policy, steps: int = 2, lr: float = 1e-2) -> list[float]:
    optimizer, data, losses = torch.optim.AdamW(policy.parameters(), lr=lr), batch(policy), []
    for step in range(steps):
        loss = policy.loss(data, torch.Generator().manual_seed(step)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def generators(rows: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in range(rows)]


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


def load_changed(policy: Policy, **decode: object) -> Policy:
    config = OmegaConf.merge(OmegaConf.structured(policy.config), {"decode": decode})
    other = build_policy(OmegaConf.to_object(config), SPEC, STATS, TEXTS, seed=1)
    other.load_state_dict(policy.state_dict())
    return other.eval()


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
    with pytest.raises(KinoiseError, match="sampler"):
        load_policy(saved, decode={"sampler": "magic"})
    with pytest.raises(KinoiseError, match="the data hold"):
        small("mode", observations=["camera"])
    with pytest.raises(KinoiseError, match="policy=diffusion"):
        build_policy(replace(small("mode").config, name="diffusion"), SPEC, STATS, TEXTS)
    policy = small("mode")
    with pytest.raises(KinoiseError, match="training mode"):
        policy.plan(observation(policy), generators(3))


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
