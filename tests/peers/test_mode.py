"""MoDE's checkpoints, whose agents its own code makes and plans with: a checkout of it in .peers/MoDE_Diffusion_Policy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kinoise.policies.base import Policy
from kinoise.policies.checkpoint import load_policy, save_policy
from kinoise.policies.imports import Robot, import_policy
from kinoise.spec import Feature, Observation, Spec

ROOT = Path(__file__).resolve().parents[2]
PEERS, SCRIPT = ROOT / ".peers", Path(__file__).with_name("mode_script.py")
SOURCE = PEERS / "MoDE_Diffusion_Policy"
PACKAGES = (
    "torchvision==0.28.0",
    "timm==1.0.31",
    "einops==0.8.2",
    "torchsde==0.2.6",
    "torchdiffeq==0.2.5",
    "trampoline==0.1.2",
    "ftfy==6.3.1",
    "wcwidth==0.9.4",
)
"""What planning imports besides what is here, without what they ask for."""
TEXTS = ("push the red block", "Open the  Drawer, it's closed!", "turn on the stove and put the moka pot on it")
CHUNK, ROWS, SHAPES = 6, 3, {"rgb_static": (70, 90), "rgb_gripper": (64, 64)}
SMALL = {"act_seq_len": CHUNK, "multistep": 4, "model.latent_dim": 32, "model.cond_dim": 48}
SMALL |= {f"model.model.inner_model.{name}": value for name, value in {"n_layers": 3, "n_heads": 4}.items()}
RESIZED = {f"datamodule.transforms.val.{name}": size for name, size in (("rgb_static", 64), ("rgb_gripper", 48))}


@pytest.fixture(scope="session")
def mode(packages: Callable[[str, Sequence[str]], Path]) -> Callable[[Path, dict[str, Any]], None]:
    """Runs the script with MoDE's code, whose packages are in a folder of their own: torch is ours."""
    if not SOURCE.is_dir():
        pytest.skip(
            f"no MoDE: expected a checkout of github.com/intuitive-robots/MoDE_Diffusion_Policy, or a link, at {SOURCE}"
        )
    folder = packages("mode", PACKAGES)

    def run(made: Path, settings: dict[str, Any]) -> None:
        environment = os.environ | {"PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        words = [sys.executable, str(SCRIPT), str(SOURCE), str(made), json.dumps(settings)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]

    return run


def given(file: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found: dict[str, np.ndarray] = {key: rng.integers(0, 256, (ROWS, *shape, 3), np.uint8) for key, shape in SHAPES.items()}
    found["noise"] = rng.normal(size=(ROWS, CHUNK, 7)).astype(np.float32)
    found["texts"] = np.array(TEXTS)
    np.savez(file, **found)
    return found


def imported(folder: Path, names: dict[str, str]) -> Policy:
    seen = {names[key]: Feature((*shape, 3), "image") for key, shape in SHAPES.items()}
    spec = Spec({"state": Feature((9,)), **seen}, Feature((7,)), rate=10.0, control="delta", gripper=(6,))
    return import_policy("mode", folder, Robot(10.0, like=(spec, TEXTS), clip=folder / "clip")).policy


CASES = [
    ("libero", "18", "ddim", "exponential"),
    ("calvin", "50", "ddim", "karras"),
    ("calvin", "34", "heun", "exponential"),
    ("libero", "50", "dpmpp_2m", "karras"),
    ("calvin", "18", "euler", "exponential"),
]


@pytest.mark.parametrize(("which", "resnet", "sampler", "grid"), CASES)
def test_a_policy_from_mode_plans_as_its_own_code_does(mode, tmp_path, which, resnet, sampler, grid):
    arrays = given(tmp_path / "given.npz")
    changes = {**SMALL, "model.resnet_type": resnet, "model.sampler_type": sampler, "model.noise_scheduler": grid}
    changes |= {f"{name}[0].size": size for name, size in RESIZED.items()}
    mode(tmp_path / "made", {"which": which, "changes": changes, "given": str(tmp_path / "given.npz")})
    with np.load(tmp_path / "made" / "peer.npz") as file:
        theirs = {name: torch.from_numpy(file[name]) for name in file}
    libero = which == "libero"
    names = dict(zip(SHAPES, ("agentview_rgb", "eye_in_hand_rgb") if libero else SHAPES, strict=True))
    # Pictures of LIBERO's have their first row at the bottom, ours at the top.
    values = {names[key]: torch.from_numpy(arrays[key][:, None, :: -1 if libero else 1].copy()) for key in SHAPES}
    obs, noise = Observation(values, TEXTS, torch.arange(ROWS)), torch.from_numpy(arrays["noise"])
    policy = imported(tmp_path / "made", names)
    with torch.inference_mode():
        table = policy.observe.texts(TEXTS, torch.arange(ROWS))
        context = policy.observe(obs)
        times = policy.process.schedule.time(theirs["sigmas"].double())
        labels = policy.process.label(times)
        outputs = torch.stack([policy.network(noise, policy._level(one, 0), context).value for one in labels])
        hidden = policy.observe(obs, torch.ones(ROWS, dtype=torch.bool))
        without = policy.network(noise, labels[2].expand(ROWS), hidden).value
    worst = {"texts": (table - theirs["texts"]).abs().max(), "outputs": (outputs - theirs["outputs"]).abs().max()}
    worst["unconditional"] = (without - theirs["unconditional"]).abs().max()
    policy.process.prior = lambda *_: policy.config.process.sigma_max * noise
    gen = torch.Generator()
    worst["plan"] = (policy.plan(obs, gen).actions - theirs["plan"]).abs().max()
    worst["fused"] = (policy.plan(obs, gen).actions - theirs["fused"]).abs().max()
    print({name: float(value) for name, value in worst.items()}, float(theirs["outputs"].std()), float(theirs["plan"].std()))
    assert max(worst.values()) < 1e-5
    assert min(theirs["outputs"].std(), theirs["plan"].std()) > 0.05
    assert policy.config.execute == 4
    save_policy(tmp_path, policy, {})
    again = load_policy(tmp_path)
    again.process.prior = policy.process.prior
    torch.testing.assert_close(again.plan(obs, gen).actions, policy.plan(obs, gen).actions, rtol=0, atol=0)
