"""Data sets that pass between kinoise and LeRobot 0.4.4, which has an environment of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from kinoise.data import Episode, open_store
from kinoise.data.base import episode
from kinoise.data.lerobot import LeRobotStore
from kinoise.spec import Feature, Spec
from lerobot_v21 import CAMERA, frames, pictures, write_v21

SCRIPT = Path(__file__).with_name("lerobot_script.py")
CODEC_ERROR = 8
"""Of 255: what the codec's settings (crf 30) do to the smooth pictures; the next step's are 11 brighter."""


def read(lerobot: Callable[..., None], folder: Path, file: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    lerobot(SCRIPT, "read", folder, file)
    with np.load(file) as given:
        arrays = {key: given[key] for key in given}
    return json.loads(str(arrays.pop("about"))), arrays


SPEC = Spec(
    {
        "state": Feature((3,), names=("a", "b", "c")),
        "image.top": Feature((32, 48, 3), "image"),
        "image": Feature((7, 5, 3), "image"),
    },
    Feature((2,), names=("x", "gripper")),
    rate=10.0,
    gripper=(1,),
)
TASKS = ("schieb den Würfel", "öffne 引き出し", "schieb den Würfel", "x")


def made(lengths: tuple[int, ...] = (6, 1, 9, 5)) -> list[Episode]:
    rng = np.random.default_rng(0)
    return [
        Episode(
            {
                "state": rng.normal(size=(steps, 3)).astype(np.float32),
                "image.top": frames(steps, index),
                "image": rng.integers(0, 256, (steps, 7, 5, 3), np.uint8),
                "action": rng.normal(size=(steps, 2)).astype(np.float32),
            },
            TASKS[index],
            {"seed": index},
            {
                "reward": rng.normal(size=steps).astype(np.float32),
                "done": np.arange(steps) == steps - 1,
                "sim_state": rng.normal(size=(steps, 4)),
                "grid": rng.normal(size=(steps, 2, 2)).astype(np.float32),
            },
        )
        for index, steps in enumerate(lengths)
    ]


def together(items: list[Episode], key: str) -> np.ndarray:
    return np.concatenate([{**item.arrays, **item.extras}[key] for item in items])


def as_uint8(images: np.ndarray) -> np.ndarray:
    return np.rint(images * 255).astype(np.uint8).transpose(0, 2, 3, 1)


def test_lerobot_reads_what_kinoise_writes(lerobot, tmp_path):
    items = made()
    folder = tmp_path / "a folder"
    lost = LeRobotStore.write(
        folder, SPEC, iter(items), {"lerobot": {"robot_type": "so100"}}, video=True, data_mb=0.004, video_mb=0.0
    )
    assert [line.split(":")[0] for line in lost] == ["image.top", "image"]  # the second has odd sides, so it stays as it is
    about, arrays = read(lerobot, folder, tmp_path / "read.npz")
    assert about["fps"] == 10
    assert about["robot_type"] == "so100"
    assert about["episodes"] == [6, 1, 9, 5]
    assert len(set(about["files"])) > 1
    assert len(list((folder / "videos").rglob("*.mp4"))) > 1
    assert about["tasks"] == [item.instruction for item in items for _ in item.arrays["action"]]
    names = {"state": "observation.state", "grid": "grid", "action": "action"}
    names |= {"reward": "next.reward", "done": "next.done", "sim_state": "sim_state"}
    for ours, theirs in names.items():
        # LeRobot itself rounds numbers to float32 when it reads them.
        truth = together(items, ours)
        np.testing.assert_array_equal(arrays[theirs], truth.astype(np.float32) if truth.dtype.kind == "f" else truth, ours)
    np.testing.assert_array_equal(as_uint8(arrays["observation.image"]), together(items, "image"))
    top = as_uint8(arrays[CAMERA]).astype(int) - together(items, "image.top")
    assert abs(top).max() <= CODEC_ERROR
    starts = np.cumsum([0, 6, 1, 9])
    following = np.arange(21) + 1
    following[np.array([6, 1, 9, 5]) + starts - 1] -= 1
    np.testing.assert_array_equal(arrays["windows"][:, 1], together(items, "action")[following])
    _check_statistics(about["stats"], items)


def _check_statistics(stats: dict[str, dict[str, list[Any]]], items: list[Episode]) -> None:
    for ours, theirs in (("state", "observation.state"), ("action", "action"), ("reward", "next.reward")):
        rows = together(items, ours).reshape(21, -1).astype(float)
        for name, value in (("min", rows.min(0)), ("max", rows.max(0)), ("mean", rows.mean(0)), ("std", rows.std(0))):
            np.testing.assert_allclose(stats[theirs][name], value, rtol=1e-6, err_msg=f"{ours} {name}")
    pixels = together(items, "image.top").reshape(-1, 3) / 255
    np.testing.assert_allclose(np.ravel(stats[CAMERA]["mean"]), pixels.mean(0), atol=1e-9)
    np.testing.assert_allclose(np.ravel(stats[CAMERA]["std"]), pixels.std(0), atol=1e-9)
    assert stats["action"].keys() == {"min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"}


def _given(items: list[Episode], file: Path, grid: str = "grid", **about: Any) -> None:
    """Episodes for the script to write, under LeRobot's names."""
    names = {"state": "observation.state", "image.top": CAMERA, "image": "observation.image", "grid": grid}
    names |= {"action": "action", "reward": "next.reward", "done": "next.done", "sim_state": "sim_state"}
    shaped = {key: together(items, key) for key in names}
    arrays = {names[key]: array[:, None] if array.ndim == 1 else array for key, array in shaped.items()}
    tasks = [[item.instruction] * len(item.arrays["action"]) for item in items]
    np.savez(file, **arrays, about=json.dumps({"tasks": tasks, **about}))


def test_kinoise_reads_what_lerobot_writes(lerobot, tmp_path):
    # LeRobot 0.4.4 fails on episodes of a single step with features of two axes.
    items = made((6, 2, 9, 5))
    axes = {"names": ["height", "width", "channels"]}
    _given(
        items,
        tmp_path / "given.npz",
        grid="observation.grid",
        fps=10,
        data_mb=0.01,
        video_mb=0.002,
        features={
            "observation.state": {"dtype": "float32", "shape": [3], "names": ["a", "b", "c"]},
            CAMERA: {"dtype": "video", "shape": [32, 48, 3], **axes},
            "observation.grid": {"dtype": "float32", "shape": [2, 2], "names": None},
            "observation.image": {"dtype": "image", "shape": [7, 5, 3], **axes},
            "action": {"dtype": "float32", "shape": [2], "names": ["x", "gripper"]},
            "next.reward": {"dtype": "float32", "shape": [1], "names": None},
            "next.done": {"dtype": "bool", "shape": [1], "names": None},
            "sim_state": {"dtype": "float64", "shape": [4], "names": None},
        },
    )
    lerobot(SCRIPT, "write", tmp_path / "theirs", tmp_path / "given.npz")
    store = open_store(tmp_path / "theirs")
    assert store.format == "lerobot"
    assert {key: feature.shape for key, feature in store.spec.observations.items()} == {
        "state": (3,),
        "image.top": (32, 48, 3),
        "grid": (4,),
        "image": (7, 5, 3),
    }
    assert store.spec.rate == 10
    assert store.spec.gripper == (1,)
    assert store.meta["lerobot"]["robot_type"] == "so100"
    assert len(list((tmp_path / "theirs/data").rglob("*.parquet"))) > 1
    for index, item in enumerate(items):
        found = episode(store, index)
        assert found.instruction == item.instruction
        for key in ("state", "action", "image", "reward", "done", "sim_state"):
            np.testing.assert_array_equal({**found.arrays, **found.extras}[key], {**item.arrays, **item.extras}[key], key)
        np.testing.assert_array_equal(found.arrays["grid"], item.extras["grid"].reshape(-1, 4))
        np.testing.assert_allclose(found.extras["timestamp"], np.arange(len(item.arrays["action"])) / 10, atol=1e-6)
        error = abs(found.arrays["image.top"].astype(int) - item.arrays["image.top"]).max()
        assert error <= CODEC_ERROR


def test_lerobot_goes_on_with_a_data_set_of_kinoises(lerobot, tmp_path):
    items = made((6, 2, 9, 5))
    LeRobotStore.write(tmp_path / "data", SPEC, iter(items), video=True)
    _given(items[:2], tmp_path / "given.npz")
    lerobot(SCRIPT, "extend", tmp_path / "data", tmp_path / "given.npz")
    store = open_store(tmp_path / "data")
    assert store.ends.tolist() == [6, 8, 17, 22, 28, 30]
    assert any("kinoise.json: left aside" in line for line in store.dropped)
    for index, item in enumerate([*items, *items[:2]]):
        found = episode(store, index)
        assert found.instruction == item.instruction
        np.testing.assert_array_equal(found.arrays["state"], item.arrays["state"])
        np.testing.assert_array_equal(found.arrays["image"], item.arrays["image"])
        assert abs(found.arrays["image.top"].astype(int) - item.arrays["image.top"]).max() <= CODEC_ERROR


def test_lerobots_conversion_from_version_2_changes_nothing(lerobot, tmp_path):
    items, tasks = pictures((6, 1, 9)), ["schieb", "zieh", "schieb"]
    write_v21(tmp_path / "data", items, tasks, video=True)
    before = open_store(tmp_path / "data")
    old = [episode(before, index) for index in range(3)]
    lerobot(SCRIPT, "convert", tmp_path / "data", tmp_path / "none")
    assert json.loads((tmp_path / "data/meta/info.json").read_text())["codebase_version"] == "v3.0"
    after = open_store(tmp_path / "data")
    assert after.spec == before.spec
    assert after.ends.tolist() == before.ends.tolist() == [6, 7, 16]
    for index, (item, task) in enumerate(zip(old, tasks, strict=True)):
        found = episode(after, index)
        assert found.instruction == item.instruction == task
        for key in after.keys:
            np.testing.assert_array_equal(found.arrays[key], item.arrays[key], key)
        np.testing.assert_array_equal(found.arrays["state"], items[index]["state"])
        assert abs(found.arrays["image.top"].astype(int) - items[index][CAMERA]).max() <= CODEC_ERROR
