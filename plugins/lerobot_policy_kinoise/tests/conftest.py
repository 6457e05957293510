"""A tiny LeRobot data set, made by LeRobot itself, and the command lines that train on it."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from draccus.wrappers import docstring
from lerobot_policy_kinoise import KinoisePolicy

# isort: split
# The plugin before lerobot: it makes torchvision importable where that is needed.
from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.policies.factory import make_policy, make_policy_config
from lerobot.scripts import lerobot_train

TASKS = ("push the cube to the left", "open the drawer")
SMALL = ("width=16", "heads=2", "depth=1")
Train = Callable[..., Path]

# For the help of every setting draccus parses its class's source: ten seconds each time that LeRobot reads a command line.
docstring.inspect = SimpleNamespace(getsource=functools.cache(inspect.getsource), getmro=inspect.getmro)


@pytest.fixture(scope="session", autouse=True)
def _offline(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six episodes of 5 to 10 steps: a state, one 40 x 40 camera, two tasks, an action with a gripper."""
    root, rng = tmp_path_factory.mktemp("data") / "set", np.random.default_rng(0)
    features = {
        "observation.state": {"dtype": "float32", "shape": (3,), "names": ["a", "b", "c"]},
        "observation.images.top": {"dtype": "image", "shape": (40, 40, 3), "names": ["height", "width", "channels"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["x", "gripper"]},
    }
    data = LeRobotDataset.create("kinoise/tiny", fps=10, features=features, root=root, use_videos=False)
    for episode in range(6):
        for step in range(5 + episode):
            state = rng.normal(size=3).astype(np.float32)
            data.add_frame(
                {
                    "observation.state": state,
                    "observation.images.top": rng.integers(0, 256, (40, 40, 3), np.uint8),
                    "action": np.array([10 * state[0], float(step % 2)], np.float32),
                    "task": TASKS[episode % 2],
                }
            )
        data.save_episode(parallel_encoding=False)
    data.finalize()
    return root


@pytest.fixture(scope="session")
def train(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """`lerobot-train`'s own main, in this process: two updates unless told otherwise. Returns the run's folder."""

    def go(kind: str | None, *words: str, steps: int = 2, small: bool = True) -> Path:
        out = tmp_path_factory.mktemp("train") / "run"
        line = [f"--dataset.repo_id=kinoise/tiny --dataset.root={dataset} --policy.push_to_hub=false"]
        line += [f"--policy.type={kind}"] if kind else []
        line += [f"--output_dir={out} --batch_size=4 --steps={steps} --num_workers=0 --save_freq=1000 --eval_freq=0"]
        line += ["--policy.device=cpu", *(f"--policy.network.{item}" for item in SMALL if small)]
        _command(*" ".join(line).split(), *words)
        return out

    return go


@pytest.fixture(scope="session")
def trained(train: Train) -> Callable[[str], Path]:
    """A type's checkpoint after two updates, made once; not to be changed. The last type sees the camera too."""
    made: dict[str, Path] = {}
    seen = {"kinoise_discrete_vla": "--policy.encoder.patch=8"}

    def give(kind: str) -> Path:
        if kind not in made:
            made[kind] = train(kind, seen.get(kind, "--policy.observations=[observation.state]"))
        return made[kind] / "checkpoints" / "last" / "pretrained_model"

    return give


@pytest.fixture(scope="session")
def fresh(dataset: Path) -> Callable[..., KinoisePolicy]:
    """A small policy of the tiny data set with random weights, in eval mode. Args: decode: settings of `config.decode`."""

    def make(kind: str = "kinoise_diffusion", *, decode: dict[str, Any] | None = None, **settings: Any) -> KinoisePolicy:
        settings = {"observations": ["observation.state"], "device": "cpu", **settings}
        config = make_policy_config(kind, **settings)
        config.network = type(config.network)(width=16, heads=2, depth=1)
        config.decode = type(config.decode)(**(decode or {}))
        torch.manual_seed(0)
        policy = make_policy(config, ds_meta=LeRobotDatasetMetadata("kinoise/tiny", root=dataset)).eval()
        with torch.no_grad():  # fresh networks end in zeros, and look at nothing
            for item in policy.average.parameters():
                item.add_(0.1 * torch.randn_like(item))
        return policy

    return make


@pytest.fixture(scope="session")
def command() -> Callable[..., None]:
    """`lerobot-train` with these arguments."""
    return _command


def _command(*words: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lerobot-train", *words])
        lerobot_train.main()
