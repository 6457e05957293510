"""What a mixture of data sets promises: the file, the store, the statistics, the shares."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from kinoise import files
from kinoise.data import FORMATS, Reading, open_store, write_store
from kinoise.data.base import episode
from kinoise.data.cache.copies import mapped
from kinoise.data.mixture.store import Mixture
from kinoise.data.stats import statistics
from kinoise.data.windows import Windows
from kinoise.spec import Feature, KinoiseError, Spec, SpecMismatch
from kinoise.train.order import MixedOrder, Order, make_order
from mixed_data import SPEC, describe, episodes, renamed


@pytest.fixture(scope="module", autouse=True)
def _no_flush():
    """Whether bytes outlive a power cut is not under test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "sync", lambda path: None)
        yield


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
