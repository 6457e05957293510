"""LeRobot's own DiffusionPolicy, in its own environment: `lerobot_policy_script.py make|plan FOLDER FILE ...`.

Imports no kinoise; importing LeRobot takes longer than all else, so it takes any number of such pairs.

make: FILE is JSON with its settings and `seed`; FOLDER gets a checkpoint with random weights and statistics, as LeRobot 0.4
    writes it, or, with `buried`, as LeRobot 0.3 did: statistics among the weights.
plan: FILE is an npz with observations, `noise` and the noise of every step; it gets `plan`, in physical units, beside it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

# torchvision's wheel expects operators that torch without CUDA lacks; nothing here calls them.
_library = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    _library.define(f"{_name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")

from diffusers.schedulers import scheduling_ddpm  # noqa: E402
from lerobot.configs.policies import PreTrainedConfig  # noqa: E402
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature  # noqa: E402
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig  # noqa: E402
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy  # noqa: E402
from lerobot.policies.factory import make_pre_post_processors  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402


def make(folder: Path, file: Path) -> None:
    about: dict[str, Any] = json.loads(file.read_text())
    torch.manual_seed(about.pop("seed"))
    buried, constant = about.pop("buried", False), about.pop("constant", None)
    for part in ("input_features", "output_features"):
        about[part] = {name: PolicyFeature(FeatureType(kind), tuple(shape)) for name, (kind, shape) in about[part].items()}
    mapping = about.pop("normalization_mapping", None)
    if mapping:
        about["normalization_mapping"] = {kind: NormalizationMode(mode) for kind, mode in mapping.items()}
    config = DiffusionConfig(device="cpu", push_to_hub=False, **about)
    policy = DiffusionPolicy(config)
    with torch.no_grad():
        for item in policy.parameters():  # norms and biases too, so that a mistake in any of them shows
            item.add_(0.02 * torch.randn_like(item))
        for item in policy.buffers():
            if item.is_floating_point() and item.ndim == 1:
                item.add_(0.3 * torch.rand_like(item))
    stats = {}
    for name, item in {**config.input_features, **config.output_features}.items():
        shape = (3, 1, 1) if item.type is FeatureType.VISUAL else item.shape
        low = 0.2 * torch.rand(shape) if len(shape) == 3 else 3 * torch.randn(shape)
        high = low + 0.5 + torch.rand(shape) * (0.1 if len(shape) == 3 else 5)
        if name == constant:
            high[0] = low[0]
        stats[name] = {"min": low, "max": high, "mean": (low + high) / 2, "std": (high - low) / 3}
        stats[name] |= {"q01": low + 0.01, "q99": high - 0.01, "count": torch.tensor([100.0])}
        if name == constant:
            stats[name]["std"][0] = 0
    before, after = make_pre_post_processors(config, dataset_stats=stats)
    policy.save_pretrained(folder)
    if not buried:
        before.save_pretrained(folder)
        after.save_pretrained(folder)
        return
    weights = load_file(folder / "model.safetensors")
    for name, item in {**config.input_features, **config.output_features}.items():
        mode = config.normalization_mapping.get(item.type.value, NormalizationMode.IDENTITY)
        kinds = {NormalizationMode.MEAN_STD: ("mean", "std"), NormalizationMode.MIN_MAX: ("min", "max")}.get(mode, ())
        parts = ("normalize_targets", "unnormalize_outputs") if name == "action" else ("normalize_inputs",)
        for part in parts:
            for kind in kinds:
                weights[f"{part}.buffer_{name.replace('.', '_')}.{kind}"] = stats[name][kind].clone()
    save_file(weights, folder / "model.safetensors")


def plan(folder: Path, file: Path) -> None:
    """With its own processors; a checkpoint of 0.3 goes through them too, made of what is among the weights."""
    with np.load(file) as given:
        arrays = {name: torch.from_numpy(given[name]) for name in given}
    noise, later = arrays.pop("noise"), iter(arrays.pop("later"))
    scheduling_ddpm.randn_tensor = lambda *_, **__: next(later)
    config = PreTrainedConfig.from_pretrained(folder)
    policy = DiffusionPolicy(config)
    weights = load_file(folder / "model.safetensors")
    buried = {name: weights.pop(name) for name in list(weights) if "normalize_" in name}
    policy.load_state_dict(weights)
    policy.eval()
    stats: dict[str, dict[str, torch.Tensor]] = {}
    known = {name.replace(".", "_"): name for name in (*config.input_features, *config.output_features)}
    for name, item in buried.items():
        _, feature, kind = name.replace("buffer_", "").split(".")
        stats.setdefault(known[feature], {})[kind] = item
    path = None if buried else str(folder)
    extra = {"dataset_stats": stats} if buried else {}
    before, after = make_pre_post_processors(config, pretrained_path=path, **extra)
    normal = next(step for step in before.steps if "Normalizer" in type(step).__name__)
    seen = normal._normalize_observation(dict(arrays), inverse=False)
    if config.image_features:
        seen["observation.images"] = torch.stack([seen[key] for key in config.image_features], dim=-4)
    with torch.no_grad():
        cond = policy.diffusion._prepare_global_conditioning(seen)
        chunk = policy.diffusion.conditional_sample(len(noise), global_cond=cond, noise=noise)
    scaled = next(step for step in after.steps if "Unnormalizer" in type(step).__name__)
    actions = scaled._normalize_action(chunk, inverse=True)[:, config.n_obs_steps - 1 :]
    np.savez(file.with_name("plan.npz"), plan=actions.numpy())


if __name__ == "__main__":
    command, places = {"make": make, "plan": plan}[sys.argv[1]], [Path(item) for item in sys.argv[2:]]
    for one, other in zip(places[::2], places[1::2], strict=True):
        command(one, other)
