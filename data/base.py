"""What a set of demonstrations is, whatever file format holds it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from ..spec import Feature, Spec, Stats

ACTION = "action"


@dataclass(frozen=True)
class Episode:
    """One demonstration of `steps` time steps.

    Args:
        arrays: `[steps, *shape]` for every observation key of the spec and for "action", in the spec's dtypes
            (float32 state and actions in physical units, uint8 images). `arrays[key][t]` is what the robot saw
            before it carried out `arrays["action"][t]`.
        instruction: what was asked for, as text; needed when the spec has language.
        info: anything that JSON can hold. What kinoise itself writes and reads: `task`, `index`, `seed`, `initial` (the drawn
            initial state), `success`, and `failures` (attempts that were thrown away before this one was kept).
    """

    arrays: dict[str, np.ndarray]
    instruction: str = ""
    info: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class EpisodeStore(Protocol):
    """Demonstrations laid end to end: step `i` of the store belongs to the first episode whose `ends` exceeds `i`.

    A format's class opens a store by its path, checks it, and raises KinoiseError (file, what is wrong, remedy) if it cannot
    be trusted: half-written, truncated, or at odds with its own spec.

    Attributes:
        format: the name in FORMATS.
        path: where the store is.
        spec: what the arrays hold.
        ends: one past each episode's last step, increasing; the last one is the number of steps.
        texts: the distinct instructions.
        text: for each episode the index of its instruction in `texts`.
        info: what `Episode.info` was.
    """

    format: ClassVar[str]
    path: Path
    spec: Spec
    ends: Int64[np.ndarray, "episodes"]
    texts: tuple[str, ...]
    text: Int64[np.ndarray, "episodes"]
    info: list[dict[str, Any]]

    def __init__(self, path: Path) -> None: ...

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether `path` looks like this format: cheap, and true for a damaged store, so that opening it says what is wrong."""
        ...

    @property
    def keys(self) -> tuple[str, ...]:
        """The observation keys in the spec's order, then "action"."""
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


def features(spec: Spec) -> dict[str, Feature]:
    """The feature behind every key of a store: the observations, then the action."""
    return {**spec.observations, ACTION: spec.action}


def starts(ends: Int64[np.ndarray, "episodes"]) -> Int64[np.ndarray, "episodes"]:
    """Each episode's first step."""
    return np.concatenate([np.zeros(1, np.int64), ends[:-1]])
