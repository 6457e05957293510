"""Training windows: for every step of every episode, what was observed up to it and the actions from it on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64

from ..spec import Batch, KinoiseError, Observation
from .base import ACTION, EpisodeStore, check_indices, starts


class Windows:
    """One window for each step t of each episode.

    A window holds the observations of steps t-history+1 .. t, the episode's first one repeated before its start, and the
    actions t .. t+chunk-1, the episode's last one repeated after its end with `valid` false there. None crosses episodes.

    Args:
        chunk: actions in a window.
        history: observations in a window.
        subset: the episodes to use, in this order (held-out validation); all of them when None.
        keys: the observations to gather; all of them when None.
    """

    def __init__(
        self,
        store: EpisodeStore,
        chunk: int,
        history: int = 1,
        subset: Sequence[int] | None = None,
        keys: Sequence[str] | None = None,
    ) -> None:
        """Raises KinoiseError for a chunk or history below 1 and for an empty, repeated or unknown episode in `subset`."""
        if chunk < 1 or history < 1:
            raise KinoiseError(f"chunk={chunk} history={history}: a window needs at least one action and one observation.")
        episodes = np.arange(len(store.ends)) if subset is None else np.asarray(subset, np.int64)
        known = np.unique(episodes)
        if not len(known) or len(known) < len(episodes) or known[0] < 0 or known[-1] >= len(store.ends):
            raise KinoiseError(
                f"subset of {len(episodes)} episodes: expected distinct indices from 0 to {len(store.ends) - 1}, at least one."
            )
        self.store, self.chunk, self.history = store, chunk, history
        self.keys = tuple(store.spec.observations if keys is None else keys)
        self._episodes = episodes
        self._first = starts(store.ends)[episodes]
        self._last = store.ends[episodes] - 1
        self._text = store.text[episodes]
        # One past the last window of each episode, and what turns a window's index into its step in the store.
        self._ends = np.cumsum(self._last - self._first + 1)
        self._shift = self._first - starts(self._ends)
        self._past, self._future = np.arange(1 - history, 1), np.arange(chunk)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch(self, indices: Int64[np.ndarray, "batch"]) -> Batch:
        """The windows `indices`, each in [0, len(self)), in that order; IndexError otherwise."""
        check_indices(indices, len(self), "window")
        episode = self._ends.searchsorted(indices, side="right")
        now = (indices + self._shift[episode])[:, None]
        last = self._last[episode][:, None]
        past = np.maximum(now + self._past, self._first[episode][:, None])
        future = now + self._future
        values = {key: torch.from_numpy(self.store.gather(key, past)) for key in self.keys}
        actions = torch.from_numpy(self.store.gather(ACTION, np.minimum(future, last)))
        texts, text = self._texts(episode) if self.store.spec.language else ((), None)
        return Batch(Observation(values, texts, text), actions, torch.from_numpy(future <= last))

    def groups(self, label: Int64[np.ndarray, "episodes"]) -> list[Int64[np.ndarray, "_"]]:
        """The windows, sorted by what `label` says of their episodes (one number from 0 on for each of the store's)."""
        found = np.repeat(label[self._episodes], self._last - self._first + 1)
        return [np.flatnonzero(found == index) for index in range(int(label.max()) + 1)]

    def _texts(self, episode: Int64[np.ndarray, "batch"]) -> tuple[tuple[str, ...], torch.Tensor]:
        known, text = np.unique(self._text[episode], return_inverse=True)
        return tuple(self.store.texts[index] for index in known.tolist()), torch.from_numpy(text)
