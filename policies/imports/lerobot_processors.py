"""LeRobot 0.4's two pipelines beside a policy, as its `save_pretrained` writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ...files import read_json, write_json, write_tensors
from ...spec import KinoiseError
from .bounds import shown

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
RENAME, DEVICE = "rename_observations_processor", "device_processor"
PASSIVE = (RENAME, "to_batch_processor", DEVICE)
"""Steps that don't change numbers."""
NORMALISERS = {PREPROCESSOR: "normalizer_processor", POSTPROCESSOR: "unnormalizer_processor"}
"""The step that scales, of each pipeline: observations before the policy, and actions after it back to what they were."""
EPSILON = 1e-8
SUFFIX = ".safetensors"
EXACT = (None, "float32")
"""What a device step may make of numbers, which changes none."""


class Step(NamedTuple):
    """Of a pipeline, one that kinoise knows.

    Args:
        path: the pipeline's file.
        state_file: of its tensors, which lies beside that; None without any.
    """

    path: Path
    kind: str
    settings: Mapping[str, Any]
    state_file: str | None


def read_steps(path: Path) -> list[Step]:
    """Raises KinoiseError for a file that is missing or damaged, and for a step that does something else to numbers."""
    value = read_json(path)
    steps = value.get("steps") if isinstance(value, dict) else None
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise KinoiseError(f"{path}: expected a list of steps. The file is damaged: save the policy again")
    found = [_step(path, step) for step in steps]
    scaling = [step.kind for step in found if step.kind in NORMALISERS.values()]
    if scaling not in ([], [NORMALISERS[path.name]]):
        raise KinoiseError(
            f"{path}: it scales by {' and '.join(map(repr, scaling))}: expected {NORMALISERS[path.name]!r}, once. Save the "
            "policy again with that alone"
        )
    return found


def _step(path: Path, value: Mapping[str, Any]) -> Step:
    kind, settings = value.get("registry_name", value.get("class")), value.get("config") or {}
    maps: list[Any] = [settings.get(key) or {} for key in ("rename_map", "norm_map")] if isinstance(settings, dict) else [None]
    if not all(isinstance(item, dict) and all(isinstance(name, str) for name in item.values()) for item in maps):
        raise KinoiseError(f"{path}: the settings of its step {shown(kind)} are damaged: save the policy again")
    if kind not in (*PASSIVE, *NORMALISERS.values()):
        raise KinoiseError(f"{path}: the step {shown(kind)} changes what the policy sees or does; kinoise doesn't know it")
    if kind == DEVICE and settings.get("float_dtype") not in EXACT:
        raise KinoiseError(
            f"{path}: the step {DEVICE!r} rounds numbers to {shown(settings['float_dtype'])}: expected float32, or none. Save "
            "the policy without its float_dtype"
        )
    file = value.get("state_file")
    if file is not None and not (isinstance(file, str) and Path(file).name == file and file.endswith(SUFFIX)):
        raise KinoiseError(f"{path}: state_file is {shown(file)}: expected the name of a {SUFFIX} file beside it")
    return Step(path, kind, settings, file)


def renamed(steps: Sequence[Step]) -> dict[str, str]:
    """LeRobot's name of an observation -> the name under which the policy knows it.

    Raises KinoiseError for several steps that rename, and for two names that become one: which counts depends on the batch.
    """
    maps = [step.settings["rename_map"] for step in steps if step.kind == RENAME and step.settings.get("rename_map")]
    found = maps[0] if maps else {}
    if len(maps) > 1 or len(set(found.values())) < len(found):
        raise KinoiseError(
            f"{steps[0].path}: its rename_map is {shown(maps)}: expected one, of observations that keep names of their own. "
            "Save the policy again with one"
        )
    return dict(found)


def refuse_scaling(steps: Sequence[Step]) -> None:
    """Raises KinoiseError where one of them scales, for policies that do it themselves."""
    for step in steps:
        modes = step.settings.get("norm_map") or {} if step.kind in NORMALISERS.values() else {}
        scaled = {kind: mode for kind, mode in modes.items() if mode != "IDENTITY"}
        if scaled:
            raise KinoiseError(
                f"{step.path}: its step {step.kind!r} scales by {shown(scaled)}: expected IDENTITY, since kinoise's policies "
                "normalise themselves. Take the file as LeRobot saved it with the policy"
            )


def write_processors(out: Path, config: Mapping[str, Any], stats: Mapping[str, Tensor]) -> None:
    """Args:
    config: the policy's config.json.
    stats: LeRobot's, by feature and statistic, as in `action.mean`; empty where nothing is scaled by them.
    """
    features = {**config["input_features"], **config["output_features"]}
    about = {"eps": EPSILON, "features": features, "norm_map": config["normalization_mapping"]}
    # LeRobot's commands address all of these by name, to rename, to choose a device and to normalise by other data.
    device = (DEVICE, {"device": "cpu", "float_dtype": None})
    before = [(RENAME, {"rename_map": {}}), ("to_batch_processor", {}), device]
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
