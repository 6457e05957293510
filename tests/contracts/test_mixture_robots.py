"""What `normalise: each` promises of a mixture of robots: their numbers laid over the first one's, and policies for each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kinoise import files
from kinoise.data import Episode, open_store, write_store
from kinoise.data.base import ACTION
from kinoise.data.mixture.store import Mixture
from kinoise.policies import build_policy, choices
from kinoise.policies.checkpoint import load_policy, save_policy
from kinoise.spec import Feature, KinoiseError, Observation, SpecMismatch
from mixed_data import SPEC, describe, episodes
from omegaconf import OmegaConf


@pytest.fixture(scope="module", autouse=True)
def _no_flush():
    """Whether bytes outlive a power cut is not under test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "sync", lambda path: None)
        yield


SCALE, SHIFT = np.array([2.0, 0.5, 30.0]), np.array([1.0, -4.0, 1000.0])
ACTION_SCALE, ACTION_SHIFT = np.array([0.25, 1.0]), np.array([3.0, 0.0])
"""The second robot's numbers are these times the first one's, plus those; the gripper's are the same."""


def image_of(item: Episode) -> Episode:
    state = (item.arrays["state"] * SCALE + SHIFT).astype(np.float32)
    action = (item.arrays[ACTION] * ACTION_SCALE + ACTION_SHIFT).astype(np.float32)
    return replace(item, arrays={**item.arrays, "state": state, ACTION: action})


@pytest.fixture(scope="module")
def robots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One robot twice, in different numbers, units and bounds."""
    folder, items = tmp_path_factory.mktemp("robots"), episodes(4, (30, 20))
    low, high = ([(value * 0.25 + 3.0) if i == 0 else value for i, value in enumerate(ends)] for ends in ((-9, 0), (9, 1)))
    other = replace(
        SPEC,
        observations={**SPEC.observations, "state": Feature((3,), unit=("inch",))},
        action=Feature((2,), low=tuple(map(float, low)), high=tuple(map(float, high))),
    )
    write_store(folder / "a", SPEC, items)
    write_store(folder / "b", other, map(image_of, items))
    return folder


def each(folder: Path, **settings: Any) -> Mixture:
    store = open_store(describe(folder, {"path": "a"}, {"path": "b"}, normalise="each", **settings))
    assert isinstance(store, Mixture)
    return store


def test_each_lays_a_robots_numbers_over_the_firsts(robots: Path) -> None:
    store = each(robots)
    assert store.spec == SPEC
    for key in ("state", ACTION):
        first, second = store.read(key, 0, 50), store.read(key, 50, 100)
        np.testing.assert_array_equal(first, store.members[0].read(key, 0, 50))
        np.testing.assert_allclose(second, first, atol=2e-4)
        np.testing.assert_array_equal(store.gather(key, np.array([60, 3, 99])), store.read(key, 0, 100)[[60, 3, 99]])
    np.testing.assert_array_equal(store.read(ACTION, 50, 100)[:, 1], store.members[1].read(ACTION, 0, 50)[:, 1])
    np.testing.assert_array_equal(store.read("image.front", 50, 100), store.members[1].read("image.front", 0, 50))
    assert any("normalise: each" in line for line in store.notes)
    with pytest.raises(SpecMismatch, match="unit"):
        open_store(describe(robots, {"path": "a"}, {"path": "b"}))


def test_a_frames_statistics_are_the_robots_own(robots: Path) -> None:
    store = each(robots)
    frames = store.frames()
    assert frames.keys() == {"a", "b"}
    for index, (spec, stats) in enumerate(frames.values()):
        own = store.members[index].stats()
        assert spec == store.members[index].spec
        for key in ("state", ACTION):
            for name in ("mean", "std", "min", "max"):
                np.testing.assert_allclose(getattr(stats[key], name), getattr(own[key], name), rtol=1e-4, atol=1e-4)


def test_grippers_are_normalised_on_request_alone(tmp_path: Path) -> None:
    items = episodes(0, (20,))
    for item in items:
        item.arrays[ACTION][:, 1] = np.arange(20) % 2
    write_store(tmp_path / "a", SPEC, items)
    other = [replace(item, arrays={**item.arrays, ACTION: item.arrays[ACTION] * np.float32([1, 80])}) for item in items]
    write_store(tmp_path / "b", SPEC, other)
    assert each(tmp_path).read(ACTION, 20, 40)[:, 1].max() == 80
    assert each(tmp_path, normalise_gripper=True).read(ACTION, 20, 40)[:, 1].max() == 1


def test_dimensions_that_a_robot_never_moves(tmp_path: Path) -> None:
    """The first robot's dimension 0 rests, the second's 1, and both rest in 2."""
    spec = replace(SPEC, observations={"state": Feature((3,))})
    for name, rest in (("a", {0: 5.0, 2: 1.0}), ("b", {1: 100.0, 2: -7.0})):
        items = episodes(1, (40,), spec)
        for dim, value in rest.items():
            items[0].arrays["state"][:, dim] = value
        write_store(tmp_path / name, spec, items)
    store = each(tmp_path)
    state, stats = store.read("state", 40, 80), store.members[0].stats()["state"]
    raw = store.members[1].read("state", 0, 40)
    np.testing.assert_allclose(np.ptp(state[:, 0]), np.ptp(raw[:, 0]), rtol=1e-5)
    assert abs((np.quantile(state[:, 0], 0.01) + np.quantile(state[:, 0], 0.99)) / 2 - 5) < 1e-4
    np.testing.assert_allclose(state[:, 1], (stats.q01[1] + stats.q99[1]) / 2, atol=1e-6)
    np.testing.assert_allclose(state[:, 2], 1.0)
    assert np.isfinite(state).all()


@pytest.mark.parametrize(
    ("name", "scaling"),
    [("diffusion", "minmax"), ("diffusion", "quantile"), ("diffusion", "meanstd"), ("mode", "minmax"), ("discrete_vla", "")],
)
def test_a_policy_plans_for_one_robot_the_image_of_what_it_plans_for_the_other(
    name: str, scaling: str, robots: Path, tmp_path: Path
) -> None:
    store = each(robots)
    own: dict[str, Any] = {"encoder": {"state": scaling}, "actions": scaling} if scaling else {"bins": {"count": 64}}
    settings = {"network": {"width": 32, "depth": 2}, "chunk": 4, "execute": 2, "observations": ["state"], **own}
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(choices()[name]), settings))
    policy = build_policy(config, store.spec, store.stats(), store.texts)  # type: ignore[arg-type]
    for item in policy.parameters():  # fresh weights may give zeros
        torch.nn.init.normal_(item, std=0.05, generator=torch.Generator().manual_seed(item.numel()))
    policy.frames = store.frames()
    save_policy(tmp_path, policy, {})
    plans = {}
    for robot, member in zip("ab", store.members, strict=True):
        loaded = load_policy(tmp_path, frame=robot, device="cpu")
        assert loaded.spec == open_store(robots / robot).spec.select(["state"])
        state = torch.from_numpy(member.gather("state", np.array([[5], [9], [31]])))
        seen = Observation({"state": state}, (store.texts[0],), torch.zeros(3, dtype=torch.int64))
        plans[robot] = loaded.plan(seen, [torch.Generator().manual_seed(row) for row in range(3)]).actions
    assert float(plans["a"].std()) > 0.01
    mapped = plans["a"].double() * torch.tensor(ACTION_SCALE) + torch.tensor(ACTION_SHIFT)
    torch.testing.assert_close(plans["b"].double(), mapped, atol=2e-3, rtol=0)


def test_frames_outlive_loading_and_unknown_ones_are_named(robots: Path, tmp_path: Path) -> None:
    store = each(robots)
    config = OmegaConf.to_object(
        OmegaConf.merge(
            OmegaConf.structured(choices()["diffusion"]),
            {"network": {"width": 16, "depth": 1, "heads": 2}, "observations": ["state"]},
        )
    )
    policy = build_policy(config, store.spec, store.stats(), store.texts)  # type: ignore[arg-type]
    save_policy(tmp_path / "plain", policy, {})
    with pytest.raises(KinoiseError, match="has none"):
        load_policy(tmp_path / "plain", frame="b", device="cpu")
    policy.frames = store.frames()
    save_policy(tmp_path / "one", policy, {})
    again = load_policy(tmp_path / "one", device="cpu")
    save_policy(tmp_path / "two", again, {})
    assert (tmp_path / "one" / "config.json").read_text() == (tmp_path / "two" / "config.json").read_text()
    assert load_policy(tmp_path / "two", frame="b", device="cpu").stats["state"] == store.frames()["b"][1]["state"]
    with pytest.raises(KinoiseError, match="one of a, b"):
        load_policy(tmp_path / "one", frame="c", device="cpu")
