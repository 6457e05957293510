"""What an episode and a spec must be before they are written or trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ..spec import KinoiseError, Spec
from .base import ACTION, Episode, Extra, features


def check_spec(spec: Spec) -> None:
    """Raises KinoiseError for keys that can't name a folder, empty shapes, and names or bounds of another length."""
    for key, feature in features(spec).items():
        if key != Path(key).name or key.startswith("."):
            raise KinoiseError(f"observation key '{key}' cannot name a folder: use letters, digits, '.' and '_'.")
        if not feature.shape or min(feature.shape) < 1:
            raise KinoiseError(f"'{key}' has shape {feature.shape}: every feature needs at least one number a step.")
        dims = int(np.prod(feature.shape))
        for name in ("names", "low", "high"):
            given = getattr(feature, name)
            if given and len(given) != dims:
                raise KinoiseError(f"'{key}' has {dims} dimensions but {len(given)} in its {name}: give one for each, or none.")
    if ACTION in spec.observations:
        raise KinoiseError(f"an observation cannot be called '{ACTION}': that is the action's key. Rename it.")


def extras_of(episode: Episode) -> dict[str, Extra]:
    """What the extras of an episode are."""
    return {key: Extra(array.dtype, array.shape[1:]) for key, array in episode.extras.items()}


def label(index: int, episode: Episode) -> str:
    """How messages call an episode."""
    name = episode.info.get("task") or episode.instruction
    return f"episode {index} ({name})" if name else f"episode {index}"


def check_episode(spec: Spec, extras: Mapping[str, Extra], episode: Episode, label: str) -> int:
    """The episode's number of steps. Raises KinoiseError with its first problem."""
    for problem in problems(spec, extras, episode, label):
        raise KinoiseError(problem)
    return len(episode.arrays[ACTION])


def problems(spec: Spec, extras: Mapping[str, Extra], episode: Episode, label: str) -> Iterator[str]:
    """Everything about an episode that does not fit the spec: missing or unknown keys, wrong shapes or dtypes, unequal lengths,
    no steps, NaN or infinity, no instruction where the spec has language, info that JSON can't hold."""
    wanted = features(spec)
    missing, unknown = sorted(wanted.keys() - episode.arrays.keys()), sorted(episode.arrays.keys() - wanted.keys())
    if missing or unknown:
        yield f"{label}: missing keys {missing}, unknown keys {unknown}. Record exactly what the spec names."
        return
    steps = len(np.atleast_1d(episode.arrays[ACTION]))
    if steps == 0:
        yield f"{label} has no steps. Leave it out."
        return
    for key, feature in wanted.items():
        array = episode.arrays[key]
        if array.shape != (steps, *feature.shape) or array.dtype != feature.dtype:
            yield (
                f"{label}: '{key}' is {array.dtype}{list(array.shape)}, expected {feature.dtype}{[steps, *feature.shape]}. "
                f"Convert it or change the spec."
            )
        elif feature.kind == "state" and not np.isfinite(array).all():
            step = int(np.argwhere(~np.isfinite(array))[0, 0])
            yield f"{label}: '{key}' is NaN or infinite at step {step}. Repair or drop the episode."
    yield from _extras(extras, episode, steps, label)
    if spec.language and not episode.instruction:
        yield f"{label} has no instruction, but the spec has language. Give it one, or set language=False."
    try:
        json.dumps(episode.info, allow_nan=False)
    except (TypeError, ValueError) as error:
        yield f"{label}: info is not JSON ({error}). Use plain numbers, text and lists."


def _extras(extras: Mapping[str, Extra], episode: Episode, steps: int, label: str) -> Iterator[str]:
    if extras.keys() != episode.extras.keys():
        yield (
            f"{label}: extras {sorted(episode.extras)}, but the first episode has {sorted(extras)}. "
            f"Give every episode the same ones."
        )
        return
    for key, (dtype, shape) in extras.items():
        array = episode.extras[key]
        if key != Path(key).name or key.startswith("."):
            yield f"{label}: extra key '{key}' cannot name a folder: use letters, digits, '.' and '_'."
        elif array.dtype.kind not in "biuf":
            yield f"{label}: extra '{key}' is {array.dtype}: expected numbers. Leave it out or put it into info."
        elif array.dtype != dtype or array.shape != (steps, *shape):
            yield f"{label}: extra '{key}' is {array.dtype}{list(array.shape)}, expected {dtype}{[steps, *shape]}. Convert it."
