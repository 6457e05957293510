"""What a set of demonstrations is, whatever file format holds it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from ..spec import Feature, KinoiseError, Spec, Stats

ACTION = "action"
REWARD, DONE, SUCCESS, TIMESTAMP, SIM_STATE = "reward", "done", "success", "timestamp", "sim_state"
"""Extras that more than one format knows: a number a step, whether the episode ended there, whether the task was done, seconds
since the episode's first step, and the simulator's own state."""


class Extra(NamedTuple):
    """An array beside the spec: kept and carried from format to format, never trained on."""

    dtype: np.dtype
    shape: tuple[int, ...]
    """Of one step; () for a number."""


@dataclass(frozen=True)
class Episode:
    """One demonstration of `steps` time steps.

    Args:
        arrays: `[steps, *shape]` for every observation key of the spec and for "action", in the spec's dtypes
            (float32 state and actions in physical units, uint8 images). `arrays[key][t]` is what the robot saw
            before it carried out `arrays["action"][t]`.
        instruction: what was asked for, as text; needed when the spec has language.
        info: anything that JSON can hold. What kinoise itself writes and reads: `task`, `index`, `seed`, `initial` (the drawn
            initial state), `success`, `failures` (attempts that were thrown away before this one was kept), `filters`
            (names of the subsets that the episode belongs to) and `dataset` (which of a mixture's it comes from).
        extras: `[steps, *shape]` of any number type; the same keys, dtypes and shapes in every episode of a store.
    """

    arrays: dict[str, np.ndarray]
    instruction: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    extras: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """What a user says about files that don't say it all themselves.

    Args:
        format: the name in FORMATS; None is what the files look like.
        filter: the subset of episodes to read, by its name in the files (robomimic's `mask/<filter>`).
        rate: control steps per second, for formats that don't hold it; elsewhere it takes the place of what they hold.
        control: what an action means, see `Spec`; likewise.
        gripper: indices of the gripper's dimensions in the action; likewise.
        rename: other names for observations; what the format's reader calls them -> what they shall be called.
        keys: the observations to read, by their new names; None is all.
    """

    format: str | None = None
    filter: str | None = None
    rate: float | None = None
    control: str | None = None
    gripper: tuple[int, ...] | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    keys: tuple[str, ...] | None = None


AS_IT_IS = Reading()
Report = Callable[[str], None]
"""Takes a problem of the files after which reading can go on, without the episode that has it."""


def refuse(problem: str) -> NoReturn:
    """The report of everything but `kinoise inspect`: the first problem is the last."""
    raise KinoiseError(problem)


@runtime_checkable
class EpisodeStore(Protocol):
    """Demonstrations laid end to end: step `i` of the store belongs to the first episode whose `ends` exceeds `i`.

    Attributes:
        format: the name in FORMATS.
        path: where the store is.
        spec: what the arrays hold.
        ends: one past each episode's last step, increasing; the last one is the number of steps.
        texts: the distinct instructions.
        text: for each episode the index of its instruction in `texts`.
        info: what `Episode.info` was.
        extras: arrays beside the spec; `read` and `gather` take their keys too.
        meta: about the whole set, anything that JSON can hold; formats keep there what another format can't say, under their
            name (`meta["robomimic"]["env_args"]`).
        dropped: what the files hold and the store does not, a line each.
        lost: how many episodes were left out when the files were opened, since they can't be read (see `Report`).
        original: each episode's number in its files, which count those too that are left out or not asked for.
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

    @property
    def lost(self) -> int: ...

    @property
    def original(self) -> Int64[np.ndarray, "episodes"]: ...

    @property
    def keys(self) -> tuple[str, ...]:
        """The observation keys in the spec's order, then "action"; not the extras."""
        ...

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        """Steps `start` to `stop` (exclusive), `[stop - start, *shape]`; may be a read-only view of the file."""
        ...

    def gather(self, key: str, indices: Int64[np.ndarray, "..."]) -> np.ndarray:
        """The steps `indices`, `[*indices.shape, *shape]`, a fresh array. Raises IndexError outside [0, steps)."""
        ...

    def stats(self) -> dict[str, Stats]:
        """Statistics of every key over all steps; computed at the first call (see `stats.statistics`)."""
        ...


@runtime_checkable
class Format(EpisodeStore, Protocol):
    """What FORMATS holds: a class that opens a store by its path and checks it.

    It raises KinoiseError (file, episode, field, what is wrong, remedy) for one that cannot be trusted: half-written,
    truncated, or at odds with its own spec.
    """

    def __init__(self, path: Path, reading: Reading = AS_IT_IS, report: Report = refuse) -> None: ...

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether `path` looks like this format: cheap, and true for a damaged store, so that opening it says what is wrong."""
        ...

    @classmethod
    def write(cls, path: Path, spec: Spec, episodes: Iterable[Episode], meta: Mapping[str, Any] | None = None) -> list[str]:
        """Streams `episodes` into a new store at `path`, which appears only when all of it is on disk.

        Returns what this format can't hold of what came, a line each. Raises KinoiseError, leaving nothing behind, when `path`
        exists, there are no episodes, or one of them does not fit the spec (see `check.check_episode`).
        """
        ...


def features(spec: Spec) -> dict[str, Feature]:
    """The feature behind every key of a store: the observations, then the action."""
    return {**spec.observations, ACTION: spec.action}


def starts(ends: Int64[np.ndarray, "episodes"]) -> Int64[np.ndarray, "episodes"]:
    """Each episode's first step."""
    return np.concatenate([np.zeros(1, np.int64), ends[:-1]])


def check_span(start: int, stop: int, length: int, what: str = "steps") -> None:
    """Raises IndexError unless `start` to `stop` (exclusive) lie within [0, length]."""
    if not 0 <= start <= stop <= length:
        raise IndexError(f"{what} {start} to {stop} of {length}")


def check_indices(indices: Int64[np.ndarray, "..."], length: int, what: str = "step") -> None:
    """Raises IndexError unless all of them lie in [0, length)."""
    if indices.size and (indices.min() < 0 or indices.max() >= length):
        raise IndexError(f"{what} {indices.min() if indices.min() < 0 else indices.max()} of {length}")


def episode(store: EpisodeStore, index: int) -> Episode:
    """Episode `index` of a store, all of it. Raises KinoiseError for arrays that can't be read."""
    start, stop = int(starts(store.ends)[index]), int(store.ends[index])
    arrays = {key: store.read(key, start, stop) for key in store.keys}
    extras = {key: store.read(key, start, stop) for key in store.extras}
    return Episode(arrays, store.texts[store.text[index]], store.info[index], extras)
