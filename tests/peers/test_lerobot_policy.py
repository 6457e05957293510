"""LeRobot's own DiffusionPolicy and ours: the same weights, the same noise, the same actions, in both directions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from kinoise.policies.base import Policy
from kinoise.policies.core.random import normal
from kinoise.policies.diffusion import DiffusionPolicy
from kinoise.policies.imports import Robot, export_lerobot, import_policy
from kinoise.policies.imports.lerobot_config import our_key
from kinoise.spec import Observation

SCRIPT = Path(__file__).with_name("lerobot_policy_script.py")
CLOSE = 1e-5
"""Of half the range of each action."""
AMPLIFIED = 1e-3
"""The same for 1,000 linear levels: at the last, alpha is 0.006, and a rounding of the predicted noise counts 150 times."""

STATE, ENVIRONMENT = {"observation.state": ["STATE", [5]]}, {"observation.environment_state": ["ENV", [3]]}
CAMERAS = {f"observation.images.{name}": ["VISUAL", [3, 72, 80]] for name in ("top", "wrist")}
SMALL = {"down_dims": [16, 32, 64], "diffusion_step_embed_dim": 32, "output_features": {"action": ["ACTION", [4]]}}
PLAIN = {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "MIN_MAX"}
MEANS = {"VISUAL": "MEAN_STD", "STATE": "MEAN_STD", "ENV": "MIN_MAX", "ACTION": "MEAN_STD"}
CASES = {
    "ddpm": {"input_features": STATE | ENVIRONMENT, "constant": "observation.state"},
    "sample": {"input_features": STATE | ENVIRONMENT, "prediction_type": "sample", "use_film_scale_modulation": False},
    "quantiles": {"input_features": STATE | ENVIRONMENT, "normalization_mapping": PLAIN | {"STATE": "QUANTILES"}},
    "linear": {
        "input_features": STATE | ENVIRONMENT,
        "beta_schedule": "linear",
        "noise_scheduler_type": "DDIM",
        "num_train_timesteps": 1000,
        "num_inference_steps": 10,
    },
    "unclipped": {"input_features": STATE | ENVIRONMENT, "prediction_type": "sample", "clip_sample": False, "n_obs_steps": 1},
    "ddim": {
        "input_features": CAMERAS | STATE | ENVIRONMENT,
        "noise_scheduler_type": "DDIM",
        "num_inference_steps": 10,
        "crop_shape": [65, 70],
        "use_separate_rgb_encoder_per_camera": True,
        "normalization_mapping": MEANS,
        "n_obs_steps": 3,
        "n_action_steps": 6,
    },
    "buried": {
        "input_features": CAMERAS | STATE,
        "noise_scheduler_type": "DDIM",
        "num_inference_steps": 5,
        "resize_shape": [72, 64],
        "crop_ratio": 0.9,
        "use_group_norm": False,
        "spatial_softmax_num_keypoints": 16,
        "buried": True,
    },
}


def asked(policy: Policy, rows: int = 2) -> dict[str, torch.Tensor]:
    """Observations within the data's range."""
    gen, found = torch.Generator().manual_seed(5), {}
    for key, feature in policy.spec.observations.items():
        shape = (rows, policy.config.history, *feature.shape)
        if feature.kind == "image":
            found[key] = torch.randint(0, 256, shape, generator=gen, dtype=torch.uint8)
        else:
            low, high = torch.tensor(policy.stats[key].min), torch.tensor(policy.stats[key].max)
            found[key] = (low + (high - low) * torch.rand(shape, generator=gen)).float()
    return found


def give(policy: Policy, folder: Path) -> Path:
    """A file with observations by LeRobot's names, for the checkpoint in `folder`, and the noise of a plan by `policy`."""
    values, file = asked(policy), folder.with_name(f"{folder.name}_given") / "given.npz"
    names = {our_key(name): name for name in json.loads((folder / "config.json").read_text())["input_features"]}
    theirs = {names[key]: item.permute(0, 1, 4, 2, 3) / 255 if item.ndim == 5 else item for key, item in values.items()}
    assert isinstance(policy, DiffusionPolicy)
    gen, shape = torch.Generator().manual_seed(7), (2, policy.length, policy.spec.action_dim)
    noise = normal(shape, gen)
    later = torch.stack([normal(shape, gen) for _ in range(policy.config.decode.steps)])
    file.parent.mkdir()
    np.savez(file, noise=noise.numpy(), later=later.numpy(), **{name: item.numpy() for name, item in theirs.items()})
    return file


def gap(policy: Policy, file: Path) -> float:
    """The largest difference from LeRobot's plan with the same noise, in half ranges of the actions."""
    expected = torch.from_numpy(np.load(file.with_name("plan.npz"))["plan"])
    found = policy.plan(Observation(asked(policy)), torch.Generator().manual_seed(7)).actions
    low, high = torch.tensor(policy.stats["action"].min), torch.tensor(policy.stats["action"].max)
    assert found.std() > 0.05 * (high - low).mean()
    return float(((found - expected) / ((high - low) / 2)).abs().max())


@pytest.fixture(scope="module")
def planned(lerobot: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Policy, list[Path]]]:
    """By case LeRobot's checkpoint, imported, and where LeRobot's plans are: with it and, of some, with its export."""
    place = tmp_path_factory.mktemp("cases")
    for case, settings in CASES.items():
        (place / f"{case}.json").write_text(json.dumps({"seed": 0, **SMALL, **settings}))
    lerobot(SCRIPT, "make", *(path for case in CASES for path in (place / case, place / f"{case}.json")))
    found, pairs = {}, []
    for case in CASES:
        policy, folders = import_policy("lerobot", place / case, Robot(10.0)).policy, [place / case]
        if case in ("ddpm", "ddim", "linear"):
            export_lerobot(policy, place / f"{case}_back")
            folders.append(place / f"{case}_back")
        files = [give(policy, folder) for folder in folders]
        found[case], pairs = (policy, files), [*pairs, *zip(folders, files, strict=True)]
    lerobot(SCRIPT, "plan", *(path for pair in pairs for path in pair))
    return found


@pytest.mark.parametrize("case", CASES)
def test_an_imported_policy_plans_as_lerobots(planned, case):
    policy, files = planned[case]
    for file in files:
        assert gap(policy, file) < (AMPLIFIED if case == "linear" else CLOSE)
