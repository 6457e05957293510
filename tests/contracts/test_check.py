"""What no writer takes: specs that no robot has, extras that no format holds alike, text and notes that aren't any."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kinoise import files
from kinoise.data import FORMATS, Episode, Reading, open_store
from kinoise.data.base import episode, features
from kinoise.data.decoded import DecodedStore
from kinoise.spec import Feature, KinoiseError, Spec

ENDINGS = {"kinoise": "", "zarr": ".zarr.zip", "robomimic": ".hdf5", "lerobot": ""}
SPEC = Spec({"state": Feature((3,))}, Feature((2,)), rate=10.0)


@pytest.fixture(scope="module", autouse=True)
def _no_flush():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "sync", lambda path: None)
        yield


def made(steps: int = 4, spec: Spec = SPEC, text: str = "push", **extras: np.ndarray) -> Episode:
    rng = np.random.default_rng(steps)
    shapes = {key: (steps, *item.shape) for key, item in features(spec).items()}
    return Episode({key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}, text, {}, extras)


def write(name: str, folder: Path, *items: Episode, spec: Spec = SPEC, meta: Mapping[str, Any] | None = None) -> Path:
    path = folder / f"store{ENDINGS[name]}"
    assert FORMATS[name].write(path, spec, iter(items), meta) == []
    return path


def observed(key: str, feature: Feature) -> Spec:
    return replace(SPEC, observations={key: feature})


SPECS = {
    "no name": (observed("", Feature((3,))), "cannot name a folder"),
    "a name with a zero": (observed("a\0b", Feature((3,))), "cannot name a folder"),
    "a matrix": (observed("pose", Feature((4, 4))), r"\(4, 4\), expected \(d,\)"),
    "grey pictures": (observed("depth", Feature((8, 8, 1), "image")), r"expected \(height, width, 3\)"),
    "an action of pictures": (replace(SPEC, action=Feature((8, 8, 3), "image")), "the action is of kind image"),
    "no bound at all": (replace(SPEC, action=Feature((2,), low=(-np.inf, 0.0))), "low=.*expected a finite number"),
    "no rate": (replace(SPEC, rate=0.0), "rate=0.0"),
    "a rate that is no number": (replace(SPEC, rate=float("nan")), "rate=nan"),
    "a gripper beyond the action": (replace(SPEC, gripper=(2,)), r"gripper=\[2\]"),
    "a gripper twice": (replace(SPEC, gripper=(1, 1)), "each once"),
}


@pytest.mark.parametrize("name", ENDINGS)
@pytest.mark.parametrize("case", SPECS)
def test_a_spec_that_no_robot_has_is_refused_before_anything_is_written(name, case, tmp_path):
    spec, message = SPECS[case]

    def never():
        raise AssertionError("an episode was asked for")
        yield

    with pytest.raises(KinoiseError, match=message):
        FORMATS[name].write(tmp_path / f"store{ENDINGS[name]}", spec, never())
    assert not list(tmp_path.iterdir())


EPISODES = {
    "an extra called like an observation": (made(state=np.zeros(4)), "'state' is an observation or the action"),
    "an extra called like the action": (made(action=np.zeros(4)), "'action' is an observation or the action"),
    "an extra without numbers": (made(force=np.zeros((4, 0))), "at least one number a step"),
    "numbers too wide": (made(force=np.zeros(4, np.longdouble)), "64 bits at most"),
    "an instruction that is no text": (made(text="\udce9ffne"), "no Unicode text"),
}


@pytest.mark.parametrize("name", ENDINGS)
@pytest.mark.parametrize("case", EPISODES)
def test_an_episode_that_formats_would_hold_differently_is_refused(name, case, tmp_path):
    item, message = EPISODES[case]
    with pytest.raises(KinoiseError, match=message):
        write(name, tmp_path, item)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ENDINGS)
@pytest.mark.parametrize("meta", [{"a": float("nan")}, {"a": np.int64(3)}, {"a": {1, 2}}])
def test_meta_that_json_cannot_hold_is_refused(name, meta, tmp_path):
    with pytest.raises(KinoiseError, match="meta is not JSON"):
        write(name, tmp_path, made(), meta=meta)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ENDINGS)
@pytest.mark.parametrize(
    "meta",
    [
        {"zarr": "v2", "robomimic": 3, "lerobot": [1]},
        {"zarr": {"attributes": {"author": "nobody"}, "of": 2}},
        {"zarr": {"attributes": {"kinoise": 1}}},
        {"zarr": {"attributes": {}}},
    ],
)
def test_meta_comes_back_whatever_stands_where_a_format_keeps_its_own(name, meta, tmp_path):
    assert open_store(write(name, tmp_path, made(), meta=meta)).meta == meta


@pytest.mark.parametrize("name", ENDINGS)
@pytest.mark.parametrize("dtype", [">f8", ">i4", "float16", "uint64", "bool"])
def test_extras_of_every_number_type_are_held(name, dtype, tmp_path):
    items = [made(steps, force=(np.arange(steps * 2) % 2).reshape(steps, 2).astype(dtype)) for steps in (4, 1, 3)]
    if dtype == "uint64":  # seen only after a batch of small ones has been written
        items += [made(2, force=np.ones((2, 2), np.uint64))] * 64 + [made(2, force=np.full((2, 2), 2**64 - 1, np.uint64))]
    store = open_store(write(name, tmp_path, *items))
    for index, item in enumerate(items):
        found = episode(store, index).extras["force"]
        assert found.dtype == item.extras["force"].dtype.newbyteorder("=")
        np.testing.assert_array_equal(found, item.extras["force"])


@pytest.mark.parametrize("name", ENDINGS)
def test_no_observation_can_be_renamed_to_what_an_extra_is_called(name, tmp_path):
    path = write(name, tmp_path, made(reward=np.zeros(4)))
    with pytest.raises(KinoiseError, match=r"called \['reward'\], as extras are"):
        open_store(path, Reading(rename={"state": "reward"}))


@pytest.mark.parametrize("name", ["zarr", "robomimic", "lerobot"])
def test_what_was_decoded_stays_with_the_process_that_decoded_it(name, tmp_path):
    store = open_store(write(name, tmp_path, made(1000)))
    assert isinstance(store, DecodedStore)
    fresh = len(pickle.dumps(store))
    rows = store.read("state", 0, 1000)
    assert len(pickle.dumps(store)) < fresh + 100 < rows.nbytes
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).read("state", 0, 1000), rows)


@pytest.mark.parametrize("name", ["kinoise", "zarr", "lerobot"])  # robomimic has them in every demonstration
def test_long_texts_that_episodes_share_are_written_once(name, tmp_path):
    scene = "<mujoco>" * 10_000
    infos = [{"model_file": scene, "index": index, "other": [scene[:index]]} for index in range(5)] + [{"model_file": "short"}]
    path = write(name, tmp_path, *(replace(made(), info=info) for info in infos))
    assert open_store(path).info == infos
    size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
    assert size < 2 * len(scene)


def test_a_long_text_that_is_missing_is_damage(tmp_path):
    path = write("kinoise", tmp_path, replace(made(), info={"model_file": "x" * 5000}))
    file = path / "kinoise.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "long": []}))
    with pytest.raises(KinoiseError, match="edited or damaged"):
        open_store(path)


def test_a_folder_of_data_sets_is_not_one_and_says_what_is_in_it(tmp_path):
    for index in range(4):
        (tmp_path / f"suite/{index}").mkdir(parents=True)
        write("robomimic", tmp_path / f"suite/{index}", made()).rename(tmp_path / f"suite/task {index}.hdf5")
        (tmp_path / f"suite/{index}").rmdir()
    os.mkfifo(tmp_path / "suite/pipe")
    with pytest.raises(KinoiseError, match=r"It holds task 0.hdf5, task 1.hdf5, task 2.hdf5, ... \(4 in all\): give one"):
        open_store(tmp_path / "suite")
