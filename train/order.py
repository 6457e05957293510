"""Which windows an update sees and which noise it draws: functions of (seed, update) alone.

Nothing here has a state that a checkpoint would have to carry, so a resumed run sees what the killed one would have seen.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int64

ORDER, NOISE, HELD_OUT, VALIDATION = range(4)


def numbers(seed: int, stream: int, *key: int) -> np.random.Generator:
    """An independent numpy generator for every key."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream, *key)))


def generator(seed: int, stream: int, *key: int) -> torch.Generator:
    """An independent torch generator (CPU) for every key."""
    state = np.random.SeedSequence(seed, spawn_key=(stream, *key)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


class Order:
    """Endless epochs, each a permutation of its own; an update takes the next `batch_size` windows, across epochs if need be.

    Args:
        windows: how many there are.
        batch_size: windows in an update, over all processes; a multiple of `processes`.
        rank, processes: this process sees the rank-th of `processes` equal parts of every batch.
    """

    def __init__(self, windows: int, batch_size: int, seed: int, rank: int = 0, processes: int = 1) -> None:
        self.windows, self.batch_size, self.seed = windows, batch_size, seed
        self.rank, self.share = rank, batch_size // processes
        self._epoch = lru_cache(2)(self._permutation)

    def indices(self, step: int) -> Int64[np.ndarray, "batch"]:
        """The windows of update `step`, counted from 0."""
        first = step * self.batch_size + self.rank * self.share
        epochs, places = np.divmod(np.arange(first, first + self.share), self.windows)
        return np.concatenate([self._epoch(n)[places[epochs == n]] for n in range(int(epochs[0]), int(epochs[-1]) + 1)])

    def noise(self, step: int) -> torch.Generator:
        """Everything random in update `step` comes from this."""
        return generator(self.seed, NOISE, step, self.rank)

    def _permutation(self, epoch: int) -> Int64[np.ndarray, "windows"]:
        return numbers(self.seed, ORDER, epoch).permutation(self.windows)
