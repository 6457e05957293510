"""What robomimic does, in a process of its own: `robomimic_script.py [read|split|write FILE]...`.

Each command leaves what robomimic reads of FILE in FILE with the suffix npz. Imports no kinoise.
"""

from __future__ import annotations

import json
import runpy
import sys
from argparse import Namespace
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

# torchvision's wheel expects operators that torch without CUDA lacks; nothing here calls them.
_library = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    _library.define(f"{_name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")

import robomimic.utils.env_utils as EnvUtils  # noqa: E402
import robomimic.utils.file_utils as FileUtils  # noqa: E402
import robomimic.utils.obs_utils as ObsUtils  # noqa: E402
from robomimic.envs.env_base import EnvBase, EnvType  # noqa: E402
from robomimic.scripts.dataset_states_to_obs import dataset_states_to_obs  # noqa: E402
from robomimic.scripts.split_train_val import split_train_val_from_hdf5  # noqa: E402
from robomimic.utils.dataset import SequenceDataset  # noqa: E402

DATASETS = ("actions", "rewards", "dones")


class Slider(EnvBase):
    """A point that actions move, seen by a camera: in the place of a simulator, which robomimic's scripts only call."""

    def __init__(self, env_name: str, **kwargs: Any) -> None:
        self.env_name, self.kwargs, self.state = env_name, kwargs, np.zeros(4)

    @classmethod
    def create_for_data_processing(cls, env_name: str, **kwargs: Any) -> Slider:
        kept = {key: value for key, value in kwargs.items() if not key.startswith(("camera", "reward"))}
        return cls(env_name, **kept)

    def step(self, action: np.ndarray) -> tuple:
        self.state = self.state + 0.1 * action[:4]
        return self.get_observation(), self.get_reward(), False, {}

    def reset(self) -> dict:
        self.state = np.zeros(4)
        return self.get_observation()

    def reset_to(self, state: dict) -> dict:
        self.state = np.array(state["states"])
        return self.get_observation()

    def get_observation(self) -> dict:
        image = (np.arange(8 * 10 * 3).reshape(8, 10, 3) + int(1000 * abs(self.state).sum())) % 256
        return {"robot0_eef_pos": self.state[:3].copy(), "agentview_image": image.astype(np.uint8)}

    def get_reward(self) -> float:
        return float(self.state[0] > 0)

    def is_success(self) -> dict:
        return {"task": bool(self.state[0] > 0.2)}

    def serialize(self) -> dict:
        return {"env_name": self.env_name, "env_version": "1.4.1", "type": self.type, "env_kwargs": self.kwargs}

    @property
    def type(self) -> int:
        return EnvType.ROBOSUITE_TYPE

    version, name, action_dimension = "1.4.1", "Slider", 7

    def render(self, **kwargs: Any) -> None: ...
    def get_state(self) -> None: ...
    def get_goal(self) -> None: ...
    def set_goal(self, **kwargs: Any) -> None: ...
    def is_done(self) -> bool:
        return False

    @property
    def rollout_exceptions(self) -> tuple:
        return ()


def write(file: Path) -> None:
    """A file as a user of robosuite gets it: demonstrations recorded, converted, split, and observations made of them."""
    rng = np.random.default_rng(0)
    controller = {"type": "OSC_POSE", "control_delta": True}
    info = {"robots": ["Panda"], "control_freq": 20, "controller_configs": controller}
    raw = file.with_name("raw.hdf5")
    with h5py.File(raw, "w") as given:
        data = given.create_group("data")
        data.attrs["env"], data.attrs["env_info"], data.attrs["repository_version"] = "Lift", json.dumps(info), "1.4.1"
        for number in range(1, 13):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["model_file"] = f"<mujoco model='{number}'/>"
            demo["actions"] = rng.uniform(-1, 1, (number, 7))
            demo["states"] = rng.normal(size=(number, 4))
    np.random.seed(0)  # robomimic's split takes numpy's global generator
    sys.argv = ["convert_robosuite.py", "--dataset", str(raw)]
    runpy.run_module("robomimic.scripts.conversion.convert_robosuite", run_name="__main__")
    EnvUtils.get_env_class = lambda **_: Slider
    options = {"n": None, "shaped": False, "camera_names": [], "camera_height": 8, "camera_width": 10, "done_mode": 2}
    switches = {"copy_rewards": False, "copy_dones": False, "exclude_next_obs": False, "compress": True}
    dataset_states_to_obs(Namespace(dataset=str(raw), output_name=file.name, **options, **switches))
    read(file)


def split(file: Path) -> None:
    """Filters by robomimic's own script, in a file that is there."""
    np.random.seed(0)
    split_train_val_from_hdf5(str(file), val_ratio=0.5)
    read(file)


def read(file: Path) -> None:
    """All that its dataset gives: whole demonstrations by filter, and windows by every way that it caches."""
    sys.argv = ["get_dataset_info.py", "--dataset", str(file), "--verbose"]
    runpy.run_module("robomimic.scripts.get_dataset_info", run_name="__main__")
    with h5py.File(file) as given:
        keys = list(given["data/demo_1/obs"])
        masks = list(given.get("mask", ()))
    images = [key for key in keys if key.endswith("_image")]
    specs = {"low_dim": [key for key in keys if key not in images], "rgb": images}
    ObsUtils.initialize_obs_utils_with_obs_specs({"obs": specs})
    shapes = FileUtils.get_shape_metadata_from_dataset(str(file), verbose=True)
    arrays: dict[str, np.ndarray] = {}
    demos: dict[str, list[str]] = {}
    for mask in (None, *masks):
        whole = SequenceDataset(str(file), keys, DATASETS, filter_by_attribute=mask)
        demos[str(mask)] = whole.demos
        for index in range(whole.n_demos):
            arrays |= flat(f"{mask}/{index}", whole.get_trajectory_at_index(index))
    for mode in (None, "low_dim", "all"):
        windows = SequenceDataset(str(file), keys, DATASETS, frame_stack=2, seq_length=3, hdf5_cache_mode=mode)
        for index in range(0, len(windows), 3):
            arrays |= flat(f"windows/{mode}/{index}", windows[index])
    about = {"demos": demos, "env": FileUtils.get_env_metadata_from_dataset(str(file)), "actions": int(shapes["ac_dim"])}
    about["images"] = {key: list(shapes["all_shapes"][key]) for key in images}
    np.savez(file.with_suffix(".npz"), about=json.dumps(about), **arrays)


def flat(within: str, item: dict) -> dict[str, np.ndarray]:
    nested = {key: value for key, value in item.items() if isinstance(value, dict)}
    found = {f"{within}/{key}": np.asarray(value) for key, value in item.items() if key not in nested and key != "ep"}
    for key, value in nested.items():
        found |= flat(f"{within}/{key}", value)
    return found


if __name__ == "__main__":
    with redirect_stdout(sys.stderr):
        words = sys.argv[1:]
        for command, path in zip(words[::2], words[1::2], strict=True):
            {"read": read, "split": split, "write": write}[command](Path(path))
