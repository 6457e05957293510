"""A store under other names: observations renamed or left out, and what its files say wrongly or not at all put right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Int64

from ..spec import KinoiseError, Spec, Stats
from .base import ACTION, EpisodeStore, Reading
from .check import CONTROLS, check_spec


def view(store: EpisodeStore, reading: Reading) -> EpisodeStore:
    """`store` as `reading` wants it: itself when nothing is to change.

    Raises KinoiseError for names that the store lacks or that would meet, and values that no spec can have.
    """
    spec, theirs = _seen(store, reading)
    return store if spec == store.spec else View(store, spec, theirs)


class View:
    """An EpisodeStore with another spec over the same arrays. `format`, `path` and all that is not the spec's are the store's.

    Args:
        theirs: for each key of the spec, the store's own.
    """

    def __init__(self, store: EpisodeStore, spec: Spec, theirs: dict[str, str]) -> None:
        self.store, self.spec, self.theirs = store, spec, theirs
        self.format, self.path, self.ends, self.texts, self.text = store.format, store.path, store.ends, store.texts, store.text
        self.info, self.extras, self.meta, self.dropped = store.info, store.extras, store.meta, store.dropped

    @property
    def keys(self) -> tuple[str, ...]:
        return (*self.spec.observations, ACTION)

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        return self.store.read(self.theirs.get(key, key), start, stop)

    def gather(self, key: str, indices: Int64[np.ndarray, "..."]) -> np.ndarray:
        return self.store.gather(self.theirs.get(key, key), indices)

    def stats(self) -> dict[str, Stats]:
        found = self.store.stats()
        return {key: found[self.theirs.get(key, key)] for key in self.keys}


def _seen(store: EpisodeStore, reading: Reading) -> tuple[Spec, dict[str, str]]:
    known = store.spec.observations
    for old in reading.rename:
        if old not in known:
            raise KinoiseError(f"{store.path}: rename has '{old}', but the observations are {sorted(known)}.")
    ours = {key: reading.rename.get(key, key) for key in known}
    if len(set(ours.values())) < len(ours):
        raise KinoiseError(
            f"{store.path}: after rename two observations have one name: {sorted(ours.values())}. Choose others."
        )
    beside = sorted(set(ours.values()) & store.extras.keys())
    if beside:
        raise KinoiseError(f"{store.path}: after rename observations are called {beside}, as extras are. Choose other names.")
    theirs = {new: old for old, new in ours.items()}
    unknown = sorted(set(reading.keys or ()) - theirs.keys())
    if unknown:
        raise KinoiseError(f"{store.path}: keys has {unknown}, but the observations are {sorted(theirs)}.")
    chosen = [key for key in theirs if reading.keys is None or key in reading.keys]
    spec = replace(store.spec, observations={key: known[theirs[key]] for key in chosen})
    if reading.rate is not None:
        spec = replace(spec, rate=float(reading.rate))
    if reading.control is not None:
        if reading.control not in CONTROLS:
            raise KinoiseError(f"control={reading.control}: expected one of {', '.join(CONTROLS)}.")
        spec = replace(spec, control=reading.control)
    if reading.gripper is not None:
        spec = replace(spec, gripper=tuple(reading.gripper))
    check_spec(spec)
    return spec, theirs
