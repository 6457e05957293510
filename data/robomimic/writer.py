"""Writes robomimic's HDF5 files: what its SequenceDataset reads, and beside it what makes reading it again lossless."""

from __future__ import annotations

import errno
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ... import __version__
from ...files import write_large_file
from ...spec import KinoiseError, Spec
from ..base import ACTION, DONE, REWARD, SUCCESS, Episode, Extra, features
from ..check import check_episode, check_meta, check_spec, extras_of, label
from .layout import ACTIONS, NEXT_OBS, OBS
from .names import FORMAT, RESERVED, SPELLED, array_path

MADE = ("total", "env_args", "kinoise", "num_demos", "macros_image_convention")
"""Attributes of `data` that a file's content decides."""
GYM = 2
"""robomimic's number for environments of Gym's interface."""
TOGETHER = 2**20
"""Bytes of metadata in one place: scattered among the arrays they take half as long again to read from a disk."""
LEVEL = 1
"""Of deflate, for images."""


def write_robomimic(path: Path, spec: Spec, episodes: Iterable[Episode], meta: Mapping[str, Any]) -> list[str]:
    """See `base.Format.write`. One episode is in memory at a time.

    Actions are float64, as robomimic's own files have them. `next_obs` are the observations a step on, and the last one again,
    as its converters do where nothing was observed after the last action. Rewards that the extras lack are the success of a
    step, or 0, and such dones are 1 at the last one: robomimic's readers need both.
    """
    path = Path(path)
    check_spec(spec)
    check_meta(meta)
    if path.exists():
        raise KinoiseError(f"{path} exists already. Choose another out=, or remove it first.")
    lost: list[str] = []

    def write(temporary: Path) -> None:
        try:
            _write(temporary, path, spec, episodes, meta, lost)
        except (OSError, RuntimeError) as error:  # HDF5 has the system's number in its text alone
            if f"errno = {errno.ENOSPC}" in str(error):
                raise OSError(errno.ENOSPC, "HDF5 could not write", str(path)) from error
            raise

    write_large_file(path, write)
    return lost


def maskable(name: str) -> bool:
    """Whether a filter can have this name in the file."""
    return bool(name) and name != "." and "/" not in name and _storable(name)


def _write(
    temporary: Path, path: Path, spec: Spec, episodes: Iterable[Episode], meta: Mapping[str, Any], lost: list[str]
) -> None:
    told = meta.get("robomimic")
    told = told if isinstance(told, Mapping) else {}
    paths = _paths(spec, told.get("paths"))
    extras: dict[str, Extra] = {}
    masks: dict[str, list[str]] = {}
    total, task = 0, None
    with h5py.File(temporary, "w", meta_block_size=TOGETHER) as file:
        data = file.create_group("data")
        for index, episode in enumerate(episodes):
            if index == 0:
                extras, task = extras_of(episode), episode.info.get("task")
            steps = check_episode(spec, extras, episode, label(index, episode))
            demo = data.create_group(f"demo_{index}")
            for key, feature in features(spec).items():
                if key == ACTION:
                    demo.create_dataset(ACTIONS, data=episode.arrays[key].astype(np.float64))
                elif feature.kind == "image":
                    _images(demo, paths[key], episode.arrays[key])
                else:
                    demo.create_dataset(paths[key], data=episode.arrays[key])
                    demo.create_dataset(_next(paths[key]), data=_shifted(episode.arrays[key]))
            for name, array in _beside(episode, steps).items():
                demo.create_dataset(name, data=array)
            demo.attrs["num_samples"] = steps
            _attributes(demo, episode)
            for name in _filters(episode):
                masks.setdefault(name, []).append(f"demo_{index}")
            total += steps
        if not total:
            raise KinoiseError(f"no episodes to write to {path}: a store needs at least one.")
        for name, listed in masks.items():
            file[f"mask/{name}"] = np.array(listed, dtype="S")
        data.attrs["total"] = total
        data.attrs["env_args"] = json.dumps(_env_args(told.get("env_args"), task, spec), indent=4)
        for name, value in _plain(told.get("attributes")).items():
            data.attrs[name] = value
        held = {key: SPELLED.get(key, key) for key in extras if key not in RESERVED}
        lost += [f"extra '{key}': robomimic keeps another array under that name" for key in extras if key not in held]
        header = {
            "format": FORMAT,
            "kinoise": __version__,
            "spec": spec.to_json(),
            "paths": paths,
            "extras": held,
            "made": sorted({SPELLED[REWARD], SPELLED[DONE]} - set(held.values())),
            "meta": dict(meta),
        }
        data.attrs["kinoise"] = json.dumps(header, allow_nan=False)


def _paths(spec: Spec, before: Any) -> dict[str, str]:
    """Each key's array in a demonstration: where the file that it came from had it, if that is still possible."""
    usual = {key: array_path(key, feature, spec.observations) for key, feature in spec.observations.items()}
    old = before if isinstance(before, Mapping) else {}
    wanted = {key: path for key, path in old.items() if key in usual and isinstance(path, str) and path.startswith(f"{OBS}/")}
    chosen = {**usual, **wanted}
    apart = len(set(chosen.values())) == len(chosen)
    flat = not any(one.startswith(f"{other}/") for one in chosen.values() for other in chosen.values())
    return {**(chosen if apart and flat else usual), ACTION: ACTIONS}


def _images(demo: h5py.Group, path: str, frames: np.ndarray) -> None:
    """A chunk for each frame, so that readers of windows unpack no others; packed once for the observation and the next one."""
    packed = [zlib.compress(frame.tobytes(), LEVEL) for frame in frames]
    for name, shown in ((path, packed), (_next(path), [*packed[1:], packed[-1]])):
        dataset = demo.create_dataset(
            name, frames.shape, frames.dtype, chunks=(1, *frames.shape[1:]), compression="gzip", compression_opts=LEVEL
        )
        for place, chunk in enumerate(shown):
            dataset.id.write_direct_chunk((place, 0, 0, 0), chunk)


def _beside(episode: Episode, steps: int) -> dict[str, np.ndarray]:
    """The other arrays of a demonstration, by name."""
    success = episode.extras.get(SUCCESS)
    rewards = np.zeros(steps) if success is None or success.ndim > 1 else success.astype(np.float64)
    dones = (np.arange(steps) == steps - 1).astype(np.int64)
    held = {SPELLED.get(key, key): array for key, array in episode.extras.items() if key not in RESERVED}
    return {SPELLED[REWARD]: rewards, SPELLED[DONE]: dones, **held}


def _attributes(demo: h5py.Group, episode: Episode) -> None:
    info = dict(episode.info)
    model = info.get("model_file")
    if isinstance(model, str) and _storable(model):
        demo.attrs["model_file"] = info.pop("model_file")
    ep_meta = info.get("ep_meta")
    ep_meta = dict(ep_meta) if isinstance(ep_meta, Mapping) else {}
    if episode.instruction:
        ep_meta["lang"] = episode.instruction
    if ep_meta:
        demo.attrs["ep_meta"] = json.dumps(ep_meta)
    demo.attrs["kinoise"] = json.dumps({"text": episode.instruction, "info": info})


def _filters(episode: Episode) -> list[str]:
    named = episode.info.get("filters")
    named = named if isinstance(named, list) else []
    return list(dict.fromkeys(name for name in named if isinstance(name, str) and maskable(name)))


def _env_args(before: Any, task: Any, spec: Spec) -> dict[str, Any]:
    if isinstance(before, Mapping) and before:
        return dict(before)
    name = task if isinstance(task, str) and task else "kinoise"
    return {"env_name": name, "type": GYM, "env_kwargs": {"control_freq": spec.rate}}


def _plain(attributes: Any) -> dict[str, Any]:
    """Those that HDF5 can hold."""
    given = attributes if isinstance(attributes, Mapping) else {}
    kept = {name: value for name, value in given.items() if name and name not in MADE and _storable(name)}
    return {
        name: value
        for name, value in kept.items()
        if (isinstance(value, str) and _storable(value))
        or (isinstance(value, int) and abs(value) < 2**63)
        or isinstance(value, float)
    }


def _storable(text: str) -> bool:
    """Whether HDF5 can hold a text: its strings end at the first zero."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _next(path: str) -> str:
    return f"{NEXT_OBS}/{path.removeprefix(f'{OBS}/')}"


def _shifted(array: np.ndarray) -> np.ndarray:
    return np.concatenate([array[1:], array[-1:]])
