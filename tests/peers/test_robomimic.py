"""Files that pass between kinoise and robomimic 0.3.0, which is laid beside the packages that are installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from kinoise.data import Episode, Reading, open_store
from kinoise.data.base import DONE, REWARD, SIM_STATE, episode
from kinoise.data.robomimic.reader import RobomimicStore
from kinoise.spec import Feature, Spec

SCRIPT = Path(__file__).with_name("robomimic_script.py")


def run(folder: Path, *commands: tuple[str, Path]) -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """What robomimic says of each command's file, and the arrays it gives; importing it takes longer than all else."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(SCRIPT), *(str(word) for command in commands for word in command)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    results = []
    for _, file in commands:
        with np.load(file.with_suffix(".npz")) as given:
            arrays = {key: given[key] for key in given}
        results.append((json.loads(str(arrays.pop("about"))), arrays))
    return results


SPEC = Spec(
    {
        "robot0_eef_pos": Feature((3,), unit=("m",)),
        "image.agentview": Feature((6, 9, 3), "image"),
        "image.robot0_eye_in_hand": Feature((5, 5, 3), "image"),
    },
    Feature((7,), low=(-1.0,) * 7, high=(1.0,) * 7),
    rate=20.0,
    gripper=(6,),
)
THEIRS = {
    "robot0_eef_pos": "robot0_eef_pos",
    "image.agentview": "agentview_image",
    "image.robot0_eye_in_hand": "robot0_eye_in_hand_image",
}


def made(lengths: tuple[int, ...] = (6, 1, 9, 5)) -> list[Episode]:
    rng = np.random.default_rng(0)
    return [
        Episode(
            {
                "robot0_eef_pos": rng.normal(size=(steps, 3)).astype(np.float32),
                "image.agentview": rng.integers(0, 256, (steps, 6, 9, 3), np.uint8),
                "image.robot0_eye_in_hand": rng.integers(0, 256, (steps, 5, 5, 3), np.uint8),
                "action": rng.uniform(-1, 1, (steps, 7)).astype(np.float32),
            },
            "öffne die Schublade",
            {"filters": ["even"] if index % 2 == 0 else ["odd", "20%"]},
            {REWARD: rng.normal(size=steps).astype(np.float32), SIM_STATE: rng.normal(size=(steps, 11))},
        )
        for index, steps in enumerate(lengths)
    ]


def window(array: np.ndarray, step: int) -> np.ndarray:
    """Two steps of history and two of the future, the first and last repeated: frame_stack=2, seq_length=3."""
    return array[np.clip(np.arange(step - 1, step + 3), 0, len(array) - 1)]


def windows_are(arrays: dict[str, np.ndarray], sequences: list[dict[str, np.ndarray]]) -> None:
    """Robomimic's windows, however it caches, are those of the whole `sequences` (by its names)."""
    places = [(index, step) for index, item in enumerate(sequences) for step in range(len(item["actions"]))]
    for mode in ("None", "low_dim", "all"):
        for number in range(0, len(places), 3):
            index, step = places[number]
            for key, array in sequences[index].items():
                found = arrays[f"windows/{mode}/{number}/{key}"]
                wanted = window(array, step)
                np.testing.assert_array_equal(
                    found, wanted.astype(np.float32) if key == "rewards" and mode != "None" else wanted
                )


Said = tuple[Path, dict[str, Any], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def said(robomimic: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Said]:
    """A file of kinoise's, one whose filters robomimic made, and one of robomimic's; what it says of them, and their arrays."""
    folder = tmp_path_factory.mktemp("a folder é")
    files = {"read": folder / "set ü.hdf5", "split": folder / "split.hdf5", "write": folder / "image.hdf5"}
    assert RobomimicStore.write(files["read"], SPEC, made()) == []
    shutil.copy(files["read"], files["split"])
    return {name: (file, *found) for (name, file), found in zip(files.items(), run(robomimic, *files.items()), strict=True)}


def test_robomimic_reads_what_kinoise_writes(said):
    _, about, arrays = said["read"]
    assert about["demos"] == {
        "None": ["demo_0", "demo_1", "demo_2", "demo_3"],
        "even": ["demo_0", "demo_2"],
        "odd": ["demo_1", "demo_3"],
        "20%": ["demo_1", "demo_3"],
    }
    assert about["actions"] == 7
    assert about["images"] == {"agentview_image": [3, 6, 9], "robot0_eye_in_hand_image": [3, 5, 5]}
    assert about["env"]["env_kwargs"]["control_freq"] == 20.0
    items = made()
    sequences = []
    for mask, chosen in {"None": (0, 1, 2, 3), "even": (0, 2), "odd": (1, 3), "20%": (1, 3)}.items():
        for place, index in enumerate(chosen):
            item, steps = items[index], len(items[index].extras[REWARD])
            wanted = {
                "actions": item.arrays["action"].astype(np.float64),
                "rewards": item.extras[REWARD],
                "dones": np.eye(steps)[-1],
            }
            for key, name in THEIRS.items():
                wanted[f"obs/{name}"] = item.arrays[key]
                wanted[f"next_obs/{name}"] = np.concatenate([item.arrays[key][1:], item.arrays[key][-1:]])
            for key, array in wanted.items():
                np.testing.assert_array_equal(arrays[f"{mask}/{place}/{key}"], array)
            if mask == "None":
                sequences.append(wanted)
    windows_are(arrays, sequences)


def test_filters_that_robomimic_makes_in_a_file_of_kinoises_are_read(said):
    path, about, _ = said["split"]
    store = open_store(path)
    assert (store.spec, store.dropped) == (SPEC, ())
    for name in ("train", "valid", "even"):
        chosen = [f"demo_{index}" for index, info in enumerate(store.info) if name in info["filters"]]
        assert chosen == about["demos"][name]
        assert len(open_store(path, Reading(filter=name)).ends) == len(chosen) == 2


def test_kinoise_reads_what_robomimics_scripts_write(said):
    path, about, arrays = said["write"]
    store = open_store(path)
    assert (store.spec.rate, store.spec.control, store.spec.gripper) == (20.0, "delta", (6,))
    assert store.spec.observations == {"image.agentview": Feature((8, 10, 3), "image"), "robot0_eef_pos": Feature((3,))}
    assert store.meta["robomimic"]["env_args"] == about["env"]
    assert [info["demo"] for info in store.info] == [f"demo_{number}" for number in range(1, 13)] == about["demos"]["None"]
    assert [info["model_file"] for info in store.info] == [f"<mujoco model='{number}'/>" for number in range(1, 13)]
    for name in ("train", "valid"):
        assert [info["demo"] for info in store.info if name in info["filters"]] == about["demos"][name]
    with h5py.File(path) as file:
        for index in range(12):
            found = episode(store, index)
            for key, name in (("robot0_eef_pos", "obs/robot0_eef_pos"), ("image.agentview", "obs/agentview_image")):
                wanted = arrays[f"None/{index}/{name}"].astype(found.arrays[key].dtype)
                np.testing.assert_array_equal(found.arrays[key], wanted)
            np.testing.assert_array_equal(found.arrays["action"], arrays[f"None/{index}/actions"].astype(np.float32))
            np.testing.assert_array_equal(found.extras[REWARD], arrays[f"None/{index}/rewards"])
            np.testing.assert_array_equal(found.extras[DONE], arrays[f"None/{index}/dones"])
            np.testing.assert_array_equal(found.extras[SIM_STATE], file[f"data/demo_{index + 1}/states"])


def test_a_file_of_robomimics_comes_back_to_it_equal_within_float32(robomimic, said, tmp_path):
    source, before, arrays = said["write"]
    store, path = open_store(source), tmp_path / "again.hdf5"
    assert RobomimicStore.write(path, store.spec, (episode(store, index) for index in range(12)), store.meta) == []
    [(after, again)] = run(robomimic, ("read", path))
    assert after["env"] == before["env"]
    for mask, demos in before["demos"].items():
        assert after["demos"][mask] == [f"demo_{int(name.removeprefix('demo_')) - 1}" for name in demos]
    last = {f"{mask}/{index}" for mask in before["demos"] for index in range(12)}
    assert again.keys() == arrays.keys()
    for key, array in arrays.items():
        found = again[key]
        if "next_obs" in key:  # what was seen after the last action is the one thing that is lost
            found, array = (found[:-1], array[:-1]) if key.rsplit("/", 2)[0] in last else (found[:0], array[:0])
        np.testing.assert_array_equal(found.astype(np.float32), array.astype(np.float32))
