"""Numbers that stand out from the rest of their dimension: far values, sudden jumps, dimensions that hardly ever change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...spec import Stats
from ..base import EpisodeStore, starts
from ..stats import blocks
from .sample import Sample

BINS = 40
FAR, SUDDEN, LEAP = 10.0, 10.0, 0.25
FEW_VALUES, FEWEST = 10, 20
RARE = 1e-3
ROUNDING = 1e-6
"""Share of a dimension's size below which its changes are those of float32's last digits."""
NAMES = 12


class Worst(NamedTuple):
    """Where a dimension stands out most, and how often it does."""

    steps: int
    size: float
    step: int
    value: float


def scan(
    store: EpisodeStore,
    key: str,
    stats: Stats,
    sample: Sample,
    numbers: Sequence[int],
    names: Sequence[str],
    turns: Sequence[Mapping[str, Any]] = (),
    advance: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """A histogram of every dimension, the steps whose value lies far out, and those that a sudden jump leads to.

    A value lies far out when it is more than 10 spreads from the median; a jump is sudden when it is more than 10 times as
    large as 99 of 100 changes from step to step and more than a quarter of the dimension's spread. The spread is the
    interquartile range or, where that is more, a quarter of the distance between the 1st and the 99th percentile. Dimensions
    with ten values or fewer (switches) have no such steps, nor those whose spread or usual change is but rounding: nothing is a
    multiple of that.

    Args:
        sample: from which medians and spreads come.
        numbers: how the result calls the episodes.
        turns: the key's rotations (see `rotations`): q and -q are the same one, and angles a whole turn apart.
    """
    dims, low, width = len(stats.min), np.array(stats.min), np.array(stats.max) - np.array(stats.min)
    known = sample.arrays[key]
    middle, spread = np.median(known, 0), _spread(known)
    usual = np.quantile(_change(known, known[:1], turns)[np.append(True, sample.within[:-1])], 0.99, axis=0)
    many = np.array([len(np.unique(column)) > FEW_VALUES for column in known.T]) & (len(known) >= FEWEST)
    rounding = ROUNDING * np.maximum(np.abs(stats.min), np.abs(stats.max))
    far = np.where(many & (spread > rounding), FAR * spread, np.inf)
    sudden = np.where(many & (usual > rounding), np.maximum(SUDDEN * usual, LEAP * spread), np.inf)
    counts = np.zeros((dims, BINS), np.int64)
    outliers, jumps = [Worst(0, 0.0, 0, 0.0)] * dims, [Worst(0, 0.0, 0, 0.0)] * dims
    first = np.zeros(int(store.ends[-1]), bool)
    first[starts(store.ends)] = True
    before = store.read(key, 0, 1).reshape(1, dims).astype(np.float64)
    for start, block in blocks(store, key, advance):
        rows = block.reshape(-1, dims).astype(np.float64)
        share = np.divide(rows - low, width, out=np.zeros_like(rows), where=width > 0)
        place = (share * BINS).astype(np.int64).clip(0, BINS - 1) + np.arange(dims) * BINS
        counts += np.bincount(place.ravel(), minlength=dims * BINS).reshape(dims, BINS)
        outliers = _join(outliers, np.abs(rows - middle), far, rows, start)
        change = _change(rows, before, turns)
        change[first[start : start + len(rows)]] = 0
        jumps = _join(jumps, change, sudden, rows, start)
        before = rows[-1:]
    return {
        "histogram": counts.tolist(),
        "outliers": _listed(outliers, store.ends, numbers, names, middle, np.where(spread > 0, spread, 1)),
        "jumps": _listed(jumps, store.ends, numbers, names, middle, np.where(usual > 0, usual, 1)),
        "nearly_constant": [
            name
            for name, a, b, c, d in zip(names, stats.min, stats.q01, stats.q99, stats.max, strict=True)
            if a < d and c - b <= ROUNDING * max(abs(a), abs(d))
        ],
    }


def anomaly_problems(keys: Mapping[str, Mapping[str, Any]], steps: int, called: Callable[[int], str]) -> list[str]:
    """What `scan` found, a line for each key and kind. Many far values are a mode of the data, not mistakes: no problem.

    Args:
        called: how messages call an episode, given its number in `scan`'s result.
    """
    problems = []
    for key, found in keys.items():
        if found["nearly_constant"]:
            problems.append(
                f"'{key}': dimensions that hardly ever change: {shortened(found['nearly_constant'])}; "
                f"normalised, the few other values are huge"
            )
        rare = [item for item in found["outliers"] if item["steps"] <= max(2, RARE * steps)]
        if rare:
            worst = max(rare, key=lambda item: item["size"])
            problems.append(
                f"'{key}': values far from all others in {shortened([item['name'] for item in rare])}: the worst is "
                f"{worst['value']:.4g}{_which(worst, rare)}, {called(worst['episode'])} at step {worst['step']}, "
                f"{worst['size']:.0f} spreads from the median {worst['median']:.4g}"
            )
        rare = [item for item in found["jumps"] if item["steps"] <= max(2, RARE * steps)]
        if rare:
            worst = max(rare, key=lambda item: item["size"])
            problems.append(
                f"'{key}': sudden jumps in {shortened([item['name'] for item in rare])}: "
                f"{sum(item['steps'] for item in rare)}, the largest to {worst['value']:.4g}{_which(worst, rare)}, "
                f"{called(worst['episode'])} at step {worst['step']}, "
                f"{worst['size']:.0f} times its usual largest change"
            )
    return problems


def _which(worst: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> str:
    """The dimension of the worst of what was found, where more than one was named before."""
    return f" in '{worst['name']}'" if len(found) > 1 else ""


def shortened(names: Sequence[str]) -> str:
    """The first names of a list that may be long."""
    more = len(names) - NAMES
    return ", ".join(names[:NAMES]) + (f" and {more} more" if more > 0 else "")


def _change(rows: np.ndarray, before: np.ndarray, turns: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """How far each dimension moved since the step before, of rotations the short way round."""
    previous = np.concatenate([before, rows[:-1]])
    change = np.abs(rows - previous)
    for turn in turns:
        dims = turn["dims"]
        if turn["kind"] == "unit quaternion":
            other = rows[:, dims] + previous[:, dims]
            shorter = (other**2).sum(1) < (change[:, dims] ** 2).sum(1)
            change[:, dims] = np.where(shorter[:, None], np.abs(other), change[:, dims])
        elif "angles" in turn["kind"] or turn["kind"] == "rotation vector":
            change[:, dims] = np.minimum(change[:, dims], np.abs(2 * np.pi - change[:, dims]))
    return change


def _spread(sample: np.ndarray) -> np.ndarray:
    low, first, third, high = np.quantile(sample, (0.01, 0.25, 0.75, 0.99), axis=0)
    return np.maximum(third - first, (high - low) / 4)


def _join(worst: list[Worst], size: np.ndarray, limit: np.ndarray, rows: np.ndarray, start: int) -> list[Worst]:
    counts, steps = (size > limit).sum(0), size.argmax(0)
    result = []
    for dim, item in enumerate(worst):
        step = int(steps[dim])
        if counts[dim] and size[step, dim] > item.size:
            result.append(Worst(item.steps + int(counts[dim]), float(size[step, dim]), start + step, float(rows[step, dim])))
        else:
            result.append(item._replace(steps=item.steps + int(counts[dim])))
    return result


def _listed(
    worst: list[Worst], ends: np.ndarray, numbers: Sequence[int], names: Sequence[str], middle: np.ndarray, unit: np.ndarray
) -> list[dict[str, Any]]:
    first, result = starts(ends), []
    for dim, item in enumerate(worst):
        if not item.steps:
            continue
        episode = int(ends.searchsorted(item.step, side="right"))
        result.append(
            {
                "name": names[dim],
                "steps": item.steps,
                "episode": int(numbers[episode]),
                "step": item.step - int(first[episode]),
                "value": item.value,
                "median": float(middle[dim]),
                "size": item.size / float(unit[dim]),
            }
        )
    return result
