"""Arrays in files of chunks: written in any order, read as they were, and their pages let go."""

from __future__ import annotations

import numpy as np
from kinoise.data.chunks import ChunkFiles, ChunkReader
from kinoise.data.resident import Resident, file_bytes


def test_rows_written_in_any_order_make_the_array(tmp_path):
    rows = np.arange(60, dtype=np.float32).reshape(20, 3)
    files = ChunkFiles(tmp_path / "array", rows.dtype, (3,), 20, chunk_bytes=7 * 12)
    files.create()
    for start, stop in ((13, 20), (0, 1), (6, 13), (1, 6)):
        files.write(start, rows[start:stop])
    files.complete()
    reader = ChunkReader(tmp_path / "array", rows.dtype, (3,))
    np.testing.assert_array_equal(reader.read(0, 20), rows)
    assert files.nbytes == sum(item.stat().st_size for item in (tmp_path / "array").glob("[0-9]*")) == 21 * 12


def test_pages_are_let_go_and_views_of_them_stay_sound(tmp_path, monkeypatch):
    limit, rows = 2**21, 3000
    own = Resident(limit)
    monkeypatch.setattr("kinoise.data.chunks.RESIDENT", own)
    monkeypatch.setattr("kinoise.data.resident.LOOK_BYTES", 2**18)
    files = ChunkFiles(tmp_path / "array", np.dtype(np.uint8), (4096,), rows, chunk_bytes=2**20)
    files.create()
    truth = np.random.default_rng(0).integers(0, 256, (rows, 4096), np.uint8)
    files.write(0, truth)
    files.complete()
    reader = ChunkReader(tmp_path / "array", np.dtype(np.uint8), (4096,))
    kept, before, most = reader.read(0, 100), file_bytes(), 0
    for start in range(0, rows, 50):
        np.testing.assert_array_equal(reader.gather(np.arange(start, start + 50)), truth[start : start + 50])
        most = max(most, file_bytes() - before)
    assert most < 2 * limit < truth.nbytes
    np.testing.assert_array_equal(kept, truth[:100])
