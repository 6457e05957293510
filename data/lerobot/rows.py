"""The rows of an episode from parquet files that hold many: found by their `episode_index`, read by row group."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...spec import KinoiseError
from ..base import Report
from .episodes import UNREADABLE, Entry, numbered

OPEN_FILES = 16
"""Footers kept in memory: one of many episodes takes longer to parse than an episode to read."""


@dataclass(frozen=True)
class _File:
    """A parquet file's footer, columns, the first row of each row group, and of each episode the rows."""

    footer: pq.FileMetaData
    columns: frozenset[str]
    firsts: np.ndarray
    spans: Mapping[int, tuple[int, int]]


class Rows:
    """The parquet files under a data set's root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._last: tuple[str, tuple[int, ...], dict[str, pa.ChunkedArray]] = ("", (), {})

    def __reduce__(self) -> tuple[type[Rows], tuple[Path]]:
        # To another process goes none of what was read.
        return Rows, (self.root,)

    def sound(self, entries: Sequence[Entry], report: Report) -> list[Entry]:
        """The episodes whose files hold as many rows as they should; `report` takes what is wrong with the others.

        Only footers are read, unless they don't fit.
        """
        by_file: dict[str, list[Entry]] = {}
        for entry in entries:
            by_file.setdefault(entry.data, []).append(entry)
        kept = []
        for file, mine in by_file.items():
            try:
                rows = pq.read_metadata(self.root / file).num_rows
            except UNREADABLE as error:
                report(f"{self._damaged(file, error)} It holds {numbered(entry.number for entry in mine)}.")
                continue
            if rows == sum(entry.length for entry in mine):
                kept += mine
                continue
            for entry in mine:
                try:
                    self._span(entry)
                    kept.append(entry)
                except KinoiseError as error:
                    report(str(error))
        return sorted(kept, key=lambda entry: entry.number)

    def read(self, entry: Entry, columns: Sequence[str]) -> dict[str, pa.ChunkedArray]:
        """`columns` of an episode, by name. Raises KinoiseError naming file, episode and column."""
        start, stop = self._span(entry)
        file = self._file(entry.data)
        missing = sorted(set(columns) - file.columns)
        if missing:
            raise KinoiseError(
                f"{self.root / entry.data}: episode {entry.number}: column '{missing[0]}' is missing, "
                f"which meta/info.json declares. Restore the file from its source."
            )
        first = int(file.firsts.searchsorted(start, side="right")) - 1
        last = int(file.firsts.searchsorted(stop, side="left"))
        found = self._groups(entry.data, file, tuple(range(first, last)), columns)
        offset = start - int(file.firsts[first])
        return {name: found[name].slice(offset, stop - start) for name in columns}

    def _groups(self, path: str, file: _File, groups: tuple[int, ...], columns: Sequence[str]) -> dict[str, pa.ChunkedArray]:
        # Where one row group holds many episodes, neighbours come from the same columns, whichever is asked for in between.
        if self._last[:2] != (path, groups):
            self._last = (path, groups, {})
        kept = self._last[2]
        absent = [name for name in columns if name not in kept]
        if absent:
            try:
                with pq.ParquetFile(self.root / path, metadata=file.footer, page_checksum_verification=True) as parquet:
                    table = parquet.read_row_groups(list(groups), columns=absent, use_threads=False)
            except UNREADABLE as error:
                raise KinoiseError(self._damaged(path, error)) from error
            kept |= {name: table.column(name) for name in absent}
        return kept

    def _span(self, entry: Entry) -> tuple[int, int]:
        start, stop = self._file(entry.data).spans.get(entry.number, (0, 0))
        if stop - start != entry.length:
            raise KinoiseError(
                f"{self.root / entry.data}: episode {entry.number} has {max(stop - start, 0)} rows together by their "
                f"'episode_index', expected its {entry.length} steps: rows are missing or mixed up. Restore the file."
            )
        return start, stop

    def _file(self, path: str) -> _File:
        if path in self._files:
            return self._files[path]
        try:
            with pq.ParquetFile(self.root / path) as parquet:
                footer, names = parquet.metadata, frozenset(parquet.schema_arrow.names)
                column = parquet.read(columns=["episode_index"], use_threads=False).column("episode_index")
            owner = values(column, ()).astype(np.int64)
        except UNREADABLE as error:
            raise KinoiseError(self._damaged(path, error)) from error
        edges = np.flatnonzero(np.diff(owner)) + 1
        starts, stops = np.array([0, *edges])[: len(owner)], np.array([*edges, len(owner)])[: len(owner)]
        spans: dict[int, tuple[int, int]] = {}
        for number, start, stop in zip(owner[starts].tolist(), starts.tolist(), stops.tolist(), strict=True):
            # An episode in pieces counts as one without rows.
            spans[number] = (start, start) if number in spans else (start, stop)
        sizes = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        found = _File(footer, names, np.cumsum([0, *sizes[:-1]]), spans)
        self._files[path] = found
        if len(self._files) > OPEN_FILES:
            self._files.popitem(last=False)
        return found

    def _damaged(self, path: str, error: Exception) -> str:
        reason = " ".join(str(error).split())[:200]
        return f"{self.root / path} can't be read ({reason}): it was cut short or damaged. Restore it from its source."


def values(column: pa.ChunkedArray, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers as `[rows, *shape]`, in the column's own dtype. Raises ValueError for gaps, other types and other sizes."""
    array, rows = column.combine_chunks(), len(column)
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    while pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        if array.null_count:
            raise ValueError("some of its rows are empty")
        if not pa.types.is_fixed_size_list(array.type):
            sizes = np.diff(array.offsets.to_numpy())
            if len(sizes) and (sizes != sizes[0]).any():
                raise ValueError(f"its rows have {sizes.min()} to {sizes.max()} numbers, expected {list(shape)}")
        array = array.flatten()
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_boolean(array.type)):
        raise ValueError(f"it holds {array.type}, expected numbers")
    if array.null_count:
        raise ValueError("some of its numbers are missing")
    wanted = rows * int(np.prod(shape))
    if len(array) != wanted:
        raise ValueError(f"it has {len(array) // max(rows, 1)} numbers a row, expected {list(shape)}")
    return array.to_numpy(zero_copy_only=False).reshape(rows, *shape)
