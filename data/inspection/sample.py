"""Whole episodes of a store, few enough to look at all at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from ..base import EpisodeStore, features, starts

SAMPLE_BYTES = 2**27
SAME = 1e-3
"""Share of the range by which two recordings of one episode differ at most."""


class Sample(NamedTuple):
    """Whole episodes of a store, laid end to end: what guesses are made from."""

    arrays: dict[str, Float64[np.ndarray, "steps d"]]
    ends: Int64[np.ndarray, "episodes"]

    @property
    def within(self) -> Bool[np.ndarray, "steps"]:
        """Whether the step after this one belongs to the same episode; false at the sample's end."""
        result = np.ones(int(self.ends[-1]), bool)
        result[self.ends - 1] = False
        return result


def sampled(store: EpisodeStore, keys: Sequence[str], most: int = 20_000) -> Sample:
    """Episodes evenly spread over the store, of at most `most` steps and 128 MiB together, but at least one."""
    most = min(most, SAMPLE_BYTES // (8 * sum(int(np.prod(features(store.spec)[key].shape)) for key in keys)))
    lengths = np.diff(store.ends, prepend=0)
    share = min(1.0, most / int(store.ends[-1]))
    chosen = np.unique(np.linspace(0, len(lengths) - 1, max(1, int(len(lengths) * share))).round().astype(np.int64))
    chosen = chosen[: max(1, int(np.searchsorted(np.cumsum(lengths[chosen]), most, side="right")))]
    first, last = starts(store.ends)[chosen], store.ends[chosen]
    arrays = {}
    for key in keys:
        parts = [store.read(key, int(a), int(b)) for a, b in zip(first, last, strict=True)]
        rows = np.concatenate(parts)
        arrays[key] = rows.reshape(len(rows), -1).astype(np.float64)
    return Sample(arrays, np.cumsum(lengths[chosen]))


def distinct(
    action: Float64[np.ndarray, "steps a"], states: Float64[np.ndarray, "steps s"], ends: Int64[np.ndarray, "episodes"]
) -> tuple[Float64[np.ndarray, "kept a"], Float64[np.ndarray, "kept s"], Int64[np.ndarray, "some"]]:
    """Actions, states and ends without the episodes that repeat an earlier one."""
    rows = np.concatenate([action, states], 1)
    tolerance = SAME * np.ptp(rows, 0)
    first, lengths = np.concatenate([[0], ends[:-1]]), np.diff(ends, prepend=0)
    kept: dict[int, list[int]] = {}
    whole = np.ones(len(rows), bool)
    for start, steps in zip(first.tolist(), lengths.tolist(), strict=True):
        others = np.array(kept.setdefault(steps, []), np.int64)
        # The first and last steps rule out nearly all.
        for step in (0, steps - 1):
            others = others[(np.abs(rows[others + step] - rows[start + step]) <= tolerance).all(1)]
        mine = rows[start : start + steps]
        if any((np.abs(rows[other : other + steps] - mine) <= tolerance).all() for other in others):
            whole[start : start + steps] = False
        else:
            kept[steps].append(start)
    return action[whole], states[whole], np.cumsum(lengths[whole[first]])
