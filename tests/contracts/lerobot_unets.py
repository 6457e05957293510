"""Policies that LeRobot's DiffusionPolicy could be, and changes of its config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from kinoise.policies import build_policy
from kinoise.policies.base import Policy
from kinoise.policies.core.network import NetworkConfig
from kinoise.policies.core.network.config import UNetConfig
from kinoise.policies.core.process import ProcessConfig
from kinoise.policies.decode import DecodeConfig
from kinoise.policies.diffusion import DiffusionConfig
from kinoise.policies.encoders import VectorConfig
from kinoise.spec import Feature, Spec, Stats

LEVELS = 20
SIZES = {"state": 3, "environment_state": 2}


def stats(size: int, scale: float = 1.0) -> Stats:
    low = tuple(-scale * (1 + i / 4) for i in range(size))
    high = tuple(scale * (2 + i / 3) for i in range(size))
    return Stats(tuple((a + b) / 2 for a, b in zip(low, high, strict=True)), (scale,) * size, low, high, low, high, 100)


def small(
    history: int = 2, images: bool = False, sizes: Mapping[str, int] = SIZES, action: int = 2, **options: object
) -> Policy:
    """A U-Net that LeRobot's DiffusionPolicy could be, with weights that are nowhere zero."""
    observations = {key: Feature((size,)) for key, size in sizes.items()}
    if images:
        observations |= {"image.top": Feature((40, 44, 3), "image"), "image.wrist": Feature((40, 44, 3), "image")}
    spec = Spec(observations, Feature((action,)), rate=10.0, control="absolute", language=False)
    config = DiffusionConfig(
        history=history,
        past=history - 1,
        chunk=9 - history,
        execute=4,
        process=ProcessConfig(kind="vp", parametrisation="eps", levels=LEVELS, spacing="leading", clip=1.0),
        network=NetworkConfig(kind="unet", positions=LEVELS, unet=UNetConfig(widths=[8, 16], kernel=3, groups=4, embedding=8)),
        vector=VectorConfig(
            states={"environment_state": "none"}, keypoints=4, crop=[36, 40] if images else None, language=False
        ),
        decode=DecodeConfig(sampler="ddpm", steps=LEVELS),
    )
    known = {key: stats(3, 60.0) if item.kind == "image" else stats(item.shape[0]) for key, item in observations.items()}
    policy = build_policy(replace(config, **options), spec, {**known, "action": stats(action)}, ())
    gen = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for item in policy.parameters():
            item.add_(0.1 * torch.randn(item.shape, generator=gen))
    return policy.eval()


def change(folder: Path, **settings: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
