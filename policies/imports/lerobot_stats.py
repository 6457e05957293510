"""Statistics that LeRobot's policies come with: in processors beside the weights (0.4), or among the weights (0.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...spec import KinoiseError, Stats
from ..core.codec import coincide
from .bounds import shown
from .lerobot_processors import EPSILON, NORMALISERS, POSTPROCESSOR, PREPROCESSOR, Step, read_steps, renamed
from .tensors import read_safetensors

BURIED = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")
"""Where LeRobot 0.3 keeps statistics among the weights: `normalize_inputs.buffer_observation_state.min`."""
ACTION = "action"
NEEDED = {"MIN_MAX": ("min", "max"), "MEAN_STD": ("mean", "std"), "QUANTILES": ("q01", "q99")}
"""The statistics that each mode scales by."""


@dataclass
class Normalisation:
    """By LeRobot's feature names.

    Args:
        stats: the tensors, by feature and statistic, as in the data: images in [0, 1].
        modes: how features are scaled that have statistics.
        renamed: names of observations -> those that the policy knows them by.
    """

    stats: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    modes: dict[str, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)


def read_normalisation(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Normalisation:
    """Raises KinoiseError for a processor that does something else to numbers, and for statistics that are missing."""
    kinds = {name: item["type"] for part in ("input_features", "output_features") for name, item in config[part].items()}
    if (folder / PREPROCESSOR).exists() or (folder / POSTPROCESSOR).exists():
        return _processors(folder, kinds)
    return _buried(kinds, config["normalization_mapping"], weights, folder)


def _processors(folder: Path, kinds: Mapping[str, str]) -> Normalisation:
    found = Normalisation()
    for name, features in ((PREPROCESSOR, [key for key in kinds if key != ACTION]), (POSTPROCESSOR, [ACTION])):
        steps = read_steps(folder / name)
        if name == PREPROCESSOR:
            found.renamed |= renamed(steps)
        for step in steps:
            if step.kind in NORMALISERS.values():
                _normaliser(found, step, features, kinds)
    return found


def _normaliser(found: Normalisation, step: Step, features: Iterable[str], kinds: Mapping[str, str]) -> None:
    path, settings = step.path, step.settings
    if settings.get("eps", EPSILON) != EPSILON:
        raise KinoiseError(f"{path}: eps={settings['eps']}: kinoise knows LeRobot's default of {EPSILON} alone")
    tensors = {}
    if step.state_file is not None:
        tensors = read_safetensors(path.parent / step.state_file)
    only = settings.get("normalize_observation_keys")
    if only is not None and not isinstance(only, list):
        raise KinoiseError(f"{path}: normalize_observation_keys is {shown(only)}: expected a list of names, or null")
    for feature in features:
        own = {key.rpartition(".")[2]: item for key, item in tensors.items() if key.rpartition(".")[0] == feature}
        mode = str((settings.get("norm_map") or {}).get(kinds[feature], "IDENTITY"))
        used = only is None or feature in only or feature == ACTION
        # LeRobot leaves an observation that has none as it is; actions without were lost on the way.
        if used and (own or feature == ACTION):
            _require(own, feature, mode, path)
            found.modes[feature] = mode
        if own:
            found.stats[feature] = own


def _buried(kinds: Mapping[str, str], modes: Mapping[str, str], weights: Mapping[str, Tensor], folder: Path) -> Normalisation:
    found = Normalisation()
    for feature, kind in kinds.items():
        mode, part = str(modes.get(kind, "IDENTITY")), "unnormalize_outputs" if feature == ACTION else "normalize_inputs"
        start = f"{part}.buffer_{feature.replace('.', '_')}."
        own = {name.removeprefix(start): item for name, item in weights.items() if name.startswith(start)}
        if mode != "IDENTITY":
            if not own:
                raise KinoiseError(
                    f"{folder}: no statistics of {feature}, which is scaled by {mode}: neither among the weights ({start}*) "
                    f"nor in {PREPROCESSOR} and {POSTPROCESSOR}. Take the whole pretrained_model folder"
                )
            _require(own, feature, mode, folder)
            if mode == "MIN_MAX" and kind in ("STATE", "ENV"):
                low, high = own["min"].double(), own["max"].double()
                own["max"] = torch.where(high > low, high + EPSILON, high)  # which LeRobot 0.3 adds to the range
            found.stats[feature], found.modes[feature] = own, mode
    return found


def _require(stats: Mapping[str, Tensor], feature: str, mode: str, source: Path) -> None:
    missing = [name for name in NEEDED.get(mode, ()) if name not in stats]
    if missing:
        raise KinoiseError(
            f"{source}: {feature} is scaled by {mode}, and its statistics lack {' and '.join(missing)} (there are "
            f"{', '.join(sorted(stats)) or 'none'}). Take the whole pretrained_model folder, or save the policy again"
        )


def our_stats(stats: Mapping[str, Tensor] | None, size: int, image: bool, mode: str, where: str) -> Stats:
    """Ours, one number per dimension or channel; what wasn't saved follows from what was, as of uniform numbers.

    Args:
        stats: by LeRobot's names; None for none, which stands for numbers of order one.
        size: dimensions, or channels.
        mode: of core.codec.CODECS. Under `quantile`, where the percentiles coincide, they are the extremes too: LeRobot holds
            such a dimension constant, and our codec would scale it by its extremes.
    """
    unit = 255.0 if image else 1.0
    given = {name: item.double().flatten() * unit for name, item in (stats or {}).items() if name != "count"}
    wrong = {name: len(item) for name, item in given.items() if len(item) != size}
    if wrong or not all(item.isfinite().all() for item in given.values()):
        raise KinoiseError(f"{where}: statistics of {size} finite numbers are needed, came {wrong or 'NaN or infinity'}")
    if mode == "quantile":
        low, high = given["q01"], given["q99"]
        least, most = given.get("min", low), given.get("max", high)
        flat = coincide(low, high, least, most)
        given |= {"min": torch.where(flat, low, least), "max": torch.where(flat, high, most)}
    if not {"min", "max"} <= given.keys():
        middle = given.get("mean", torch.full((size,), unit / 2 if image else 0.0, dtype=torch.float64))
        spread = given.get("std", torch.full((size,), unit / 4 if image else 1.0, dtype=torch.float64))
        given |= {"mean": middle, "std": spread, "min": middle - 3 * spread, "max": middle + 3 * spread}
    low, high = given["min"], given["max"]
    values = {"mean": (low + high) / 2, "std": (high - low) / 12**0.5, "q01": low, "q99": high} | given
    count = (stats or {}).get("count")
    if count is not None and not (count.numel() == 1 and count.isfinite().all() and count.min() >= 0):
        raise KinoiseError(f"{where}: a count of values is needed, one number from 0 on, came {count.flatten()[:3].tolist()}")
    numbers = {name: tuple(values[name].tolist()) for name in ("mean", "std", "min", "max", "q01", "q99")}
    return Stats(**numbers, count=1 if count is None else int(count.flatten()[0]))


def their_stats(stats: Stats, image: bool, mode: str) -> dict[str, Tensor]:
    """LeRobot's tensors of one feature. Under `quantile` its percentiles are those that our codec scales by."""
    names = ("mean", "std", "min", "max", "q01", "q99")
    found = {name: torch.tensor(getattr(stats, name), dtype=torch.float64) for name in names}
    if mode == "quantile":
        flat = coincide(found["q01"], found["q99"], found["min"], found["max"])
        found["q01"] = torch.where(flat, found["min"], found["q01"])
        found["q99"] = torch.where(flat, found["max"], found["q99"])
    found = {name: (item / 255).view(3, 1, 1).float() if image else item.float() for name, item in found.items()}
    return {**found, "count": torch.tensor([stats.count], dtype=torch.float32)}
