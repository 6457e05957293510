"""For tests of mixtures: small data sets of made-up episodes and the files that mix them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from kinoise.data import Episode
from kinoise.data.base import features
from kinoise.spec import Feature, Spec

SPEC = Spec(
    observations={"state": Feature((3,), unit=("m",)), "image.front": Feature((4, 5, 3), "image")},
    action=Feature((2,), names=("x", "grip"), low=(-9.0, 0.0), high=(9.0, 1.0)),
    rate=20.0,
    gripper=(1,),
)


def episodes(seed: int, lengths: tuple[int, ...] = (7, 1, 4), spec: Spec = SPEC, extras: bool = True) -> list[Episode]:
    rng, found = np.random.default_rng(seed), []
    for index, steps in enumerate(lengths):
        arrays = {
            key: rng.integers(0, 256, (steps, *item.shape), np.uint8)
            if item.kind == "image"
            else rng.normal(size=(steps, *item.shape)).astype(np.float32)
            for key, item in features(spec).items()
        }
        beside = {"reward": rng.normal(size=steps).astype(np.float32)} if extras else {}
        found.append(Episode(arrays, f"task {(seed + index) % 3}" if spec.language else "", {"index": index}, beside))
    return found


def describe(folder: Path, *datasets: dict[str, Any], **settings: Any) -> Path:
    path = folder / "mixture.yaml"
    path.write_text(yaml.safe_dump({"datasets": list(datasets), **settings}))
    return path


def renamed(spec: Spec = SPEC, key: str = "proprio") -> Spec:
    return replace(spec, observations={key: spec.observations["state"], "image.front": spec.observations["image.front"]})
