"""The base of formats whose files have to be decoded, an episode at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from ..spec import Spec, Stats
from .base import ACTION, Extra, check_indices, check_span, features, starts
from .stats import statistics


class DecodedStore(ABC):
    """An EpisodeStore over `decode`. Reading at random costs an episode a look: `cache.mapped` makes a fast store of it.

    A subclass's `__init__` sets the attributes of an EpisodeStore, from metadata alone.
    """

    format: str
    path: Path
    spec: Spec
    ends: Int64[np.ndarray, "episodes"]
    texts: tuple[str, ...]
    text: Int64[np.ndarray, "episodes"]
    info: list[dict[str, Any]]
    extras: dict[str, Extra]
    meta: dict[str, Any]
    dropped: tuple[str, ...]
    lost: int = 0
    _last: tuple[int, str, np.ndarray] | None = None
    _stats: dict[str, Stats] | None = None

    @abstractmethod
    def decode(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """The arrays `keys` (features or extras) of an episode, `[steps, *shape]` in the dtypes that the spec and `extras` say.

        Raises KinoiseError naming file, episode and field when they can't be read, or aren't as long as `ends` says.
        """

    def __getstate__(self) -> dict[str, Any]:
        """To another process goes none of what was decoded."""
        return {**self.__dict__, "_last": None}

    @property
    def original(self) -> Int64[np.ndarray, "episodes"]:
        return np.arange(len(self.ends))

    @property
    def keys(self) -> tuple[str, ...]:
        return (*self.spec.observations, ACTION)

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        check_span(start, stop, int(self.ends[-1]))
        first = starts(self.ends)
        chosen = range(int(self.ends.searchsorted(start, side="right")), int(self.ends.searchsorted(stop, side="left")) + 1)
        if start == stop:
            return np.empty((0, *self._shape(key)), self._dtype(key))
        parts = [self._episode(index, key)[max(start - int(first[index]), 0) : stop - int(first[index])] for index in chosen]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def gather(self, key: str, indices: Int64[np.ndarray, "..."]) -> np.ndarray:
        check_indices(indices, int(self.ends[-1]))
        flat, first = indices.ravel(), starts(self.ends)
        result = np.empty((flat.size, *self._shape(key)), self._dtype(key))
        owner = self.ends.searchsorted(flat, side="right")
        for index in np.unique(owner).tolist():
            mine = owner == index
            result[mine] = self._episode(index, key)[flat[mine] - first[index]]
        return result.reshape(*indices.shape, *self._shape(key))

    def stats(self) -> dict[str, Stats]:
        if self._stats is None:
            self._stats = statistics(self)
        return self._stats

    def _episode(self, index: int, key: str) -> np.ndarray:
        # Neighbouring reads are mostly of the same episode (blocks of statistics, windows).
        if self._last is None or self._last[:2] != (index, key):
            self._last = (index, key, self.decode(index, (key,))[key])
        return self._last[2]

    def _shape(self, key: str) -> tuple[int, ...]:
        return self.extras[key].shape if key in self.extras else features(self.spec)[key].shape

    def _dtype(self, key: str) -> np.dtype:
        return self.extras[key].dtype if key in self.extras else features(self.spec)[key].dtype
