"""LeRobot's format as others write it: what its files say by themselves, of version 2.1, in many forms and with any codec."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from kinoise import files
from kinoise.data import EpisodeStore, Reading, open_store
from kinoise.data.base import episode
from kinoise.data.lerobot.video import frames as video_frames
from kinoise.spec import Feature, KinoiseError
from lerobot_v21 import CAMERA, CODEC_ERROR, TASKS, change_table, declare, edit, film, frames, pictures, png, write_v21


@pytest.fixture(scope="module", autouse=True)
def _no_flush():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "sync", lambda path: None)
        yield


@pytest.mark.parametrize("video", [False, True])
def test_version_2_1_is_read(video, tmp_path):
    items = pictures()
    write_v21(tmp_path / "da ta", items, TASKS[:3], video=video, chunk=2)
    store = open_store(tmp_path / "da ta")
    assert isinstance(store, EpisodeStore)
    assert store.ends.tolist() == [6, 7, 16]
    assert (store.spec.rate, store.spec.control, store.spec.language) == (10.0, "absolute", True)
    assert store.spec.observations["state"] == Feature((3,), names=("m0", "m1", "m2"))
    assert store.spec.observations["image.top"] == Feature((32, 48, 3), "image")
    assert store.meta == {"lerobot": {"robot_type": "so100"}}
    assert (store.texts, store.text.tolist()) == ((TASKS[0], TASKS[1]), [0, 1, 0])
    for index, item in enumerate(items):
        found = episode(store, index)
        np.testing.assert_array_equal(found.arrays["state"], item["state"])
        np.testing.assert_array_equal(found.arrays["action"], item["action"])
        assert abs(found.arrays["image.top"].astype(int) - item[CAMERA]).max() <= CODEC_ERROR * video
        np.testing.assert_allclose(found.extras["timestamp"], np.arange(len(item["action"])) / 10, atol=1e-6)


@pytest.mark.parametrize(
    ("names", "shape", "expected"),
    [
        (["channels", "height", "width"], [3, 32, 48], (32, 48, 3)),
        (["height", "width", "channel"], [32, 48, 3], (32, 48, 3)),
        (None, [3, 32, 48], (32, 48, 3)),
        ({"axes": ["h"]}, [32, 48, 3], (32, 48, 3)),
    ],
)
def test_cameras_are_declared_in_either_order(names, shape, expected, tmp_path):
    write_v21(tmp_path / "data", pictures((3,)), ["x"], video=False)
    declare(tmp_path / "data", **{CAMERA: {"names": names, "shape": shape}})
    store = open_store(tmp_path / "data")
    assert store.spec.observations["image.top"].shape == expected
    np.testing.assert_array_equal(store.read("image.top", 0, 3), pictures((3,))[0][CAMERA])


@pytest.mark.parametrize(
    ("names", "expected", "gripper", "control"),
    [
        (["x", "gripper"], ("x", "gripper"), (1,), "absolute"),
        ({"motors": ["x", "y"]}, ("x", "y"), (), "absolute"),
        ({"gripper.pos": 1, "delta_x": 0}, ("delta_x", "gripper.pos"), (1,), "delta"),
        ([["x"], ["y"]], ("x", "y"), (), "absolute"),
        (["x"], (), (), "absolute"),
        (None, (), (), "absolute"),
    ],
)
def test_names_of_dimensions_come_in_many_forms(names, expected, gripper, control, tmp_path):
    write_v21(tmp_path / "data", pictures((3,)), ["x"], video=False)
    declare(tmp_path / "data", action={"names": names})
    store = open_store(tmp_path / "data")
    assert (store.spec.action.names, store.spec.gripper, store.spec.control) == (expected, gripper, control)
    assert any("its 1 names" in line for line in store.dropped) == (names == ["x"])


def test_features_become_observations_and_extras_or_are_said_to_be_left_out(tmp_path):
    root = tmp_path / "data"
    write_v21(root, pictures((3,)), ["x"], video=False)
    columns = {
        "next.reward": (pa.array([0.0, 0.5, 1.0], pa.float32()), {"dtype": "float32", "shape": [1]}),
        "next.done": (pa.array([False, False, True]), {"dtype": "bool", "shape": [1]}),
        "next.success": (pa.array([0, 0, 1]), {"dtype": "int64", "shape": [1]}),
        "force": (pa.array([[1.0, 2.0]] * 3), {"dtype": "float64", "shape": [2]}),
        "observation.joints": (pa.array([[[1, 2], [3, 4]]] * 3), {"dtype": "int64", "shape": [2, 2]}),
        "note": (pa.array(["a", "b", "c"]), {"dtype": "string", "shape": [1]}),
        "observation.images.depth": (pa.array([None] * 3, pa.binary()), {"dtype": "image", "shape": [4, 4, 1]}),
        "a/b": (pa.array([1.0] * 3), {"dtype": "float64", "shape": [1]}),
    }
    file = root / "data/chunk-000/episode_000000.parquet"
    for name, (array, declared) in columns.items():
        change_table(file, lambda table, name=name, array=array: table.append_column(name, array))
        declare(root, **{name: declared})
    store = open_store(root)
    assert set(store.spec.observations) == {"state", "image.top", "joints"}
    np.testing.assert_array_equal(store.read("joints", 0, 3), np.array([[1, 2, 3, 4]] * 3, np.float32))
    assert {key: (extra.dtype.name, extra.shape) for key, extra in store.extras.items()} == {
        "timestamp": ("float32", ()),
        "reward": ("float32", ()),
        "done": ("bool", ()),
        "success": ("int64", ()),
        "force": ("float64", (2,)),
    }
    np.testing.assert_array_equal(store.read("done", 0, 3), [False, False, True])
    said = "; ".join(store.dropped)
    for line in (
        "joints: int64 rounded",
        "joints: its shape [2, 2] made flat",
        "note: left out",
        "depth: left out",
        "a/b: left out",
    ):
        assert line in said


def test_an_episode_with_several_tasks_has_the_first_and_keeps_the_others(tmp_path):
    root = tmp_path / "data"
    write_v21(root, pictures((3, 4)), ["reach", "grasp"], video=False)
    lines = (root / "meta/episodes.jsonl").read_text().splitlines()
    lines[1] = json.dumps({"episode_index": 1, "tasks": ["grasp", "reach"], "length": 4})
    (root / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
    file = root / "data/chunk-000/episode_000001.parquet"
    change_table(file, lambda table: table.set_column(6, "task_index", pa.array([0, 0, 1, 1])))
    store = open_store(root)
    assert [store.texts[index] for index in store.text] == ["reach", "reach"]
    assert store.info[1] == {"tasks": ["reach", "grasp"]}
    assert store.meta["lerobot"]["tasks"] == {"0": "reach", "1": "grasp"}
    assert store.read("task_index", 3, 7).tolist() == [0, 0, 1, 1]
    assert any(line.startswith("episode 1: several tasks") for line in store.dropped)


def test_a_split_is_a_filter(tmp_path):
    root = tmp_path / "data"
    write_v21(root, pictures((3, 4, 5)), TASKS[:3], video=False, splits={"train": "0:2", "valid": "2:3"})
    store = open_store(root, Reading(filter="valid"))
    assert (store.ends.tolist(), store.info) == ([5], [{"filters": ["valid"]}])
    np.testing.assert_array_equal(store.read("state", 0, 5), pictures((3, 4, 5))[2]["state"])
    with pytest.raises(KinoiseError, match=r"filter=test is none of its splits, which are \['train', 'valid'\]"):
        open_store(root, Reading(filter="test"))
    edit(root / "meta/info.json", lambda info: info["splits"].update(valid="3:3", odd="most"))
    assert "split 'odd': 'most' is no range of episodes, first:end" in open_store(root).dropped
    with pytest.raises(KinoiseError, match="the split 'valid' is 3:3, which holds no episode"):
        open_store(root, Reading(filter="valid"))


def test_a_rate_is_asked_for_where_the_files_have_none(tmp_path):
    write_v21(tmp_path / "data", pictures((3,)), ["x"], video=False, fps=None)
    with pytest.raises(KinoiseError, match=r"info\.json has no fps.*rate="):
        open_store(tmp_path / "data")
    assert open_store(tmp_path / "data", Reading(rate=7.0)).spec.rate == 7


def test_images_may_lie_in_files_of_their_own_but_not_outside(tmp_path):
    root = tmp_path / "data"
    write_v21(root, pictures((2,)), ["x"], video=False)
    image = pictures((2,))[0][CAMERA]
    (root / "images").mkdir()
    for step in range(2):
        (root / f"images/{step}.png").write_bytes(png(image[step]))

    def paths(*names: str) -> Callable[[pa.Table], pa.Table]:
        column = pa.array(
            [{"bytes": None, "path": name} for name in names], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        )
        return lambda table: table.set_column(table.column_names.index(CAMERA), CAMERA, column)

    file = root / "data/chunk-000/episode_000000.parquet"
    change_table(file, paths("images/0.png", "images/1.png"))
    np.testing.assert_array_equal(open_store(root).read("image.top", 0, 2), image)
    for name in ("../data/images/1.png", str(root / "images/1.png"), ""):
        change_table(file, paths("images/0.png", name))
        with pytest.raises(KinoiseError, match=f"episode 0, '{CAMERA}', step 1 leads out of the data set"):
            open_store(root).read("image.top", 0, 2)


CODECS = {
    "h264 with long groups": ("libx264", {"g": "50"}),
    "hevc": ("libx265", {"g": "20", "x265-params": "log-level=none"}),
    "av1": ("libsvtav1", {"g": "10", "preset": "12"}),
}


@pytest.mark.parametrize("case", CODECS)
def test_any_part_of_a_video_is_found_by_its_times(case, tmp_path):
    codec, options = CODECS[case]
    images = frames(60, size=(64, 64))
    film(tmp_path / "a.mp4", images, 10, codec, **options)
    for start, steps in ((0, 60), (23, 7), (59, 1), (1, 2)):
        # As LeRobot's float32 time stamps and summed durations are: near, not exact.
        times = (start / 10 + np.arange(steps) / 10 + 3e-4).astype(np.float32).astype(np.float64)
        found = video_frames(tmp_path / "a.mp4", times, 10.0, (64, 64, 3), "a.mp4: episode 0, 'x'")
        assert abs(found.astype(int) - images[start : start + steps]).max() <= CODEC_ERROR
    found = video_frames(tmp_path / "a.mp4", np.array([0.2, 0.4, 0.4, 0.8]), 5.0, (64, 64, 3), "x")
    assert abs(found.astype(int) - images[[2, 4, 4, 8]]).max() <= CODEC_ERROR
    for times in (np.array([5.9, 6.0]), np.array([0.5, 0.55]), np.array([7.0])):
        with pytest.raises(KinoiseError, match=r"a\.mp4: episode 0, 'x': no frame at .* the nearest is at .* cut short"):
            video_frames(tmp_path / "a.mp4", times, 10.0, (64, 64, 3), "a.mp4: episode 0, 'x'")
    with pytest.raises(KinoiseError, match=r"a frame is \[64, 64, 3\], expected \[32, 64, 3\]"):
        video_frames(tmp_path / "a.mp4", np.zeros(1), 10.0, (32, 64, 3), "x")
