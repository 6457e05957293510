"""Rows of the arrays in a zarr store, decoded."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ...spec import KinoiseError

KEPT_BYTES = 2**26
"""Of an array's rows that stay decoded."""


class ZarrRows:
    """Reads the arrays of a zarr store by their paths in it; `root` is where in a zip the store lies."""

    def __init__(self, path: Path, root: str = "") -> None:
        self.path, self.root = path, root
        self._process, self._opened = 0, {}
        self._kept: dict[str, tuple[int, np.ndarray]] = {}

    def read(self, name: str, start: int, stop: int, what: str) -> np.ndarray:
        """Rows `start` to `stop` (exclusive) of an array, read-only.

        Whole chunks are decoded, and the last ones kept: episodes follow each other in them. Raises KinoiseError, saying that
        it happened to `what`, when they can't be decoded.
        """
        first, kept = self._kept.get(name, (0, np.empty(0)))
        try:
            array = self._array(name)
            size, steps = int(array.chunks[0]), int(array.shape[0])
            end = min(-(-stop // size) * size, steps)
            if (end - start // size * size) * array.nbytes > KEPT_BYTES * steps:
                return np.asarray(array[start:stop])
            if not first <= start < first + len(kept):
                first = start // size * size
                kept = np.asarray(array[first:end])
            elif stop > first + len(kept):
                first, kept = start, np.concatenate([kept[start - first :], array[first + len(kept) : end]])
        except Exception as error:  # zarr's codecs raise what they like: RuntimeError, ValueError, zlib.error, ...
            raise KinoiseError(
                f"{self.path}: {name} of {what} can't be decoded ({' '.join(str(error).split()) or type(error).__name__}): a "
                f"chunk was cut short, overwritten or removed. Copy the store again."
            ) from error
        kept.flags.writeable = False
        self._kept[name] = (first, kept)
        return kept[start - first : stop - first]

    def __getstate__(self) -> dict[str, Any]:
        """Another process opens the files anew."""
        return {**self.__dict__, "_process": 0, "_opened": {}, "_kept": {}}

    def _array(self, name: str) -> Any:
        """zarr's array, opened once in a process: children of a fork must not share a zip's place to read from."""
        import zarr

        from .blosc import looked_at
        from .whole import open_whole

        if self._process != os.getpid():
            self._process, self._opened = os.getpid(), {}
            with suppress(ImportError):
                from imagecodecs.numcodecs import register_codecs  # type: ignore[import-not-found]

                register_codecs(verbose=False)
        if name not in self._opened:
            if "" not in self._opened:
                self._opened[""] = open_whole(self.path)
            place = f"{self.root}/{name}" if self.root else name
            with looked_at():
                self._opened[name] = zarr.open_array(self._opened[""], path=place, mode="r")
        return self._opened[name]
