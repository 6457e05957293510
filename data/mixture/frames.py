"""Frames: the numbers of one robot in those of another, dimension by dimension.

A policy has one codec. Where robots' numbers differ (other units, ranges, zero positions), the data sets are laid over each
other before it sees them: what one robot does at its 1st to 99th percentile goes where the first robot's lie.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from ...spec import Stats

RESOLUTION = 1e-6
"""A dimension whose range is below this, in units of its own size or of 1, is constant (as for the policies' codecs)."""


@dataclass(frozen=True)
class Frame:
    """x' = (x - centre) * scale + origin, in each dimension; `scale` is above 0.

    Args:
        centre: in the numbers of the robot.
        scale: what one of its units is in the first robot's.
        origin: where `centre` goes, in the first robot's numbers.
    """

    centre: Float64[np.ndarray, "d"]
    scale: Float64[np.ndarray, "d"]
    origin: Float64[np.ndarray, "d"]

    def apply(self, values: np.ndarray) -> np.ndarray:
        """The robot's float32 values `[..., *shape]` in the first one's numbers, a fresh array. The differences are taken
        before anything is scaled, so that numbers far from 0 lose nothing."""
        rows = values.reshape(-1, len(self.centre))
        moved = (rows - self.centre) * self.scale + self.origin
        return moved.astype(np.float32).reshape(values.shape)

    def undone(self, stats: Stats) -> Stats:
        """Statistics in the first robot's numbers as they are in the robot's own. A codec that is fitted to them is the first
        one's after `apply`, in every mode: percentiles, extremes, means and deviations all move along."""
        one, zero = 1 / self.scale, self.centre - self.origin / self.scale

        def back(values: Sequence[float]) -> tuple[float, ...]:
            return tuple((np.array(values) * one + zero).tolist())

        quantiles = np.array(stats.quantiles)
        if stats.quantiles:
            quantiles = quantiles * one[:, None] + zero[:, None]
        return replace(
            stats,
            **{name: back(getattr(stats, name)) for name in ("mean", "min", "max", "q01", "q99")},
            std=tuple((np.array(stats.std) * one).tolist()),
            quantiles=tuple(tuple(row) for row in quantiles.tolist()),
        )


def fit_frames(stats: Sequence[Stats], kept: Collection[int] = ()) -> list[Frame | None]:
    """The frame of each robot for one feature; None, no change, for the first.

    The 1st and 99th percentiles go where those of the first robot lie. Where these coincide for one that moves (a value that
    is rarely left), the extremes of all take their place. A dimension that a robot never moves has no width to go by: its
    constant goes to the middle of the first robot's range, unscaled. One that the first never moves is measured by the first
    robot that does.

    Args:
        stats: of each robot, in its own numbers.
        kept: dimensions that mean the same for all robots and stay as they are.
    """
    least, most = _table(stats, "min"), _table(stats, "max")
    constant = most - least <= RESOLUTION * np.maximum(np.maximum(abs(least), abs(most)), 1)
    low, high = _table(stats, "q01"), _table(stats, "q99")
    flat = np.any(~constant & (high - low <= RESOLUTION * (most - least)), axis=0)
    low, high = np.where(flat, least, low), np.where(flat, most, high)
    width, centre = np.where(constant, 0, high - low), (low + high) / 2
    measure = width[(width > 0).argmax(0), np.arange(width.shape[1])]
    scale = np.where(width > 0, measure / np.where(width > 0, width, 1), 1)
    scale[:, list(kept)], centre[:, list(kept)] = 1, 0
    return [None, *(Frame(centre[robot], scale[robot], centre[0]) for robot in range(1, len(stats)))]


def _table(stats: Sequence[Stats], name: str) -> Float64[np.ndarray, "robots d"]:
    return np.array([getattr(item, name) for item in stats], np.float64)
