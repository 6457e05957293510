"""Parquet files as LeRobot lays them out: columns of arrays, tables that go on in another file where one is full."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .layout import TASKS_PATH, Place, following


class ParquetFiles:
    """Tables of one schema, appended to files of at most about `limit` bytes each. Use in a `with` block.

    Args:
        root: of the data set.
        template: of the files' paths in it.
    """

    def __init__(self, root: Path, template: str, limit: float) -> None:
        self.root, self.template, self.limit = root, template, limit
        self.place: Place | None = None
        self._writer: pq.ParquetWriter | None = None
        self._bytes = 0

    def room(self, size: int) -> Place:
        """The file that `size` more bytes go to; a new one when they don't fit into the last, unless it is empty."""
        if self.place is None or (self._bytes and self._bytes + size > self.limit):
            self._close()
            self.place, self._bytes = following(self.place), 0
        return self.place

    def append(self, table: pa.Table) -> None:
        """A row group of the file that `room` named."""
        assert self.place is not None
        if self._writer is None:
            file = self.root / self.template.format(**self.place._asdict())
            file.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(file, table.schema, compression="snappy", write_page_checksum=True)
        self._writer.write_table(table)
        self._bytes += table.nbytes

    def __enter__(self) -> ParquetFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def column(array: np.ndarray) -> pa.Array:
    """`[rows, *shape]` as LeRobot's columns are: numbers, lists of a fixed size, or for more axes lists of lists."""
    shape = array.shape[1:]
    result = pa.array(np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(-1))
    if shape == () or shape == (1,):
        return result
    if len(shape) == 1:
        return pa.FixedSizeListArray.from_arrays(result, shape[0])
    for size in reversed(shape):
        offsets = np.arange(0, len(result) + 1, size, dtype=np.int32)
        result = pa.ListArray.from_arrays(pa.array(offsets), result)
    return result


def write_tasks(root: Path, texts: list[str]) -> None:
    """`tasks.parquet`: a pandas table whose index is the text, which is why it says so in pandas' words."""
    name = "__index_level_0__"
    about: dict[str, Any] = {
        "index_columns": [name],
        "column_indexes": [],
        "columns": [
            {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64", "metadata": None},
            {"name": None, "field_name": name, "pandas_type": "unicode", "numpy_type": "object", "metadata": None},
        ],
        "pandas_version": "2.0.0",
    }
    table = pa.table({"task_index": pa.array(range(len(texts)), pa.int64()), name: pa.array(texts, pa.string())})
    file = root / TASKS_PATH
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(about)}), file)
