"""LeRobot's format: what is written and read is the same, as files or as video, and says so in LeRobot's own files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kinoise import files
from kinoise.data import Episode, open_store
from kinoise.data.base import episode, features
from kinoise.data.lerobot import LeRobotStore
from kinoise.data.lerobot.rows import Rows
from kinoise.spec import Feature, KinoiseError, Spec
from lerobot_v21 import CAMERA, CODEC_ERROR, TASKS, edit, frames, pictures


@pytest.fixture(scope="module", autouse=True)
def _no_flush():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "sync", lambda path: None)
        yield


number = st.floats(-1e6, 1e6, width=32)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e9, 1e9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
EXTRAS = st.dictionaries(
    st.sampled_from(
        ["reward", "done", "success", "timestamp", "sim_state", "index", "action.old", "next.reward", "observation.x"]
    ),
    st.tuples(
        st.sampled_from(["float32", "float64", "bool", "int64", "uint8", "float16"]), st.sampled_from([(), (1,), (3,), (2, 2)])
    ),
    max_size=4,
)


def drawn(draw: Any, key: str, steps: int, dtype: str, shape: tuple[int, ...], rate: float) -> np.ndarray:
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    if key == "timestamp" and draw(st.booleans()):
        return np.broadcast_to((np.arange(steps) / rate).reshape(-1, *[1] * len(shape)), (steps, *shape)).astype(dtype)
    return (rng.normal(size=(steps, *shape)) * 3).astype(dtype)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_an_episode_written_and_read_is_the_same(data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    language, rate = draw(st.booleans()), draw(st.sampled_from([10.0, 30.0, 12.5, 29.97]))
    observations = {
        key: replace(feature, unit=("m",) * draw(st.integers(0, 1)))
        for key, feature in {
            "state": Feature((3,), names=("a", "b", "ü")),
            "image": Feature((4, 3, 3), "image"),
            "image.top left": Feature((3, 3, 3), "image"),
            "img": Feature((2, 5, 3), "image"),
            "grid": Feature((6,)),
            "one": Feature((1,), low=(-1.0,), high=(1.0,)),
        }.items()
        if key == "state" or draw(st.booleans())
    }
    control = draw(st.sampled_from(["absolute", "relative", "delta"]))
    spec = Spec(observations, Feature((draw(st.integers(1, 4)),)), rate, control, (0,), language)
    kinds = draw(EXTRAS)
    items = []
    for steps in draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)):
        arrays = {
            key: rng.integers(0, 256, (steps, *item.shape), np.uint8)
            if item.kind == "image"
            else rng.normal(size=(steps, *item.shape)).astype(np.float32)
            for key, item in features(spec).items()
        }
        extras = {key: drawn(draw, key, steps, *kind, rate) for key, kind in kinds.items()}
        info = draw(st.dictionaries(st.text(max_size=4), json_values, max_size=3))
        items.append(Episode(arrays, draw(st.text(min_size=language, max_size=9)), info, extras))
    meta = {"robomimic": {"env_args": draw(json_values)}}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        assert LeRobotStore.write(path, spec, iter(items), meta, data_mb=draw(st.sampled_from([1e-6, 100.0]))) == []
        store = open_store(path)
        assert (store.format, store.spec, store.meta, store.dropped) == ("lerobot", spec, meta, ())
        for index, item in enumerate(items):
            assert_same(episode(store, index), item)
        # LeRobot's own files say most of it.
        (path / "meta/kinoise.json").unlink()
        plain = open_store(path)
        assert plain.ends.tolist() == store.ends.tolist()
        assert plain.spec.observations.keys() == spec.observations.keys()
        for index, item in enumerate(items):
            found = episode(plain, index)
            assert found.instruction == item.instruction
            for key, array in item.arrays.items():
                np.testing.assert_array_equal(found.arrays[key].reshape(array.shape), array)


def assert_same(found: Episode, item: Episode) -> None:
    assert (found.instruction, found.info) == (item.instruction, item.info)
    for mine, theirs in ((found.arrays, item.arrays), (found.extras, item.extras)):
        assert mine.keys() == theirs.keys()
        for key, array in theirs.items():
            assert mine[key].dtype == array.dtype
            np.testing.assert_array_equal(mine[key], array, key)


def test_extras_that_are_not_finite_pass_and_leave_the_statistics_json(tmp_path):
    spec = Spec({"state": Feature((1,))}, Feature((1,)), 10.0)
    values = [np.array([np.nan, 1.0, 3.0]), np.array([np.inf, np.nan, -np.inf])]
    items = [
        Episode({"state": np.ones((3, 1), np.float32), "action": np.ones((3, 1), np.float32)}, "x", extras={"force": value})
        for value in values
    ]
    LeRobotStore.write(tmp_path / "data", spec, items)
    store = open_store(tmp_path / "data")
    np.testing.assert_array_equal(store.read("force", 0, 6), np.concatenate(values))
    force = json.loads((tmp_path / "data/meta/stats.json").read_text())["force"]
    assert (force["count"], force["mean"], force["max"]) == ([2], [2.0], [3.0])


def test_statistics_are_those_of_the_pictures_and_numbers(tmp_path):
    spec, items = small()
    LeRobotStore.write(tmp_path / "data", spec, items)
    found = json.loads((tmp_path / "data/meta/stats.json").read_text())
    for name, key in (("observation.state", "state"), (CAMERA, "image.top")):
        image = key != "state"
        parts = [item.arrays[key].reshape(-1, 3) / (255 if image else 1) for item in items]
        whole, lengths = np.concatenate(parts).astype(float), np.array([6, 1, 9])
        for kind, truth in (("min", whole.min(0)), ("max", whole.max(0)), ("mean", whole.mean(0)), ("std", whole.std(0))):
            np.testing.assert_allclose(np.ravel(found[name][kind]), truth, atol=1e-6)
        for kind, share in (("q01", 0.01), ("q50", 0.5), ("q99", 0.99)):
            # LeRobot's are the episodes' own, averaged by their lengths.
            truth = np.average(
                [np.quantile(part, share, axis=0, method="lower" if image else "linear") for part in parts],
                axis=0,
                weights=lengths,
            )
            np.testing.assert_allclose(np.ravel(found[name][kind]), truth, atol=1e-6)
        assert np.shape(found[name]["mean"]) == ((3, 1, 1) if image else (3,))
        assert found[name]["count"] == [16]


def test_a_row_group_of_many_episodes_is_decoded_once(tmp_path, monkeypatch):
    spec, items = small()
    LeRobotStore.write(tmp_path / "data", spec, items)
    (file,) = (tmp_path / "data/data").rglob("*.parquet")
    pq.write_table(pq.read_table(file), file)  # as pandas would: one row group
    reads: list[list[str]] = []
    whole = pq.ParquetFile.read_row_groups

    def counted(self, groups, columns, **options):
        reads.append(list(columns))
        return whole(self, groups, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", counted)
    store = open_store(tmp_path / "data")
    for index, item in enumerate(items):
        np.testing.assert_array_equal(episode(store, index).arrays["action"], item.arrays["action"])
    assert sorted(reads) == [["action"], [CAMERA], ["observation.state"]]


def small(count: int = 3, size: tuple[int, int] = (32, 48)) -> tuple[Spec, list[Episode]]:
    spec = Spec({"state": Feature((3,)), "image.top": Feature((*size, 3), "image")}, Feature((2,)), 10.0)
    items = [
        Episode({"state": item["state"], "action": item["action"], "image.top": frames(len(item["action"]), index, size)}, task)
        for index, (item, task) in enumerate(zip(pictures((6, 1, 9, 5, 4)[:count]), TASKS, strict=False))
    ]
    return spec, items


def test_opening_reads_no_column_of_the_data(tmp_path, monkeypatch):
    spec, items = small()
    LeRobotStore.write(tmp_path / "data", spec, items, video=True)
    read = []
    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", lambda *_, **options: read.append(options))
    monkeypatch.setattr(Rows, "_file", lambda self, path: read.append(path))
    assert open_store(tmp_path / "data").ends.tolist() == [6, 7, 16]
    assert not read


@pytest.mark.parametrize("rows", [1, 4, 1000])
def test_row_groups_may_lie_anywhere(rows, tmp_path):
    spec, items = small()
    LeRobotStore.write(tmp_path / "data", spec, items)
    file = tmp_path / "data/data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(file), file, row_group_size=rows)
    store = open_store(tmp_path / "data")
    for index in (2, 0, 1, 0):
        assert_same(episode(store, index), items[index])


def test_a_snapshot_of_the_hub_is_links_to_files_elsewhere(tmp_path):
    spec, items = small()
    LeRobotStore.write(tmp_path / "data", spec, items, video=True)
    (tmp_path / "blobs").mkdir()
    for number, file in enumerate(sorted(item for item in (tmp_path / "data").rglob("*") if item.is_file())):
        file.rename(tmp_path / "blobs" / str(number))
        file.symlink_to(tmp_path / "blobs" / str(number))
    store = open_store(tmp_path / "data")
    np.testing.assert_array_equal(episode(store, 2).arrays["state"], items[2].arrays["state"])
    assert episode(store, 2).arrays["image.top"].shape == (9, 32, 48, 3)


@pytest.mark.parametrize("video_mb", [0.0, 200.0])
def test_video_keeps_every_frame_in_its_place(video_mb, tmp_path):
    spec, items = small()
    lost = LeRobotStore.write(tmp_path / "data", spec, iter(items), video=True, video_mb=video_mb)
    assert lost == ["image.top: compressed as video, not bit for bit"]
    assert len(list((tmp_path / "data/videos").rglob("*.mp4"))) == (3 if video_mb == 0 else 1)
    store = open_store(tmp_path / "data")
    assert store.spec == spec
    for index in (2, 0, 1):
        found, truth = episode(store, index).arrays["image.top"], items[index].arrays["image.top"]
        assert abs(found.astype(int) - truth).max() <= CODEC_ERROR
        np.testing.assert_array_equal(episode(store, index).arrays["state"], items[index].arrays["state"])


def test_cameras_that_no_codec_takes_stay_images(tmp_path):
    for size in ((7, 16), (8, 8)):
        spec, items = small(2, size)
        lost = LeRobotStore.write(tmp_path / str(size), spec, items, video=True)
        assert "kept as images" in lost[0]
        np.testing.assert_array_equal(open_store(tmp_path / str(size)).read("image.top", 0, 6), items[0].arrays["image.top"])


def test_time_stamps_are_lerobots_own_where_they_can_be(tmp_path):
    spec, items = small(2)
    steady = [replace(item, extras={"timestamp": (np.arange(len(item.arrays["action"])) / 10).astype("f4")}) for item in items]
    shaky = replace(items[1], extras={"timestamp": np.array([0.5], np.float32)})
    LeRobotStore.write(tmp_path / "steady", spec, steady)
    assert "extra.timestamp" not in json.loads((tmp_path / "steady/meta/info.json").read_text())["features"]
    LeRobotStore.write(tmp_path / "shaky", spec, [shaky, steady[0]], video=True)
    assert open_store(tmp_path / "shaky").read("timestamp", 0, 1) == [0.5]
    with pytest.raises(KinoiseError, match=r"episode 1 .*'timestamp' is not step / 10 Hz.*video=False"):
        LeRobotStore.write(tmp_path / "mixed", spec, [steady[0], shaky], video=True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda own: own["episodes"].pop(), "other episodes"),
        (lambda own: own["spec"].update(rate=5.0), "its rate is 5.0, fps is 10"),
        (lambda own: own["spec"]["observations"]["state"].update(shape=[4]), r"'observation.state' is float32\[3\]"),
        (lambda own: own["names"].pop("state"), "its names"),
        (lambda own: own.update(format=9), "its format is 9"),
        (lambda own: own.pop("meta"), "KeyError"),
    ],
)
def test_kinoises_own_file_is_left_aside_where_it_does_not_fit(change, reason, tmp_path):
    spec, items = small()
    LeRobotStore.write(tmp_path / "data", spec, items)
    edit(tmp_path / "data/meta/kinoise.json", change)
    store = open_store(tmp_path / "data")
    assert [reason.split(r"\[")[0] in line for line in store.dropped] == [True]
    np.testing.assert_array_equal(store.read("state", 0, 6), items[0].arrays["state"])
