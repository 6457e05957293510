"""Every episode of a store read once: which can be trusted, and what is wrong with the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from ...spec import Feature, KinoiseError
from ..base import ACTION, TIMESTAMP, EpisodeStore, features, starts
from ..mixture.store import Mixture
from ..stats import block_rows
from ..subset import Subset
from .cameras import Camera, Film, moving
from .clock import Clock


class Examined(NamedTuple):
    """What reading everything once gave.

    Args:
        store: the good episodes; None when there are none.
        numbers: what they are called: their index in the store as it was opened.
        beginnings: a hash of everything that was observed at their first step.
        cameras: their pictures, by key.
        clock: their time stamps, where the store has them.
        problems: why the others are left out, and what else can't be read; a line each.
    """

    store: EpisodeStore | None
    numbers: list[int]
    beginnings: list[int]
    cameras: dict[str, Camera]
    clock: Clock | None
    problems: list[str]


def examine(store: EpisodeStore, advance: Callable[[int], None] = lambda rows: None) -> Examined:
    """Reads every array of every episode; nothing that is wrong with one keeps the others from being read.

    An episode is good when all its features can be read, have the spec's shape and dtype, and states and actions are finite.
    One episode's states, and of a camera some 16 MiB, are in memory at a time.

    Args:
        advance: called with a number of rows, of one key, that are done.
    """
    known = features(store.spec)
    cameras = {key: Camera(feature) for key, feature in known.items() if feature.kind == "image"}
    clock = Clock(store.spec.rate) if TIMESTAMP in store.extras else None
    good: list[int] = []
    beginnings: list[int] = []
    problems: list[str] = []
    for index, (start, stop) in enumerate(zip(starts(store.ends).tolist(), store.ends.tolist(), strict=True)):
        wrong: list[str] = []
        states = {}
        for key, feature in known.items():
            if feature.kind == "state":
                states[key] = _checked(store, key, feature, index, start, stop, wrong)
                advance(stop - start)
        seen = [array for key, array in states.items() if array is not None and (key != ACTION or len(states) == 1)]
        moved = moving(seen)
        films = {}
        for key in cameras:
            films[key] = Film(known[key], moved if len(moved) == stop - start else np.zeros(stop - start, bool))
            for first, rows in _frames(store, key, known[key], index, start, stop, wrong):
                films[key].add(first, rows)
                advance(len(rows))
        extras: list[str] = []
        stamps = _extras(store, index, start, stop, extras)
        problems += [*wrong, *extras]
        if wrong:
            continue
        good.append(index)
        for key, film in films.items():
            cameras[key].keep(film)
        first = [states[key][0].tobytes() for key in states if key != ACTION]
        beginnings.append(hash((*first, *(camera.looks[-1].ends[0] for camera in cameras.values()))))
        if clock is not None and stamps is not None:
            clock.add(index, stamps)
    if not good:
        return Examined(None, [], [], cameras, clock, problems)
    left = store if len(good) == len(store.ends) else Subset(store, good)
    return Examined(left, good, beginnings, cameras, clock, problems)


def called(store: EpisodeStore, index: int) -> str:
    """How messages call an episode: by its number in its files and, where it has one, its name there. Of a mixture it is the
    number in the mixture, followed by the data set and the number or name in that."""
    info, number = store.info[index], int(store.original[index])
    name = info.get("demo") or info.get("file") or info.get("task")
    if isinstance(store, Mixture):
        own = store.names[int(store.member[index])]
        known = [own if info.get("demo") else f"episode {number} of {own}", name]
        number = index
    else:
        known = [info.get("dataset"), name]
    said = ", ".join(str(item) for item in known if item)
    return f"episode {number} ({said})" if said else f"episode {number}"


def _checked(
    store: EpisodeStore, key: str, feature: Feature, index: int, start: int, stop: int, wrong: list[str]
) -> np.ndarray | None:
    array = _read(store, key, index, start, stop, feature.dtype, feature.shape, wrong)
    if array is None:
        return None
    finite = np.isfinite(array).reshape(len(array), -1)
    if finite.all():
        return array
    bad = np.flatnonzero(~finite.all(1))
    dim = int(np.flatnonzero(~finite[bad[0]])[0])
    name = f" ('{feature.names[dim]}')" if feature.names else ""
    wrong.append(
        f"{store.path}: {called(store, index)}: '{key}' is NaN or infinite at {len(bad)} step(s), the first is step {bad[0]}, "
        f"dimension {dim}{name}. Repair or remove the episode."
    )
    return None


def _frames(
    store: EpisodeStore, key: str, feature: Feature, index: int, start: int, stop: int, wrong: list[str]
) -> Iterator[tuple[int, np.ndarray]]:
    rows = block_rows(feature)
    for first in range(start, stop, rows):
        frames = _read(store, key, index, first, min(first + rows, stop), feature.dtype, feature.shape, wrong)
        if frames is None:
            return
        yield first - start, frames


def _extras(store: EpisodeStore, index: int, start: int, stop: int, wrong: list[str]) -> np.ndarray | None:
    """The time stamps of an episode, if it has them. Extras are never trained on, so a bad one leaves its episode good."""
    stamps = None
    for key, (dtype, shape) in store.extras.items():
        array = _read(store, key, index, start, stop, dtype, shape, wrong)
        if array is None:
            continue
        bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1))
        if len(bad):
            wrong.append(
                f"{store.path}: {called(store, index)}: extra '{key}' is NaN or infinite at {len(bad)} steps, "
                f"the first is step {bad[0]}. Repair it or leave it out."
            )
        elif key == TIMESTAMP:
            stamps = array.reshape(len(array), -1)[:, 0]
    return stamps


def _read(
    store: EpisodeStore,
    key: str,
    index: int,
    start: int,
    stop: int,
    dtype: np.dtype,
    shape: tuple[int, ...],
    wrong: list[str],
) -> np.ndarray | None:
    """None, and a line more in `wrong`, for what can't be read or is not what was promised."""
    try:
        array = store.read(key, start, stop)
    except KinoiseError as error:
        wrong.append(str(error))
        return None
    if array.shape == (stop - start, *shape) and array.dtype == dtype:
        return array
    wrong.append(
        f"{store.path}: {called(store, index)}: '{key}' is {array.dtype}{list(array.shape)}, expected "
        f"{dtype}{[stop - start, *shape]}. Convert or remove the episode."
    )
    return None
