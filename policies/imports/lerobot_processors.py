"""LeRobot 0.4's two pipelines beside a policy, as its `save_pretrained` writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ...files import write_json, write_tensors
from .lerobot_stats import EPSILON, POSTPROCESSOR, PREPROCESSOR


def write_processors(out: Path, config: Mapping[str, Any], stats: Mapping[str, Tensor]) -> None:
    """Args:
    config: the policy's config.json.
    stats: LeRobot's, by feature and statistic, as in `action.mean`; empty where nothing is scaled by them.
    """
    features = {**config["input_features"], **config["output_features"]}
    about = {"eps": EPSILON, "features": features, "norm_map": config["normalization_mapping"]}
    # LeRobot's commands address all of these by name, to rename, to choose a device and to normalise by other data.
    device = ("device_processor", {"device": "cpu", "float_dtype": None})
    before = [("rename_observations_processor", {"rename_map": {}}), ("to_batch_processor", {}), device]
    unnormalise = ("unnormalizer_processor", {**about, "features": config["output_features"]})
    for file, steps in ((PREPROCESSOR, [*before, ("normalizer_processor", about)]), (POSTPROCESSOR, [unnormalise, device])):
        _processor(out / file, steps, stats)


def _processor(path: Path, steps: Sequence[tuple[str, Mapping[str, Any]]], stats: Mapping[str, Tensor]) -> None:
    listed = []
    for index, (name, config) in enumerate(steps):
        listed.append({"registry_name": name, "config": dict(config)})
        if stats and name.endswith("normalizer_processor"):
            file = f"{path.stem}_step_{index}_{name}.safetensors"
            write_tensors(path.parent / file, stats)
            listed[-1]["state_file"] = file
    write_json(path, {"name": path.stem, "steps": listed})
