"""The newest numbers of a run that may last for days."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np


class Ring(Sequence[Any]):
    """The newest `kept` values, from the oldest to the newest, in memory that is all taken at once: a robot's controller that
    grows by the hour is watched, or ended, by whoever looks after the machine.

    Args:
        dtype: of a value; with fields, values are tuples.
    """

    def __init__(self, kept: int, dtype: Any = np.float64) -> None:
        self._values = np.empty(kept, dtype)
        self._values[:] = 0  # or the memory would be taken as it is written to
        self._count = 0

    def append(self, value: Any) -> None:
        self._values[self._count % len(self._values)] = value
        self._count += 1

    def __len__(self) -> int:
        return min(self._count, len(self._values))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        oldest = self._count % len(self._values) if self._count > len(self._values) else 0
        found = np.roll(self._values[: len(self)], -oldest)
        return found if dtype is None else found.astype(dtype)

    def __iter__(self) -> Iterator[Any]:
        return iter(np.asarray(self).tolist())

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return np.asarray(self)[index].tolist()
        place = range(max(0, self._count - len(self._values)), self._count)[index]  # IndexError as a list's
        return self._values[place % len(self._values)].tolist()
