"""Statistics of demonstrations in one streaming pass: what a codec normalises with and what `kinoise inspect` shows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

import numpy as np
from jaxtyping import Float64, Int64, UInt8
from PIL import Image

from ..spec import Feature, KinoiseError, Stats
from .base import ACTION, EpisodeStore, features, starts

BLOCK_BYTES = 2**24
EXACT_BYTES = 2**28
PERCENTILES = (0.01, 0.99)
QUANTILES = 257


def statistics(
    store: EpisodeStore,
    *,
    keys: Collection[str] | None = None,
    gen: np.random.Generator | None = None,
    exact_bytes: int = EXACT_BYTES,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Stats]:
    """Statistics of every key over all steps, in physical units; images per channel, in [0, 255].

    Each array is read once, in blocks. Mean, standard deviation (of the population), minimum and maximum are exact, summed in
    float64; a constant dimension has exactly that mean and a deviation of exactly 0. Percentiles interpolate as numpy's do and
    are exact for images (from their histogram) and for states of up to `exact_bytes`; above that they are those of as many
    steps as fit, drawn uniformly without replacement by `gen` (default: seed 0).

    Args:
        keys: the features wanted; all of them when None.
        advance: called with the number of rows after each block, for a progress bar.

    Raises:
        KinoiseError: NaN or infinity, with its key, episode and step.
    """
    gen = gen or np.random.default_rng(0)
    result = {}
    for key, feature in features(store.spec).items():
        if keys is not None and key not in keys:
            continue
        if feature.kind == "image":
            counts = ImageCounts(feature.shape[-1])
            for _, block in blocks(store, key, advance):
                counts.add(block)
            result[key] = counts.stats()
        else:
            result[key] = _state_statistics(store, key, feature, gen, exact_bytes, advance)
    return result


def blocks(store: EpisodeStore, key: str, advance: Callable[[int], None] | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """(first step, array of the steps from there) over the whole store, some 16 MiB at a time."""
    rows, steps = block_rows(features(store.spec)[key]), int(store.ends[-1])
    for start in range(0, steps, rows):
        stop = min(start + rows, steps)
        yield start, store.read(key, start, stop)
        if advance is not None:
            advance(stop - start)


def block_rows(feature: Feature) -> int:
    """How many steps of a feature are read at a time."""
    return max(1, BLOCK_BYTES // (feature.dtype.itemsize * int(np.prod(feature.shape))))


class ImageCounts:
    """How often each value, from 0 to 255, came in each channel of a camera's frames: their statistics are exact from that."""

    def __init__(self, channels: int) -> None:
        self.counts, self.steps = np.zeros((channels, 256), np.int64), 0

    def add(self, frames: UInt8[np.ndarray, "steps height width channels"]) -> None:
        self.steps += len(frames)
        # Pillow counts bytes ten times as fast as np.bincount, which makes 64-bit numbers of them first.
        tall = np.ascontiguousarray(frames).reshape(-1, *frames.shape[2:])
        self.counts += np.array(Image.fromarray(tall).histogram(), np.int64).reshape(self.counts.shape)

    def merge(self, other: ImageCounts) -> None:
        self.counts, self.steps = self.counts + other.counts, self.steps + other.steps

    def stats(self) -> Stats:
        values, total = np.arange(256.0), int(self.counts[0].sum())
        mean = self.counts @ values / total
        std = np.sqrt((self.counts * (values - mean[:, None]) ** 2).sum(1) / total)
        return _stats(
            mean, std, *(_percentile(self.counts, share, total) for share in (0.0, 1.0, *PERCENTILES)), count=self.steps
        )


def _state_statistics(
    store: EpisodeStore,
    key: str,
    feature: Feature,
    gen: np.random.Generator,
    exact_bytes: int,
    advance: Callable[[int], None] | None,
) -> Stats:
    steps, dims = int(store.ends[-1]), int(np.prod(feature.shape))
    fits = max(1, exact_bytes // (feature.dtype.itemsize * dims))
    kept = np.arange(steps) if steps <= fits else np.sort(gen.choice(steps, fits, replace=False, shuffle=False))
    sample = np.empty((len(kept), dims), feature.dtype)
    low, high = np.full(dims, np.inf), np.full(dims, -np.inf)
    mean, squares = np.zeros(dims), np.zeros(dims)
    for start, block in blocks(store, key, advance):
        rows = block.reshape(-1, dims)
        _check_finite(store, key, start, rows)
        first, last = np.searchsorted(kept, [start, start + len(rows)])
        sample[first:last] = rows[kept[first:last] - start]
        low, high = np.minimum(low, rows.min(0)), np.maximum(high, rows.max(0))
        # Chan, Golub & LeVeque (1979), eq. 2.1: the sums of two parts joined. Float64 adds a block of equal float32 numbers
        # without rounding, so a constant dimension gives its own value as mean, and no gap.
        block_mean = rows.mean(0, dtype=np.float64)
        gap, weight = block_mean - mean, len(rows) / (start + len(rows))
        mean = mean + gap * weight
        squares = squares + ((rows - block_mean) ** 2).sum(0) + gap**2 * start * weight
    asked = [*PERCENTILES, *(np.linspace(0, 1, QUANTILES) if key == ACTION else ())]
    q01, q99, *quantiles = np.quantile(sample, asked, axis=0, overwrite_input=True)
    found = _stats(mean, np.sqrt(squares / steps), low, high, q01, q99, steps)
    return replace(found, quantiles=tuple(tuple(column) for column in np.transpose(quantiles).tolist()))


def _check_finite(store: EpisodeStore, key: str, start: int, rows: np.ndarray) -> None:
    finite = np.isfinite(rows)
    if finite.all():
        return
    row, dim = (int(item) for item in np.argwhere(~finite)[0])
    episode = int(np.searchsorted(store.ends, start + row, side="right"))
    step = start + row - int(starts(store.ends)[episode])
    raise KinoiseError(
        f"{store.path}: '{key}' is {rows[row, dim]} in episode {store.original[episode]} at step {step}, dimension {dim}. "
        f"Repair or remove the episode. All that are bad are listed by: kinoise inspect {store.path}"
    )


def _percentile(counts: Int64[np.ndarray, "channels values"], share: float, total: int) -> Float64[np.ndarray, "channels"]:
    """numpy's linear interpolation between the two order statistics around `share`, from a histogram."""
    below, part = divmod(share * (total - 1), 1)
    reached = counts.cumsum(1)
    left, right = ((reached > rank).argmax(1) for rank in (below, min(below + 1, total - 1)))
    return left + (right - left) * part


def _stats(
    mean: np.ndarray, std: np.ndarray, low: np.ndarray, high: np.ndarray, q01: np.ndarray, q99: np.ndarray, count: int
) -> Stats:
    numbers = (tuple(map(float, item)) for item in (mean, std, low, high, q01, q99))
    return Stats(*numbers, count=count)
