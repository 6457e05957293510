"""What robomimic's environments show, as a policy of kinoise knows it: by the names and numbers that `data.robomimic` reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...data.base import ACTION
from ...data.robomimic.layout import OBS
from ...data.robomimic.names import IMAGE, SUFFIXES
from ...envs.base import Values
from ...spec import Feature, KinoiseError, Spec

LEVELS = 255


def names(key: str, feature: Feature) -> tuple[str, ...]:
    """What robomimic may call the observation `key`, the likeliest first."""
    if feature.kind == "image" and key.startswith(IMAGE):
        return (*(f"{key.removeprefix(IMAGE)}{suffix}" for suffix in SUFFIXES), key)
    return (ACTION,) if key == f"{OBS}.{ACTION}" else (key,)


def modalities(spec: Spec) -> dict[str, list[str]]:
    """Names of the observations by robomimic's word for their kind, for `initialize_obs_utils_with_obs_specs`."""
    found: dict[str, list[str]] = {"low_dim": [], "rgb": []}
    for key, feature in spec.observations.items():
        found["rgb" if feature.kind == "image" else "low_dim"] += names(key, feature)
    return found


def values(ob: Mapping[str, Any], spec: Spec) -> Values:
    """The newest of what an environment shows, by the spec's keys.

    Args:
        ob: by robomimic's names; numbers, images `[height, width, 3]` uint8 or, as robomimic prepares them,
            `[3, height, width]` from 0 to 1; each may be a stack of frames, `[frames, ...]`, oldest first.

    Raises:
        KinoiseError: an observation is missing, of another size, not finite, or an image of other numbers.
    """
    found, absent = {}, []
    for key, feature in spec.observations.items():
        name = next((item for item in names(key, feature) if item in ob), None)
        if name is None:
            absent.append(f"'{key}' ({' or '.join(names(key, feature))})")
        else:
            array = np.asarray(ob[name])
            found[key] = _picture(array, feature, name) if feature.kind == "image" else _state(array, feature, name)
    if absent:
        raise KinoiseError(
            f"robomimic's environment doesn't show {', '.join(absent)}, but {', '.join(sorted(map(str, ob)))}. Make it as the "
            f"demonstrations' was made; for images with use_image_obs=True and their camera_names, and after the policy, which "
            f"tells robomimic what is an image."
        )
    return found


def _state(array: np.ndarray, feature: Feature, name: str) -> np.ndarray:
    size = feature.shape[0]
    newest = array[-1] if array.ndim > 1 and array.size != size else array
    if newest.size != size or newest.dtype.kind not in "biuf":
        raise KinoiseError(
            f"'{name}': the policy was trained on {size} numbers, robomimic's environment shows {array.dtype}"
            f"{list(array.shape)}. Take the environment, and the robot, of the demonstrations."
        )
    if not np.isfinite(newest).all():
        raise KinoiseError(f"'{name}' is NaN or infinite: {newest.ravel().tolist()}. The simulation became unstable.")
    return newest.astype(np.float32).reshape(size)


def _picture(array: np.ndarray, feature: Feature, name: str) -> np.ndarray:
    newest = array[-1] if array.ndim == 4 else array
    if newest.shape == (feature.shape[2], *feature.shape[:2]):
        newest = np.moveaxis(newest, 0, -1)
    if newest.shape != feature.shape:
        raise KinoiseError(
            f"'{name}': the policy was trained on images {list(feature.shape)}, robomimic's environment shows "
            f"{list(array.shape)}. Make it with camera_heights={feature.shape[0]} and camera_widths={feature.shape[1]}."
        )
    if newest.dtype == np.uint8:
        return np.ascontiguousarray(newest)
    low, high = float(newest.min()), float(newest.max())
    if newest.dtype.kind != "f" or not (low >= 0 and high <= 1):  # NaN isn't, either
        raise KinoiseError(
            f"'{name}': expected uint8, or numbers from 0 to 1 as robomimic's process_obs makes them; came {newest.dtype} from "
            f"{low:g} to {high:g}. Leave the images as robomimic's environment shows them."
        )
    return np.rint(newest * LEVELS).astype(np.uint8)
