"""LeRobot's features under kinoise's names, and back: which array comes out of which feature, and what the spec says of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...spec import Feature, KinoiseError, Spec
from ..base import ACTION, DONE, REWARD, SUCCESS, TIMESTAMP, Extra
from ..check import nameable
from .layout import BOOKKEEPING, INFO, Declared, Info

OBSERVATION, IMAGES, NEXT, BESIDE = "observation.", "observation.images.", "next.", "extra."
EXTRAS = {"next.reward": REWARD, "next.done": DONE, "next.success": SUCCESS, "timestamp": TIMESTAMP}
TASK_INDEX = "task_index"
_ACTIONS = (ACTION, "actions")
"""The second is what data sets converted by hand call it; likewise a bare "state"."""
_STATE = "state"


@dataclass
class Sources:
    """What a data set's features mean.

    Args:
        observations, action, extras: what kinoise sees, by its own keys.
        names: our key of each of them -> LeRobot's name.
        dropped: what is left out or changed, a line each.
    """

    observations: dict[str, Feature] = field(default_factory=dict)
    action: Feature | None = None
    extras: dict[str, Extra] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)


def sources(info: Info) -> Sources:
    """Raises KinoiseError when there is no action, or nothing observed."""
    found = Sources()
    action = next((name for name in _ACTIONS if name in info.features and not info.features[name].visual), None)
    bare = _STATE if f"{OBSERVATION}{_STATE}" not in info.features else None
    for name, item in info.features.items():
        if name in BOOKKEEPING and name != "timestamp":
            continue
        key = our_key(name)
        why = _unfit(name, item, key)
        if why is not None:
            found.dropped.append(f"{name}: {why}")
        elif name == action:
            found.action, found.names[ACTION] = _vector(item, found.dropped), name
        elif item.visual or name.startswith(OBSERVATION) or name == bare:
            key = _free(key, name, found.names)
            found.observations[key] = Feature(image_shape(item), "image") if item.visual else _vector(item, found.dropped)
            found.names[key] = name
        else:
            key = _free(key, name, found.names)
            found.extras[key] = Extra(np.dtype(item.dtype), () if item.shape == (1,) else item.shape)
            found.names[key] = name
    if found.action is None or not found.observations:
        raise KinoiseError(
            f"{info.root / INFO} declares {sorted(info.features)}: expected 'action' and an 'observation.', numbers or images."
        )
    return found


def our_key(name: str) -> str:
    """`observation.images.top` is `image.top`, `observation.state` is `state`, `next.reward` is `reward`."""
    if name.startswith(IMAGES):
        return f"image.{name.removeprefix(IMAGES)}"
    return EXTRAS.get(name) or name.removeprefix(OBSERVATION)


def _free(key: str, name: str, taken: Mapping[str, str]) -> str:
    return next(item for item in (key, name, f"{BESIDE}{name}") if item not in taken and item != ACTION)


def lerobot_names(spec: Spec, extras: Iterable[str], regular: bool) -> dict[str, str]:
    """LeRobot's name for the action, every observation and every extra.

    Args:
        regular: whether the extra TIMESTAMP is the time that LeRobot's own column of that name holds.

    Raises:
        KinoiseError: two would have the same.
    """
    names = {ACTION: ACTION}
    for key, feature in spec.observations.items():
        camera = feature.kind == "image" and key.startswith("image.")
        names[key] = f"{IMAGES}{key.removeprefix('image.')}" if camera else f"{OBSERVATION}{key}"
    theirs = {ours: name for name, ours in EXTRAS.items()}
    taken = (*BOOKKEEPING, *_ACTIONS, _STATE, "task")
    for key in extras:
        plain = key not in taken and not key.startswith((OBSERVATION, NEXT, BESIDE))
        own = f"{BESIDE}{key}" if key == TIMESTAMP and not regular else theirs.get(key)
        names[key] = own or (key if plain else f"{BESIDE}{key}")
    if len(set(names.values())) < len(names):
        twice = sorted({name for name in names.values() if list(names.values()).count(name) > 1})
        raise KinoiseError(f"LeRobot would call two features {twice[0]}: rename one of {sorted(spec.observations)}.")
    return names


def image_shape(item: Declared) -> tuple[int, int, int]:
    """(height, width, 3) of a feature that declares its axes in any order. Raises KinoiseError unless it is RGB."""
    first = item.shape[0] == 3
    if first and item.shape[-1] == 3:
        axes = item.names if isinstance(item.names, list) and item.names else [""]
        first = str(axes[0]).startswith("channel")
    height, width, channels = (*item.shape[1:], item.shape[0]) if first else item.shape
    if channels != 3:
        raise KinoiseError(f"{channels} channels, expected 3 (RGB)")
    return height, width, channels


def _unfit(name: str, item: Declared, key: str) -> str | None:
    """Why a feature can't be read."""
    if not nameable(key):
        return "left out, for its name can't be that of a file"
    if item.visual:
        if item.depth:
            return "left out, for it holds depth"
        if len(item.shape) != 3 or min(item.shape) < 1:
            return f"left out, for its shape is {list(item.shape)}, expected height, width and channels"
        try:
            image_shape(item)
        except KinoiseError as error:
            return f"left out, for it has {error}"
        return None
    try:
        kind = np.dtype(item.dtype).kind
    except TypeError:
        kind = "O"
    if kind not in "biuf":
        return f"left out, for it holds {item.dtype}, not numbers"
    return "left out, for its shape has no numbers" if 0 in item.shape else None


def _vector(item: Declared, dropped: list[str]) -> Feature:
    dims = int(np.prod(item.shape))
    if item.dtype != "float32":
        dropped.append(f"{item.name}: {item.dtype} rounded to float32")
    if len(item.shape) > 1:
        dropped.append(f"{item.name}: its shape {list(item.shape)} made flat")
    names = _flat_names(item.names)
    if names and len(names) != dims:
        dropped.append(f"{item.name}: its {len(names)} names, for it has {dims} dimensions")
    return Feature((dims,), names=names if len(names) == dims else ())


def _flat_names(names: Any) -> tuple[str, ...]:
    """Names of dimensions out of a list, a list of lists, a dict of lists ({"motors": [...]}) or of indices ({"x": 0})."""
    if isinstance(names, Mapping):
        if names and all(isinstance(value, int) for value in names.values()):
            return tuple(sorted(map(str, names), key=lambda name: names[name]))
        return tuple(part for value in names.values() for part in _flat_names(value))
    if isinstance(names, list):
        return tuple(part for value in names for part in ((value,) if isinstance(value, str) else _flat_names(value)))
    return ()
