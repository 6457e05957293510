"""The loss on episodes that training never sees."""

from __future__ import annotations

import math

import numpy as np
import torch

from ..data import EpisodeStore
from ..data.windows import Windows
from ..policies.base import Policy
from ..spec import KinoiseError
from .order import HELD_OUT, VALIDATION, generator, numbers
from .parallel import Spread
from .processes import Processes

WINDOWS = 2048


def split(store: EpisodeStore, share: float, seed: int) -> tuple[list[int], list[int]]:
    """The episodes to learn from and those held out, drawn by `seed`; at least one of each when `share` is above 0.

    Raises KinoiseError when a single episode would have to be both.
    """
    episodes = len(store.ends)
    if share == 0:
        return list(range(episodes)), []
    if episodes < 2:
        raise KinoiseError(f"train.validation={share} holds episodes out, but {store.path} has only one: leave it 0")
    count = min(max(1, round(share * episodes)), episodes - 1)
    chosen = set(numbers(seed, HELD_OUT).permutation(episodes)[:count].tolist())
    return [item for item in range(episodes) if item not in chosen], sorted(chosen)


class Validation:
    """The mean loss over the same windows with the same noise every time, so that the curve shows the weights and nothing else.

    At most `WINDOWS` windows, evenly spread over the held-out episodes, in batches that several processes share out.
    """

    def __init__(self, windows: Windows, batch_size: int, seed: int) -> None:
        self._windows, self._seed = windows, seed
        chosen = np.unique(np.linspace(0, len(windows) - 1, min(WINDOWS, len(windows))).astype(np.int64))
        self._batches = np.array_split(chosen, math.ceil(len(chosen) / batch_size))

    @torch.no_grad()
    def loss(self, policy: Policy, spread: Spread | None = None, processes: Processes | None = None) -> float:
        """The denoising loss per window, without auxiliary terms, in eval mode; the policy comes back in training mode.

        Args:
            spread: how several processes have the policy.
            processes: they, all of which call this and get the same number.
        """
        processes = processes or Processes()
        policy.eval()
        total = torch.zeros((), dtype=torch.float64)
        for first in range(0, len(self._batches), processes.count):
            # In the last round some have no batch left. Shared weights are gathered by all or none: they repeat the last.
            mine = first + processes.rank
            index = min(mine, len(self._batches) - 1)
            batch, gen = self._windows.batch(self._batches[index]), generator(self._seed, VALIDATION, index)
            per_sample = policy.loss(batch, gen).per_sample if spread is None else spread.bare(batch, gen)[2]
            if mine == index:
                total += per_sample.sum().double().cpu()
        policy.train()
        return float(processes.total(total)) / sum(map(len, self._batches))
