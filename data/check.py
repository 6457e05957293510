"""What an episode and a spec must be before they are written or trained on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..spec import Feature, KinoiseError, Spec
from .base import ACTION, Episode, Extra, features

CONTROLS = ("absolute", "relative", "delta")


def nameable(key: str) -> bool:
    """Whether an array can have this key: it has to name a folder, and a group of HDF5."""
    return bool(key) and key == Path(key).name and not key.startswith(".") and key.isprintable()


def check_spec(spec: Spec) -> None:
    """Raises KinoiseError for keys that can't name a folder, shapes that are neither a state's nor a picture's, names or bounds
    of another length, and a rate, control or gripper that no robot has."""
    for key, feature in features(spec).items():
        if not nameable(key):
            raise KinoiseError(f"observation key {key!r} cannot name a folder: use letters, digits, '.' and '_'.")
        _check_feature(key, feature)
    if ACTION in spec.observations:
        raise KinoiseError(f"an observation cannot be called '{ACTION}': that is the action's key. Rename it.")
    if spec.action.kind != "state":
        raise KinoiseError(f"the action is of kind {spec.action.kind}, expected state: numbers.")
    if not _finite(spec.rate) or spec.rate <= 0:
        raise KinoiseError(f"rate={spec.rate}: expected control steps per second, above 0.")
    if spec.control not in CONTROLS:
        raise KinoiseError(f"control={spec.control}: expected one of {', '.join(CONTROLS)}.")
    known = all(0 <= item < spec.action_dim and item == int(item) for item in spec.gripper)
    if len(set(spec.gripper)) < len(spec.gripper) or not known:
        raise KinoiseError(
            f"gripper={list(spec.gripper)}: expected some of the action's dimensions, 0 to {spec.action_dim - 1}, each once."
        )


def check_meta(meta: Mapping[str, Any] | None) -> None:
    """Raises KinoiseError for what JSON can't hold."""
    try:
        json.dumps(dict(meta or {}), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise KinoiseError(f"meta is not JSON ({error}). Use plain numbers, text and lists.") from error


def _check_feature(key: str, feature: Feature) -> None:
    if not feature.shape or min(feature.shape) < 1:
        raise KinoiseError(f"'{key}' has shape {feature.shape}: every feature needs at least one number a step.")
    if len(feature.shape) != 1 if feature.kind == "state" else len(feature.shape) != 3 or feature.shape[-1] != 3:
        expected = "(d,): lay it out in a row" if feature.kind == "state" else "(height, width, 3): RGB"
        raise KinoiseError(f"'{key}' is of kind {feature.kind} and has shape {feature.shape}, expected {expected}.")
    dims = int(np.prod(feature.shape))
    for name in ("names", "low", "high"):
        given = getattr(feature, name)
        if given and len(given) != dims:
            raise KinoiseError(f"'{key}' has {dims} dimensions but {len(given)} in its {name}: give one for each, or none.")
    for name in ("low", "high"):
        given = getattr(feature, name)
        if not all(map(_finite, given or ())):
            raise KinoiseError(f"'{key}' has {name}={given}: expected a finite number for each dimension, or none at all.")


def _finite(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and math.isfinite(value)


def extras_of(episode: Episode) -> dict[str, Extra]:
    """What the extras of an episode are."""
    return {key: Extra(array.dtype, array.shape[1:]) for key, array in episode.extras.items()}


def extras_from_json(value: Any) -> dict[str, Extra]:
    """Extras as headers hold them: `{key: {"dtype": numpy's name, "shape": of a step}}`.

    Raises ValueError for keys that can't name a folder, dtypes that aren't numbers of 64 bits at most, and steps without
    numbers; one of `files.MALFORMED` for what is no such object.
    """
    found = {}
    for key, item in value.items():
        extra = Extra(np.dtype(str(item["dtype"])), tuple(map(int, item["shape"])))
        numeric = extra.dtype.kind in "biuf" and 1 <= extra.dtype.itemsize <= 8
        if not nameable(key) or not numeric or min(extra.shape, default=1) < 1:
            raise ValueError(f"an extra {key!r} of {str(item)[:80]}")
        found[key] = extra
    return found


def label(index: int, episode: Episode) -> str:
    """How messages call an episode."""
    name = episode.info.get("file") or episode.info.get("task") or episode.instruction
    return f"episode {index} ({name})" if name else f"episode {index}"


def check_episode(spec: Spec, extras: Mapping[str, Extra], episode: Episode, label: str) -> int:
    """The episode's number of steps. Raises KinoiseError with its first problem."""
    for problem in problems(spec, extras, episode, label):
        raise KinoiseError(problem)
    return len(episode.arrays[ACTION])


def problems(spec: Spec, extras: Mapping[str, Extra], episode: Episode, label: str) -> Iterator[str]:
    """Everything about an episode that does not fit the spec: missing or unknown keys, wrong shapes or dtypes, unequal lengths,
    no steps, NaN or infinity, no instruction where the spec has language, one that is no text, info that JSON can't hold."""
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
            yield f"{label}: '{key}' is NaN or infinite at step {step}. Repair or remove the episode."
    yield from _extras(extras, episode, steps, label)
    if spec.language and not episode.instruction:
        yield f"{label} has no instruction, but the spec has language. Give it one, or set language=False."
    if any("\ud800" <= letter <= "\udfff" for letter in episode.instruction):
        yield f"{label}: its instruction {episode.instruction!r} is no Unicode text. Write it again in UTF-8."
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
        if not nameable(key):
            yield f"{label}: extra key {key!r} cannot name a folder: use letters, digits, '.' and '_'."
        elif key in episode.arrays:
            yield f"{label}: '{key}' is an observation or the action, and an extra as well. Rename one."
        elif array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            yield f"{label}: extra '{key}' is {array.dtype}: expected numbers of 64 bits at most. Leave it out or convert it."
        elif 0 in shape:
            yield f"{label}: extra '{key}' is {dtype}{list(array.shape)}: expected at least one number a step. Leave it out."
        elif array.dtype != dtype or array.shape != (steps, *shape):
            yield f"{label}: extra '{key}' is {array.dtype}{list(array.shape)}, expected {dtype}{[steps, *shape]}. Convert it."
