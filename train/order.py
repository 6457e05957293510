"""Which windows an update sees and which noise each of them gets: functions of (seed, update) alone.

Nothing here has a state that a checkpoint would have to carry, so a resumed run sees what the killed one would have seen. Nor
does it matter who computes: however many processes and parts share a batch, its windows are the same and have the same noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int64

from ..data.mixture.store import Mixture
from ..data.windows import Windows
from ..policies.core.random import Gen, Stretch
from ..spec import KinoiseError

ORDER, NOISE, HELD_OUT, VALIDATION = range(4)
CYCLE = 10_000
"""The longest cycle in which shares are exact."""


def numbers(seed: int, stream: int, *key: int) -> np.random.Generator:
    """An independent numpy generator for every key."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream, *key)))


def generator(seed: int, stream: int, *key: int) -> torch.Generator:
    """An independent torch generator (CPU) for every key."""
    state = np.random.SeedSequence(seed, spawn_key=(stream, *key)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


class Order:
    """Endless epochs, each a permutation of its own; an update takes the next `batch_size` windows, across epochs if need be.

    A batch is cut into `processes` times `parts` stretches, which differ by one window at most.

    Args:
        windows: how many there are.
        batch_size: windows in an update, over all processes; at least one for each stretch.
        rank, processes: this process sees the rank-th of `processes` shares of every batch.
        parts: stretches of such a share, which are computed one after the other.
    """

    def __init__(self, windows: int, batch_size: int, seed: int, rank: int = 0, processes: int = 1, parts: int = 1) -> None:
        self.windows, self.batch_size, self.seed = windows, batch_size, seed
        self.first, self.parts, self.stretches = rank * parts, parts, processes * parts
        self._epoch = lru_cache(2)(self._permutation)

    def indices(self, step: int, part: int = 0) -> Int64[np.ndarray, "batch"]:
        """The windows of update `step`, counted from 0, in one part of this process's share."""
        return _taken(self._places(step, part), self.windows, self._epoch)

    def noise(self, step: int, part: int = 0) -> Gen:
        """All that is random about those windows: for a part, what it would be were the whole batch computed at once."""
        gen, stretch = generator(self.seed, NOISE, step, 0), self._stretch(part)
        return gen if self.stretches == 1 else Stretch(gen, stretch, self.batch_size)

    def _stretch(self, part: int) -> range:
        """Of a batch."""
        index = self.first + part
        return range(index * self.batch_size // self.stretches, (index + 1) * self.batch_size // self.stretches)

    def _places(self, step: int, part: int) -> Int64[np.ndarray, "batch"]:
        """Of all batches laid end to end."""
        stretch = self._stretch(part)
        return step * self.batch_size + np.arange(stretch.start, stretch.stop)

    def _permutation(self, epoch: int) -> Int64[np.ndarray, "windows"]:
        return numbers(self.seed, ORDER, epoch).permutation(self.windows)


class MixedOrder(Order):
    """Several groups of windows, each in endless epochs of its own, in fixed proportions.

    The places of all batches, laid end to end, are dealt to the groups in cycles: with weights 3 and 1, three of four places
    are the first group's, in every cycle of four. Within a cycle a group's places are spread evenly: any batch is less than two
    places away from each group's share. A small group with a large weight is seen more often, a large one with a small weight
    less, and nothing of either is left out or repeated before its epoch ends.

    Args:
        groups: the windows of each, at least one.
        weights: of each, above 0.
    """

    def __init__(
        self,
        groups: Sequence[Int64[np.ndarray, "_"]],
        weights: Sequence[float],
        batch_size: int,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        parts: int = 1,
    ) -> None:
        super().__init__(sum(map(len, groups)), batch_size, seed, rank, processes, parts)
        self.groups, self.quotas = groups, quotas(weights)
        self._cycle, self._before = _dealt(self.quotas)
        self._epochs = lru_cache(2 * len(groups))(self._shuffled)

    def indices(self, step: int, part: int = 0) -> Int64[np.ndarray, "batch"]:
        cycles, places = np.divmod(self._places(step, part), len(self._cycle))
        owner = self._cycle[places]
        # How many places a group was dealt before each of its own, since the first update.
        turns = cycles * self.quotas[owner] + self._before[places]
        result = np.empty(len(owner), np.int64)
        for index, group in enumerate(self.groups):
            mine = owner == index
            if mine.any():
                result[mine] = _taken(turns[mine], len(group), lambda epoch, index=index: self._epochs(index, epoch))
        return result

    def _shuffled(self, index: int, epoch: int) -> Int64[np.ndarray, "_"]:
        return self.groups[index][numbers(self.seed, ORDER, epoch, index).permutation(len(self.groups[index]))]


def make_order(windows: Windows, batch_size: int, seed: int, rank: int = 0, processes: int = 1, parts: int = 1) -> Order:
    """The order of a store's windows: by its weights, where it is a mixture that has them.

    Raises KinoiseError when a member has a weight and no window, since all its episodes are held out.
    """
    store = windows.store
    if not isinstance(store, Mixture) or store.weights is None:
        return Order(len(windows), batch_size, seed, rank, processes, parts)
    groups = windows.groups(store.member)
    empty = [name for name, group in zip(store.names, groups, strict=True) if not len(group)]
    if empty:
        raise KinoiseError(
            f"{store.path}: every episode of {', '.join(empty)} is held out by train.validation, so nothing of it is left to "
            f"learn from. Take a smaller share, or another seed."
        )
    return MixedOrder(groups, store.weights, batch_size, seed, rank, processes, parts)


def quotas(weights: Sequence[float]) -> Int64[np.ndarray, "groups"]:
    """Places in a cycle for each weight: the smallest whole numbers in the same proportions as the weights' decimals.

    A cycle has at most `CYCLE` places; proportions that need more are rounded to that many, at least one for each.
    """
    parts = [Fraction(str(weight)) for weight in weights]
    whole = [int(part * math.lcm(*(part.denominator for part in parts))) for part in parts]
    whole = [item // math.gcd(*whole) for item in whole]
    if sum(whole) <= CYCLE:
        return np.array(whole, np.int64)
    exact = [Fraction(item * CYCLE, sum(whole)) for item in whole]
    return np.array([max(1, round(item)) for item in exact], np.int64)


def _dealt(quotas: Int64[np.ndarray, "groups"]) -> tuple[Int64[np.ndarray, "places"], Int64[np.ndarray, "places"]]:
    """For each place of a cycle whose it is, and how many the same group has before it.

    No beginning of a cycle is a whole place away from any group's share, which is always possible (Tijdeman 1980, The chairman
    assignment problem): a group's nth turn comes where its share of the places begins to exceed n - 1, and of those that may
    come, the one goes first whose share will be n the soonest. Any stretch of places is then less than two away.
    """
    places = int(quotas.sum())
    owner, before, dealt = np.empty(places, np.int64), np.empty(places, np.int64), np.zeros(len(quotas), np.int64)
    for place in range(places):
        due = np.where(dealt * places < quotas * (place + 1), (dealt + 1) / quotas, np.inf)
        chosen = int(due.argmin())
        owner[place], before[place] = chosen, dealt[chosen]
        dealt[chosen] += 1
    return owner, before


def _taken(
    places: Int64[np.ndarray, "batch"], windows: int, epoch: Callable[[int], Int64[np.ndarray, "windows"]]
) -> Int64[np.ndarray, "batch"]:
    """What lies at these places, one after the other, of the epochs laid end to end."""
    epochs, within = np.divmod(places, windows)
    return np.concatenate([epoch(n)[within[epochs == n]] for n in range(int(epochs[0]), int(epochs[-1]) + 1)])
