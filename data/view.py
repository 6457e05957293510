"""A store under other names: observations renamed or left out, and what its files say wrongly or not at all put right."""

from __future__ import annotations

from collections import Counter
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
        self.lost, self.original = store.lost, store.original

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
    ours = {key: reading.rename.get(key, key) for key in known}
    theirs = {new: old for old, new in ours.items()}
    absent = [old for old in reading.rename if old not in known]
    doubled = sorted(name for name, count in Counter(ours.values()).items() if count > 1)
    beside = sorted(theirs.keys() & store.extras.keys())
    unknown = sorted(set(reading.keys or ()) - theirs.keys())
    problems = [f"rename has '{old}', but the observations are {sorted(known)}" for old in absent]
    problems += [f"after rename several observations are called '{name}': choose other names" for name in doubled]
    if beside:
        problems.append(f"after rename observations are called {beside}, as extras are: choose other names")
    if unknown:
        problems.append(f"keys has {unknown}, but the observations are {sorted(theirs)}")
    if reading.control is not None and reading.control not in CONTROLS:
        problems.append(f"control={reading.control}: expected one of {', '.join(CONTROLS)}")
    if problems:
        raise KinoiseError(f"{store.path}: {'; '.join(problems)}.")
    chosen = [key for key in theirs if reading.keys is None or key in reading.keys]
    spec = replace(store.spec, observations={key: known[theirs[key]] for key in chosen})
    if reading.rate is not None:
        spec = replace(spec, rate=float(reading.rate))
    if reading.control is not None:
        spec = replace(spec, control=reading.control)
    if reading.gripper is not None:
        spec = replace(spec, gripper=tuple(reading.gripper))
    check_spec(spec)
    return spec, theirs
