"""LeRobot's DiffusionPolicy, for `benchmarks.peers` and `benchmarks.imported`: run by the Python of its own environment.

It is one that its settings describe, untrained, or a checkpoint's. Nothing of kinoise is imported.

`python lerobot_side.py SETTINGS` (JSON) prints what it is, as a line of JSON. For every line that it then reads it plans once
and prints the seconds that this took.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, TextIO

import torch

if TYPE_CHECKING:
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

OBSERVATIONS = {"observation.state": "STATE", "observation.environment_state": "ENV"}
"""LeRobot wants both, or images: the robot's numbers, and all the others."""


def load_torchvision() -> torch.library.Library:
    """Lets torchvision be imported beside a CPU build of torch. To be kept while it is used.

    The published wheel's operators are for another build and don't load; its Python files only want two names to be known,
    and a policy without images calls neither.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    return library


def answers() -> TextIO:
    """Where answers go. What LeRobot prints of its own accord (that it loads weights) goes to the other output from now on."""
    found, sys.stdout = sys.stdout, sys.stderr
    return found


def untrained(settings: dict) -> DiffusionPolicy:
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    sizes = dict(zip(OBSERVATIONS, settings["observations"], strict=True))
    torch.manual_seed(0)
    config = DiffusionConfig(
        n_obs_steps=1,
        horizon=settings["chunk"],
        n_action_steps=settings["chunk"],
        input_features={key: PolicyFeature(FeatureType[OBSERVATIONS[key]], (size,)) for key, size in sizes.items()},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (settings["actions"],))},
        down_dims=tuple(settings["down_dims"]),
        noise_scheduler_type="DDIM",
        num_inference_steps=settings["steps"],
        device="cpu",
    )
    return DiffusionPolicy(config)


def main(settings: dict) -> None:
    torch.set_num_threads(settings["threads"])
    out, kept = answers(), load_torchvision()
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    checkpoint = settings.get("checkpoint")
    policy = untrained(settings) if checkpoint is None else DiffusionPolicy.from_pretrained(checkpoint, strict=True)
    policy.eval()
    batch = {key: torch.zeros(1, *item.shape) for key, item in policy.config.input_features.items()}
    told = {name: version(name) for name in ("lerobot", "torch", "diffusers")}
    print(json.dumps({"parameters": sum(item.numel() for item in policy.parameters()), "versions": told}), file=out, flush=True)
    for _ in sys.stdin:
        policy.reset()  # else it would hand out what is left of the plan before
        started = time.perf_counter()
        policy.select_action(batch)
        print(time.perf_counter() - started, file=out, flush=True)
    del kept


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
