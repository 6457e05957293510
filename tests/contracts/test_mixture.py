"""What a mixture of data sets promises: the file, the store, the shares, each member's own normalisation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from kinoise import files
from kinoise.data import FORMATS, Episode, Reading, open_store, write_store
from kinoise.data.base import ACTION, episode, features
from kinoise.data.cache.copies import mapped
from kinoise.data.mixture.store import Mixture
from kinoise.data.stats import statistics
from kinoise.data.windows import Windows
from kinoise.policies import build_policy, choices
from kinoise.policies.checkpoint import load_policy, save_policy
from kinoise.spec import Feature, KinoiseError, Observation, Spec, SpecMismatch
from kinoise.train.order import MixedOrder, Order, make_order
from omegaconf import OmegaConf

SPEC = Spec(
    observations={"state": Feature((3,), unit=("m",)), "image.front": Feature((4, 5, 3), "image")},
    action=Feature((2,), names=("x", "grip"), low=(-9.0, 0.0), high=(9.0, 1.0)),
    rate=20.0,
    gripper=(1,),
)


@pytest.fixture(scope="module", autouse=True)
def _no_flush():
    """Whether bytes outlive a power cut is not under test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "sync", lambda path: None)
        yield


def episodes(seed: int, lengths: tuple[int, ...] = (7, 1, 4), spec: Spec = SPEC, extras: bool = True) -> list[Episode]:
    rng, found = np.random.default_rng(seed), []
    for index, steps in enumerate(lengths):
        arrays = {
            key: rng.integers(0, 256, (steps, *item.shape), np.uint8)
            if item.kind == "image"
            else rng.normal(size=(steps, *item.shape)).astype(np.float32)
            for key, item in features(spec).items()
        }
        beside = {"reward": rng.normal(size=steps).astype(np.float32)} if extras else {}
        found.append(Episode(arrays, f"task {(seed + index) % 3}" if spec.language else "", {"index": index}, beside))
    return found


def describe(folder: Path, *datasets: dict[str, Any], **settings: Any) -> Path:
    path = folder / "mixture.yaml"
    path.write_text(yaml.safe_dump({"datasets": list(datasets), **settings}))
    return path


def renamed(spec: Spec = SPEC, key: str = "proprio") -> Spec:
    return replace(spec, observations={key: spec.observations["state"], "image.front": spec.observations["image.front"]})


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`a` and `b`, which calls its state otherwise."""
    folder = tmp_path_factory.mktemp("pair")
    write_store(folder / "a", SPEC, episodes(0), chunk_bytes=100, meta={"robot": "arm", "day": 1})
    write_store(folder / "b", renamed(), episodes(1, (5, 6), renamed()), meta={"robot": "arm", "day": 2})
    return folder


@pytest.fixture(scope="module")
def mixed(pair: Path) -> Mixture:
    store = open_store(
        describe(pair, {"path": "a", "weight": 3}, {"path": "b", "name": "second", "rename": {"proprio": "state"}})
    )
    assert isinstance(store, Mixture)
    return store


def test_a_mixture_is_its_members_end_to_end(mixed: Mixture, pair: Path) -> None:
    members = [open_store(pair / "a"), open_store(pair / "b", Reading(rename={"proprio": "state"}))]
    assert mixed.format == "mixture"
    assert mixed.spec == SPEC
    assert mixed.keys == ("state", "image.front", "action")
    assert mixed.ends.tolist() == [7, 8, 12, 17, 23]
    assert mixed.member.tolist() == [0, 0, 0, 1, 1]
    assert [item["dataset"] for item in mixed.info] == ["a"] * 3 + ["second"] * 2
    assert [item["index"] for item in mixed.info] == [0, 1, 2, 0, 1]
    assert [mixed.texts[index] for index in mixed.text] == [item.texts[index] for item in members for index in item.text]
    assert len(set(mixed.texts)) == len(mixed.texts)
    assert mixed.meta == {"robot": "arm"}
    assert any("day" in line and line.startswith("a:") for line in mixed.dropped)
    rng = np.random.default_rng(0)
    for key in (*mixed.keys, "reward"):
        truth = np.concatenate([item.read(key, 0, int(item.ends[-1])) for item in members])
        for start, stop in [
            (0, 23),
            (0, 0),
            (23, 23),
            (12, 12),
            (3, 12),
            (12, 20),
            (7, 13),
            *np.sort(rng.integers(0, 24, (9, 2))),
        ]:
            np.testing.assert_array_equal(mixed.read(key, int(start), int(stop)), truth[start:stop])
        for indices in (rng.integers(0, 23, (4, 2)), np.array([1, 2]), np.array([15]), np.zeros((0, 3), np.int64)):
            found = mixed.gather(key, indices)
            assert found.dtype == truth.dtype
            np.testing.assert_array_equal(found, truth[indices])
    for index, expected in enumerate([episode(item, i) for item in members for i in range(len(item.ends))]):
        np.testing.assert_array_equal(episode(mixed, index).arrays["state"], expected.arrays["state"])


def test_steps_outside_a_mixture_are_refused(mixed: Mixture) -> None:
    for wrong in (-1, 23):
        with pytest.raises(IndexError):
            mixed.gather("state", np.array([0, wrong]))
    for wrong in ((-1, 2), (0, 24), (3, 2)):
        with pytest.raises(IndexError):
            mixed.read("state", *wrong)


def test_statistics_are_those_of_all_steps(mixed: Mixture) -> None:
    exact, found = statistics(mixed), mixed.stats()
    assert found.keys() == exact.keys()
    assert found["state"] == exact["state"]
    assert found["action"] == exact["action"]
    for name in ("mean", "std", "min", "max", "count"):
        assert getattr(found["image.front"], name) == pytest.approx(getattr(exact["image.front"], name))


def test_the_same_mixture_over_other_stores(mixed: Mixture) -> None:
    other = mixed.replaced(list(mixed.members))
    np.testing.assert_array_equal(other.read("state", 0, 23), mixed.read("state", 0, 23))
    assert (other.names, other.weights, other.info) == (mixed.names, mixed.weights, mixed.info)


def test_foreign_data_sets_are_decoded_once_and_mixed_from_their_copies(tmp_path: Path) -> None:
    bare = replace(SPEC, observations={"state": SPEC.observations["state"]})
    write_store(tmp_path / "a", bare, episodes(0, spec=bare))
    FORMATS["robomimic"].write(tmp_path / "b.hdf5", renamed(), episodes(1, (5, 6), renamed()), {})
    other = {"path": "b.hdf5", "weight": 2, "rename": {"proprio": "state"}, "keys": ["state"]}
    direct = open_store(describe(tmp_path, {"path": "a"}, other))
    copied = mapped(direct, tmp_path / "cache")
    assert isinstance(copied, Mixture)
    assert (copied.spec, copied.info, copied.weights) == (direct.spec, direct.info, (1.0, 2.0))
    for key in direct.keys:
        np.testing.assert_array_equal(copied.read(key, 0, 23), direct.read(key, 0, 23))
    assert copied.stats() == statistics(direct)


def test_extras_that_one_lacks_are_dropped_and_named(tmp_path: Path) -> None:
    write_store(tmp_path / "a", SPEC, episodes(0))
    write_store(tmp_path / "b", SPEC, episodes(1, extras=False))
    store = open_store(describe(tmp_path, {"path": "a"}, {"path": "b"}))
    assert store.extras == {}
    assert [line for line in store.dropped if "reward" in line and line.startswith("a:")]


def test_one_data_set_and_what_its_files_do_not_say(tmp_path: Path) -> None:
    bare = replace(SPEC, language=False, gripper=())
    write_store(tmp_path / "a", bare, episodes(0, spec=bare))
    entry = {
        "path": "a",
        "rate": 5,
        "control": "absolute",
        "gripper": [1],
        "instruction": "push",
        "keys": ["state"],
        "weight": 2,
    }
    store = open_store(describe(tmp_path, entry))
    assert isinstance(store, Mixture)
    assert store.spec == replace(SPEC.select(["state"]), rate=5.0, control="absolute")
    assert store.texts == ("push",)
    assert store.weights is None
    assert Windows(store, 2).batch(np.arange(3)).observation.texts == ("push",)


def test_what_one_lacks_the_others_say(tmp_path: Path) -> None:
    bare = replace(SPEC, action=Feature((2,)), observations={**SPEC.observations, "state": Feature((3,))})
    write_store(tmp_path / "a", bare, episodes(0))
    write_store(tmp_path / "b", SPEC, episodes(1))
    assert open_store(describe(tmp_path, {"path": "a"}, {"path": "b"})).spec == SPEC


def test_every_difference_is_said_at_once_with_what_to_do(tmp_path: Path) -> None:
    other = Spec(
        {"hand": SPEC.observations["state"], "image.front": Feature((6, 5, 3), "image")},
        Feature((2,), low=(-1.0, 0.0)),
        rate=10.0,
        control="absolute",
        language=False,
    )
    write_store(tmp_path / "a", SPEC, episodes(0))
    write_store(tmp_path / "b", other, episodes(1, spec=other))
    write_store(tmp_path / "c", replace(SPEC, rate=7.0), episodes(2))
    with pytest.raises(SpecMismatch) as caught:
        open_store(describe(tmp_path, {"path": "a"}, {"path": "b"}, {"path": "c"}))
    message = str(caught.value)
    assert "\n" not in message
    for part in ("'state': only in a", "'hand': only in b", "shape: a (4, 5, 3), b (6, 5, 3)", "rate: a 20.0, b 10.0"):
        assert part in message
    for part in ("control:", "gripper:", "language:", "action low", "rate: a 20.0, c 7.0"):
        assert part in message
    for remedy in ("rename", "keys", "nothing is resampled", "instruction", "normalise: each"):
        assert remedy in message.split("What to do")[1]


BAD: dict[str, tuple[Any, tuple[str, ...]]] = {
    "not a mapping": ([1], ("expected 'datasets:'",)),
    "no data sets": ({"datasets": []}, ("expected 'datasets:'",)),
    "unknown keys": (
        {"datasets": [{"path": "a", "wieght": 2}, {"name": "x"}], "normalize": "each"},
        ("unknown keys ['wieght']", "unknown keys ['normalize']", "datasets[1]: expected a mapping with a path"),
    ),
    "wrong values": (
        {"datasets": [{"path": "a", "weight": 0, "rate": "fast", "gripper": [-1], "rename": ["x"], "keys": "state"}]},
        ("weight: expected a number above 0, came 0", "rate:", "gripper:", "rename:", "keys:"),
    ),
    "wrong settings": (
        {"datasets": [{"path": "a"}], "normalise": "some", "normalise_gripper": 1},
        ("together or each", "true"),
    ),
    "missing": ({"datasets": [{"path": "x"}, {"path": "a"}, {"path": "y"}]}, ("x does not exist", "y does not exist")),
    "one name twice": ({"datasets": [{"path": "a"}, {"path": "a"}]}, ("several data sets are called 'a'",)),
    "no such filter": ({"datasets": [{"path": "a", "filter": "train"}, {"path": "b", "keys": ["eef"]}]}, ("filter", "eef")),
    "a mixture": ({"datasets": [{"path": "inner.yaml"}]}, ("a mixture too",)),
    "itself": ({"datasets": [{"path": "bad.yaml"}, {"path": "x"}]}, ("x does not exist",)),
    "itself alone": ({"datasets": [{"path": "bad.yaml"}]}, ("a mixture too",)),
    "no paths": (
        {"datasets": [{"path": "~nobody-here/x"}, {"path": "a" * 300}]},
        ("x: ", "~nobody-here/x does not exist", "aaa does not exist"),
    ),
    "no numbers": (
        {"datasets": [{"path": "a", "weight": 10**400}, {"path": "a\0b"}, {"path": "a", "keys": []}]},
        ("datasets[0]: weight: expected a number above 0", "datasets[1]: path: expected text", "datasets[2]: keys: expected a"),
    ),
    "all sorts": (
        {"datasets": [{"path": "a", "wieght": 3}, {"path": "x"}, {"path": "b", "rename": {"q": "r"}}], "normalize": "each"},
        ("Did you mean weight?", "Did you mean normalise?", "x does not exist", "rename has 'q'"),
    ),
    "superfluous": ({"datasets": [{"path": "a", "instruction": "x"}]}, ("leave out instruction",)),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_file_is_refused_with_everything_that_is_wrong(case: str, pair: Path) -> None:
    value, parts = BAD[case]
    (pair / "inner.yaml").write_text("datasets: [{path: a}]")
    path = pair / "bad.yaml"
    path.write_text(yaml.safe_dump(value))
    with pytest.raises(KinoiseError) as caught:
        open_store(path)
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_a_file_that_is_no_yaml_and_settings_that_belong_into_it(pair: Path, mixed: Mixture) -> None:
    (pair / "bad.yaml").write_text("datasets: [{path: a")
    with pytest.raises(KinoiseError, match="not valid YAML") as caught:
        open_store(pair / "bad.yaml")
    assert "\n" not in str(caught.value)
    with pytest.raises(KinoiseError, match="write keys, rate there"):
        open_store(mixed.path, Reading(rate=5.0, keys=("state",)))
    with pytest.raises(KinoiseError, match="another format"):
        Mixture.write(pair / "new.yaml", SPEC, [])


def test_weights_are_shares_and_none_is_the_plain_order(mixed: Mixture, pair: Path) -> None:
    windows = Windows(mixed, 4)
    order = make_order(windows, 8, 1)
    assert isinstance(order, MixedOrder)
    seen = np.concatenate([order.indices(step) for step in range(20)])
    assert (seen < 12).sum() == 120
    plain = open_store(describe(pair, {"path": "a"}, {"path": "b", "rename": {"proprio": "state"}}))
    for store in (plain, open_store(pair / "a")):
        windows = Windows(store, 4)
        found = make_order(windows, 5, 3)
        assert all(np.array_equal(found.indices(step), Order(len(windows), 5, 3).indices(step)) for step in range(9))


def test_shares_hold_among_the_episodes_that_are_not_held_out(mixed: Mixture) -> None:
    windows = Windows(mixed, 4, subset=[3, 0, 2])
    groups = windows.groups(mixed.member)
    assert [group.tolist() for group in groups] == [list(range(5, 16)), list(range(5))]
    order = make_order(windows, 4, 0)
    assert [(np.isin(order.indices(step), groups[1])).sum() for step in range(5)] == [1] * 5
    with pytest.raises(KinoiseError, match=r"every episode of second is held out"):
        make_order(Windows(mixed, 4, subset=[0, 1]), 4, 0)


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
