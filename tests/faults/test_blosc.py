"""Blosc's chunks that say more than they hold: its library would read what isn't theirs."""

from __future__ import annotations

import struct
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr
from kinoise.data import FORMATS, Reading
from kinoise.data.base import episode
from kinoise.spec import KinoiseError

STEPS = 600


def store(path: Path, version: int, sharded: bool = False) -> Path:
    group = zarr.open_group(path, mode="w", zarr_format=version)  # type: ignore[arg-type]
    packed = numcodecs.Blosc("lz4", 5, 1) if version == 2 else zarr.codecs.BloscCodec(cname="lz4")
    shards = {"shards": (STEPS, 2)} if sharded else {}
    actions = group.create_array("data/action", shape=(STEPS, 2), dtype="f4", chunks=(200, 2), compressors=packed, **shards)
    actions[:] = np.arange(2.0 * STEPS, dtype="f4").reshape(STEPS, 2)
    ends = group.create_array("meta/episode_ends", shape=(1,), dtype="i8", chunks=(1,), compressors=None)
    ends[:] = STEPS
    return path


def chunk(path: Path) -> Path:
    files = [item for item in (path / "data/action").rglob("*") if item.is_file() and item.suffix != ".json"]
    return max(files, key=lambda item: item.stat().st_size)


@pytest.mark.parametrize(("version", "sharded"), [(2, False), (3, False), (3, True)])
def test_a_chunk_that_says_more_bytes_than_there_are_is_refused(tmp_path: Path, version: int, sharded: bool) -> None:
    path = store(tmp_path / "store", version, sharded)
    whole = episode(FORMATS["zarr"](path, Reading(rate=10.0)), 0).arrays["action"]
    np.testing.assert_array_equal(whole, np.arange(2.0 * STEPS).reshape(STEPS, 2))
    file = chunk(path)
    data = bytearray(file.read_bytes())
    header = data.index(b"\x02\x01")
    data[header + 12 : header + 16] = struct.pack("<I", 2**30)
    file.write_bytes(data)
    with pytest.raises(KinoiseError, match=r"a blosc chunk of 1073741824 bytes, of which \d+ are there"):
        episode(FORMATS["zarr"](path, Reading(rate=10.0)), 0)


def test_a_chunk_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    path = store(tmp_path / "store", 2)
    file = chunk(path)
    for size in (8, 20, file.stat().st_size - 1):
        file.write_bytes(file.read_bytes()[:size])
        with pytest.raises(KinoiseError, match="a blosc chunk of"):
            episode(FORMATS["zarr"](path, Reading(rate=10.0)), 0)
