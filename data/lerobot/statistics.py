"""Statistics as LeRobot stores them: of each episode, and of all as their weighted means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
SAMPLED, SIDE = 256, 256
"""Images of an episode that its statistics are of, at most, evenly spaced; and from about twice this side on, only every other
pixel of them, and so on."""
Statistics = dict[str, np.ndarray]
"""min, max, mean, std, count and the quantiles: one number per dimension (the last axis), per channel `[3, 1, 1]` in [0, 1] for
images; `count` has one number, the steps that went in."""


def episode_statistics(array: np.ndarray, image: bool) -> Statistics:
    """Of an episode's array, `[steps, *shape]`."""
    return _of_images(array) if image else _of_numbers(array)


def _of_numbers(array: np.ndarray) -> Statistics:
    # A number a step is a dimension of one, as LeRobot declares it.
    rows = array.reshape(-1, array.shape[-1] if array.ndim > 1 else 1)
    steps = len(array)
    if not np.isfinite(rows).all():  # extras may be; JSON can't hold what would become of it
        rows = rows[np.isfinite(rows).all(1)]
        steps = len(rows)
        rows = rows if steps else np.zeros((1, rows.shape[1]), rows.dtype)
    exact = rows.astype(np.float64)
    quantiles = np.quantile(exact, list(QUANTILES.values()), axis=0)
    rows = exact if rows.dtype == np.uint64 else rows  # whose largest no column of the table could hold
    return {
        "min": rows.min(0),
        "max": rows.max(0),
        "mean": exact.mean(0),
        "std": exact.std(0),
        "count": np.array([steps]),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


def _of_images(array: np.ndarray) -> Statistics:
    chosen = np.unique(np.linspace(0, len(array) - 1, min(len(array), SAMPLED)).round().astype(int))
    counts = np.zeros((3, 256), np.int64)
    stride = max(1, max(array.shape[1:3]) // SIDE)
    for index in chosen:
        for channel in range(3):
            counts[channel] += np.bincount(array[index, ::stride, ::stride, channel].ravel(), minlength=256)
    levels = np.arange(256) / 255
    total = counts[0].sum()
    mean = counts @ levels / total
    std = np.sqrt((counts * (levels - mean[:, None]) ** 2).sum(1) / total)
    reached = counts.cumsum(1)

    def at(share: float) -> np.ndarray:
        # The level of the pixel of that rank: levels are 256, so none lies between two of them.
        return levels[(reached > share * (total - 1)).argmax(1)]

    found = {"min": at(0.0), "max": at(1.0), "mean": mean, "std": std, **{name: at(share) for name, share in QUANTILES.items()}}
    return {**{name: value.reshape(3, 1, 1) for name, value in found.items()}, "count": np.array([len(chosen)])}


def joined(before: Mapping[str, Statistics] | None, after: Mapping[str, Statistics]) -> dict[str, Statistics]:
    """The statistics of two parts. Quantiles become means weighted by `count`, as LeRobot's do, not those of the whole."""
    if before is None:
        return dict(after)
    return {name: _joined(before[name], after[name]) for name in after}


def _joined(a: Statistics, b: Statistics) -> Statistics:
    if not a["count"][0] or not b["count"][0]:
        return a if a["count"][0] else b
    count = a["count"] + b["count"]
    share = float(b["count"][0] / count[0])
    gap = b["mean"] - a["mean"]
    variance = a["std"] ** 2 * (1 - share) + b["std"] ** 2 * share + gap**2 * share * (1 - share)
    result = {name: a[name] + (b[name] - a[name]) * share for name in ("mean", *QUANTILES)}
    return {
        **result,
        "min": np.minimum(a["min"], b["min"]),
        "max": np.maximum(a["max"], b["max"]),
        "std": np.sqrt(variance),
        "count": count,
    }


def as_json(statistics: Mapping[str, Statistics]) -> dict[str, dict[str, Any]]:
    """For `stats.json` and the columns of the table of episodes."""
    return {name: {kind: value.tolist() for kind, value in item.items()} for name, item in statistics.items()}
