"""Blosc's chunks, whose header is looked at first.

C-Blosc 1 takes as many bytes as the header says that there are, however few were handed to it: a chunk that was cut short makes
it read beyond them, and the process may end. Fuzzing found such a chunk of 41 bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numcodecs
import zarr
from numcodecs.compat import ensure_contiguous_ndarray
from zarr.codecs import BloscCodec
from zarr.registry import register_codec

HEADER = struct.Struct("<4B3I")
"""Version, its codec's, flags, bytes of a number; bytes unpacked, of a block, and packed with this header."""


def check(chunk: Any) -> None:
    """Raises ValueError for a chunk that doesn't have as many bytes as it says."""
    there = ensure_contiguous_ndarray(chunk).view("u1")
    said = HEADER.unpack(there[: HEADER.size].tobytes())[-1] if len(there) >= HEADER.size else None
    if said != len(there):
        raise ValueError(
            f"a blosc chunk of {'no length' if said is None else f'{said} bytes'}, of which {len(there)} are there"
        )


class Blosc(numcodecs.Blosc):
    """numcodecs', of version 2 of the format."""

    def decode(self, buf: Any, out: Any = None) -> Any:
        check(buf)
        return super().decode(buf, out)


class Codec(BloscCodec):
    """zarr's, of version 3 of the format."""

    def _decode_sync(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        check(chunk_bytes.as_numpy_array())
        return super()._decode_sync(chunk_bytes, chunk_spec)

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        check(chunk_bytes.as_numpy_array())
        return await super()._decode_single(chunk_bytes, chunk_spec)


NAME = f"{Codec.__module__}.{Codec.__qualname__}"
numcodecs.register_codec(Blosc, "blosc")
register_codec("blosc", Codec, qualname=NAME)


@contextmanager
def looked_at() -> Iterator[None]:
    """Arrays that are opened in the block are decoded by these."""
    with zarr.config.set({"codecs.blosc": NAME}):
        yield
