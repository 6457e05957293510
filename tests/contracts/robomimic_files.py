"""Files as robomimic writes them, for tests, and how they are changed and compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from kinoise.data import Episode
from kinoise.data.base import EpisodeStore, episode

OSC = {"type": "OSC_POSE", "control_delta": True, "output_max": [0.05] * 6}
ENV_ARGS = {"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": 20, "controller_configs": OSC, "robots": ["Panda"]}}
LENGTHS = {"demo_0": 5, "demo_2": 1, "demo_10": 7}


def arrays(name: str, steps: int) -> dict[str, np.ndarray]:
    """What `foreign` writes of a demonstration."""
    rng = np.random.default_rng([int(name.removeprefix("demo_")), steps])
    return {
        "obs/robot0_eef_pos": rng.normal(size=(steps, 3)),
        "obs/object": rng.normal(size=(steps, 10)).astype(np.float32),
        "obs/agentview_image": rng.integers(0, 256, (steps, 6, 8, 3), np.uint8),
        "actions": rng.uniform(-1, 1, (steps, 7)),
        "rewards": rng.normal(size=steps),
        "dones": np.eye(steps, dtype=np.int64)[-1],
        "states": rng.normal(size=(steps, 21)),
    }


def foreign(path: Path, env_args: Any = ENV_ARGS, lengths: dict[str, int] = LENGTHS, **options: Any) -> Path:
    """A file as robomimic's scripts lay it out; `options` are h5py's for the arrays."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for name, steps in lengths.items():
            demo = data.create_group(name)
            for key, array in arrays(name, steps).items():
                demo.create_dataset(key, data=array, **options)
                if key.startswith("obs/"):
                    demo.create_dataset(f"next_{key}", data=np.concatenate([array[1:], array[:1]]), **options)
            demo.attrs["num_samples"] = steps
            demo.attrs["model_file"] = f"<mujoco model='{name}'/>"
        data.attrs["total"] = sum(lengths.values())
        if env_args is not None:
            data.attrs["env_args"] = json.dumps(env_args, indent=4)
        file["mask/train"] = np.array(["demo_10", "demo_0"], dtype="S")
        file["mask/valid"] = np.array(["demo_2"], dtype="S")
    return path


def change(path: Path, edit: Callable[[h5py.File], object]) -> Path:
    with h5py.File(path, "a") as file:
        edit(file)
    return path


def put(file: h5py.File, name: str, value: Any, **options: Any) -> None:
    if name in file:
        del file[name]
    file.create_dataset(name, data=value, **options)


def same(found: EpisodeStore, wanted: EpisodeStore) -> None:
    assert found.spec == wanted.spec
    assert (found.extras, found.info, found.meta) == (wanted.extras, wanted.info, wanted.meta)
    assert len(found.ends) == len(wanted.ends)
    for index in range(len(wanted.ends)):
        equal(episode(found, index), episode(wanted, index))


def equal(found: Episode, wanted: Episode) -> None:
    assert found.instruction == wanted.instruction
    assert found.info == wanted.info
    for ours, theirs in ((found.arrays, wanted.arrays), (found.extras, wanted.extras)):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert ours[key].dtype == theirs[key].dtype
            np.testing.assert_array_equal(ours[key], theirs[key])
