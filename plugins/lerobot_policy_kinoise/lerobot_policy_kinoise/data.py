"""What a policy learnt from: LeRobot's data set in kinoise's terms."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from kinoise.data import Reading, open_store
from kinoise.data.lerobot.layout import read_info
from kinoise.data.lerobot.own import OWN
from kinoise.data.lerobot.sources import sources
from kinoise.data.stats import statistics
from kinoise.files import MALFORMED, read_json
from kinoise.policies.imports.plugin_config import Data
from kinoise.spec import Feature, KinoiseError, Spec, Stats
from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata
from lerobot.utils.constants import ACTION

from .configuration_kinoise import KinoiseConfig

NUMBERS = ("mean", "std", "min", "max", "q01", "q99")
WHITE = 255.0
"""LeRobot's images, and their statistics, reach from 0 to 1."""


def learnt_from(config: KinoiseConfig, meta: LeRobotDatasetMetadata) -> Data:
    """The data set's features that `config` uses, with `meta/stats.json`'s statistics.

    What these lack (percentiles in older data sets; the quantiles of actions that some bins are placed by) is computed from
    the data set's files, states and actions alone.

    Raises:
        KinoiseError: a feature of which kinoise can make nothing; statistics that are missing, with the files.
    """
    found = sources(read_info(meta.root))
    keys = {name: key for key, name in found.names.items() if key in found.observations}
    unfit = [name for name in config.input_features or {} if name not in keys]
    if unfit or found.action is None or found.names[ACTION] != ACTION:
        reasons = [line for line in found.dropped if line.partition(":")[0] in unfit]
        raise KinoiseError(
            f"{unfit or ACTION}: expected float states, RGB images and '{ACTION}' ({'; '.join(reasons) or 'nothing fits'}). "
            "Name the observations to use: --policy.observations='[\"observation.state\"]'"
        )
    names = {keys[name]: name for name in config.input_features or {}}
    seen = {key: found.observations[key] for key in names}
    if config.resize_shape is not None:
        seen = {
            key: replace(item, shape=(*config.resize_shape, 3)) if item.kind == "image" else item for key, item in seen.items()
        }
    dims = [name.lower() for name in found.action.names]
    texts = tuple(map(str, meta.tasks.index)) if meta.tasks is not None else ()
    told = _told(meta.root, found.action)
    spec = Spec(
        seen,
        found.action,
        rate=float(meta.fps),
        control=told or ("delta" if any(name.startswith("delta") for name in dims) else "absolute"),
        gripper=tuple(index for index, name in enumerate(dims) if "gripper" in name),
        language=config.language and bool(texts) and all(texts),
    )
    stats = _statistics(config, spec, {**names, ACTION: ACTION}, meta)
    return Data(spec, stats, texts if spec.language else (), names, guessed=told is None)


def _told(root: Path, action: Feature) -> Any:
    """What actions mean, where kinoise wrote the data set and its actions are those still; LeRobot's own files don't say."""
    if not (root / OWN).is_file():
        return None
    try:
        spec = Spec.from_json(read_json(root / OWN)["spec"])
    except (KinoiseError, *MALFORMED) as error:
        logging.warning("%s can't be read (%s): what actions mean is guessed from their names", root / OWN, error)
        return None
    return spec.control if spec.action.shape == action.shape else None


def _statistics(config: KinoiseConfig, spec: Spec, names: Mapping[str, str], meta: LeRobotDatasetMetadata) -> dict[str, Stats]:
    given: Mapping[str, Mapping[str, Any]] = meta.stats or {}
    images = {key for key, item in spec.observations.items() if item.kind == "image"}
    absent = [name for key, name in names.items() if key in images and name not in given]
    if absent:
        raise KinoiseError(f"{meta.root}: meta/stats.json lacks {absent}: compute it with LeRobot's tools")
    found = {key: _stats(given[name], WHITE) for key, name in names.items() if key in images}
    numeric = [key for key in names if key not in images]
    whole = all(set(NUMBERS) <= given.get(names[key], {}).keys() for key in numeric)
    if whole and not _needs_quantiles(config, spec):
        return found | {key: _stats(given[names[key]], 1.0) for key in numeric}
    try:
        store = open_store(meta.root, Reading(format="lerobot"))
        return found | statistics(store, keys=numeric)
    except KinoiseError as error:
        raise KinoiseError(
            f"meta/stats.json lacks percentiles or quantiles that this policy needs, and they can't be computed: {error} "
            "Have the whole data set on this machine, and not streamed"
        ) from error


def _needs_quantiles(config: KinoiseConfig, spec: Spec) -> bool:
    bins = getattr(config, "bins", None)
    return bins is not None and (bins.placement == "quantile" or (bins.gripper == "auto" and bool(spec.gripper)))


def _stats(given: Mapping[str, Any], white: float) -> Stats:
    """LeRobot's entries as one number per dimension or channel; an image's percentiles, which nothing uses, may be missing."""
    rows = {name: np.asarray(given[name], float).ravel() for name in NUMBERS if name in given}
    numbers = {"q01": rows.get("min"), "q99": rows.get("max"), **rows}
    return Stats(
        **{name: tuple((item * white).tolist()) for name, item in numbers.items() if item is not None},
        count=int(np.asarray(given["count"]).ravel()[0]),
    )
