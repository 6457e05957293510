"""One array of a zarr v2 group as plain files: uncompressed chunks of whole rows, memory-mapped to read.

A chunk file is named by its grid position ("3.0.0" for the fourth block of rows of a three-dimensional array) and always has
a whole chunk's size: zarr pads the last one, and reads a missing one as the fill value. Here a missing one is an error.
Specification: https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html
"""

from __future__ import annotations

import errno
import mmap
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int64

from ..files import MALFORMED, read_json, sync, write_json
from ..spec import KinoiseError
from .base import check_indices, check_span
from .resident import RESIDENT

METADATA = ".zarray"


class ChunkReader:
    """The array `[rows, *shape]` in `directory`. Raises KinoiseError unless every chunk file is there with its full size."""

    def __init__(self, directory: Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        self.shape, self.dtype = shape, dtype
        self._row_bytes = _row_bytes(dtype, shape)
        self.rows, self.chunk_rows = _read_metadata(directory / METADATA, dtype, shape)
        self._maps: list[mmap.mmap] = []
        chunks = [self._map(directory, index) for index in range(-(-self.rows // self.chunk_rows))]
        chunks[-1] = chunks[-1][: self.rows - (len(chunks) - 1) * self.chunk_rows]
        self._chunks = chunks
        RESIDENT.watch(self, self._maps)

    def _map(self, directory: Path, index: int) -> np.ndarray:
        file = directory / _name(index, self.shape)
        expected = self.chunk_rows * self._row_bytes
        try:
            size = file.stat().st_size
            if size != expected:
                raise KinoiseError(
                    f"{file} has {size} bytes, expected {expected}: it was cut short. Copy or write the store again."
                )
            with file.open("rb") as opened:
                self._maps.append(mmap.mmap(opened.fileno(), expected, access=mmap.ACCESS_READ))
            # A plain array over the map: indexing np.memmap costs microseconds more.
            return np.frombuffer(self._maps[-1], _stored(self.dtype)).reshape(self.chunk_rows, *self.shape)
        except FileNotFoundError as error:
            raise KinoiseError(f"{file} is missing: the store is incomplete. Copy or write it again.") from error
        except OSError as error:
            if error.errno == errno.EMFILE:
                raise KinoiseError(f"{file}: too many open files for this many chunks. Run 'ulimit -n 65536' first.") from error
            raise KinoiseError(f"{file} cannot be read ({error.strerror}). Check its permissions and the disk.") from error

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` (exclusive): a read-only view where one chunk holds them all, else a copy."""
        check_span(start, stop, self.rows, "rows")
        RESIDENT.touched(self, (stop - start) * self._row_bytes)
        first, last = start // self.chunk_rows, max(start, stop - 1) // self.chunk_rows
        if first >= len(self._chunks):
            return np.empty((0, *self.shape), self.dtype)
        parts = [
            self._chunks[index][max(start - index * self.chunk_rows, 0) : stop - index * self.chunk_rows]
            for index in range(first, last + 1)
        ]
        return (parts[0] if len(parts) == 1 else np.concatenate(parts)).astype(self.dtype, copy=False)

    def gather(self, indices: Int64[np.ndarray, "..."]) -> np.ndarray:
        """Rows `indices` as `[*indices.shape, *shape]`; a loop over the chunks touched, never over the indices."""
        check_indices(indices, self.rows, "row")
        RESIDENT.touched(self, indices.size * self._row_bytes)
        if len(self._chunks) == 1:
            return self._chunks[0].take(indices, axis=0).astype(self.dtype, copy=False)
        flat = indices.ravel()
        result = np.empty((flat.size, *self.shape), self.dtype)
        order = flat.argsort()
        chunk, row = np.divmod(flat[order], self.chunk_rows)
        touched, first = np.unique(chunk, return_index=True)
        for index, start, stop in zip(touched, first, np.append(first, flat.size)[1:], strict=True):
            result[order[start:stop]] = self._chunks[index][row[start:stop]]
        return result.reshape(*indices.shape, *self.shape)


class ChunkWriter:
    """Appends rows to a new array in `directory`; leaving the context completes it. One file is open at a time."""

    def __init__(self, directory: Path, dtype: np.dtype, shape: tuple[int, ...], chunk_bytes: int) -> None:
        self.directory, self.dtype, self.shape = directory, dtype, shape
        self.chunk_rows = max(1, chunk_bytes // _row_bytes(dtype, shape))
        self.rows = 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> ChunkWriter:
        self.directory.mkdir(parents=True)
        return self

    def append(self, rows: np.ndarray) -> None:
        rows = np.ascontiguousarray(rows, _stored(self.dtype))
        while len(rows):
            index, filled = divmod(self.rows, self.chunk_rows)
            if self._file is None or filled == 0:
                self._close()
                self._file = (self.directory / _name(index, self.shape)).open("wb")
            part, rows = rows[: self.chunk_rows - filled], rows[self.chunk_rows - filled :]
            self._file.write(part.data)
            self.rows += len(part)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None and self._file is not None:
            self.chunk_rows = min(self.chunk_rows, self.rows)
            self._file.truncate(self.chunk_rows * _row_bytes(self.dtype, self.shape))
            write_json(self.directory / METADATA, _metadata(self.rows, self.chunk_rows, self.dtype, self.shape))
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class ChunkFiles:
    """A new array `[rows, *shape]` in `directory` whose rows any process may write, in any order: every row's place is known.

    `create`, then `write` and `flush`, and `complete` when all rows are there. An instance holds no open file, so that it can
    be sent to other processes.
    """

    def __init__(self, directory: Path, dtype: np.dtype, shape: tuple[int, ...], rows: int, chunk_bytes: int) -> None:
        self.directory, self.dtype, self.shape, self.rows = directory, dtype, shape, rows
        self.row_bytes = _row_bytes(dtype, shape)
        self.chunk_rows = min(rows, max(1, chunk_bytes // self.row_bytes))

    @property
    def nbytes(self) -> int:
        """What the files will take on disk."""
        return -(-self.rows // self.chunk_rows) * self.chunk_rows * self.row_bytes

    def create(self) -> None:
        """Empty files of their full size, as holes: they take space as rows are written. Those that are there stay."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for file, _, _ in self._spans(0, self.rows):
            with file.open("ab") as opened:
                opened.truncate(self.chunk_rows * self.row_bytes)

    def write(self, start: int, rows: np.ndarray) -> None:
        """Puts `rows` at row `start` and after. Raises OSError (a full disk, say): with a map that would be a SIGBUS."""
        rows = np.ascontiguousarray(rows, _stored(self.dtype))
        for file, first, last in self._spans(start, start + len(rows)):
            with file.open("r+b") as opened:
                opened.seek(first % self.chunk_rows * self.row_bytes)
                opened.write(rows[first - start : last - start].data)

    def flush(self, start: int, stop: int) -> None:
        """Returns when rows `start` to `stop` (exclusive) would outlive a power cut."""
        for file, _, _ in self._spans(start, stop):
            sync(file)

    def complete(self) -> None:
        """The metadata, which makes an array of the files."""
        write_json(self.directory / METADATA, _metadata(self.rows, self.chunk_rows, self.dtype, self.shape))

    def _spans(self, start: int, stop: int) -> Iterator[tuple[Path, int, int]]:
        """(file, first row, one past the last) of the chunks that hold rows `start` to `stop`."""
        for index in range(start // self.chunk_rows, -(-stop // self.chunk_rows)):
            span = max(start, index * self.chunk_rows), min(stop, (index + 1) * self.chunk_rows)
            yield self.directory / _name(index, self.shape), *span


def _stored(dtype: np.dtype) -> np.dtype:
    return dtype.newbyteorder("<")


def _row_bytes(dtype: np.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * int(np.prod(shape, dtype=np.int64))


def _name(index: int, shape: tuple[int, ...]) -> str:
    return ".".join([str(index), *("0" for _ in shape)])


def _metadata(rows: int, chunk_rows: int, dtype: np.dtype, shape: tuple[int, ...]) -> dict[str, Any]:
    return {
        "zarr_format": 2,
        "shape": [rows, *shape],
        "chunks": [chunk_rows, *shape],
        "dtype": _stored(dtype).str,
        "order": "C",
        "compressor": None,
        "filters": None,
        "fill_value": 0,
        "dimension_separator": ".",
    }


def _read_metadata(file: Path, dtype: np.dtype, shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, rows a chunk) of an array that must hold `dtype` rows of `shape`."""
    if not file.exists():
        raise KinoiseError(
            f"{file} is missing, but the store's spec needs that array: it is incomplete. Copy or write it again."
        )
    found = read_json(file)
    try:
        rows, chunk_rows = int(found["shape"][0]), int(found["chunks"][0])
    except MALFORMED as error:
        raise KinoiseError(f"{file} lacks shape and chunks: it was edited or damaged. Write the store again.") from error
    if rows < 1 or chunk_rows < 1:
        raise KinoiseError(f"{file}: {rows} rows in chunks of {chunk_rows} are no data. Write the store again.")
    # What is stored where there is no chunk never matters here, and zarr's own default separator is a dot.
    expected = _metadata(rows, chunk_rows, dtype, shape)
    found = {"dimension_separator": ".", **found, "fill_value": expected["fill_value"]}
    different = [
        f"{name} is {found.get(name)!r}, not {value!r}" for name, value in expected.items() if found.get(name) != value
    ]
    if different:
        raise KinoiseError(f"{file}: {'; '.join(different)}. Write the store again with kinoise, or correct its spec.")
    return rows, chunk_rows
