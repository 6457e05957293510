"""Some episodes of a store, as a store."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from ..spec import Stats
from .base import ACTION, EpisodeStore, check_indices, check_span, starts
from .stats import statistics


class Subset:
    """An EpisodeStore of the episodes `episodes` (increasing, at least one) of `store`, over the same arrays.

    Attributes:
        numbers: what each episode's index is in `store`.
    """

    def __init__(self, store: EpisodeStore, episodes: Sequence[int] | Int64[np.ndarray, "chosen"]) -> None:
        self.store, self.numbers = store, np.asarray(episodes, np.int64)
        self.format, self.path, self.spec, self.extras = store.format, store.path, store.spec, store.extras
        self.meta, self.dropped = store.meta, store.dropped
        self.lost, self.original = store.lost, store.original[self.numbers]
        first, last = starts(store.ends)[self.numbers], store.ends[self.numbers]
        self.ends: Int64[np.ndarray, "chosen"] = np.cumsum(last - first)
        texts, self.text = np.unique(store.text[self.numbers], return_inverse=True)
        self.texts = tuple(store.texts[index] for index in texts)
        self.info = [store.info[index] for index in self.numbers]
        # Episodes that lie side by side in the store too are read together: where one run of them ends, and how far off it is.
        shift = first - starts(self.ends)
        new = np.flatnonzero(np.diff(shift, append=-1))
        self._runs, self._shift = self.ends[new], shift[new]
        self._stats: dict[str, Stats] | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        return (*self.spec.observations, ACTION)

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        check_span(start, stop, int(self.ends[-1]))
        first, last = self._runs.searchsorted([start, max(start, stop - 1)], side="right").clip(max=len(self._runs) - 1)
        parts = []
        for run in range(first, last + 1):
            begin, end = max(start, int(self._runs[run - 1]) if run else 0), min(stop, int(self._runs[run]))
            parts.append(self.store.read(key, begin + int(self._shift[run]), end + int(self._shift[run])))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def gather(self, key: str, indices: Int64[np.ndarray, "..."]) -> np.ndarray:
        check_indices(indices, int(self.ends[-1]))
        return self.store.gather(key, indices + self._shift[self._runs.searchsorted(indices, side="right")])

    def stats(self) -> dict[str, Stats]:
        if self._stats is None:
            self._stats = statistics(self)
        return self._stats
