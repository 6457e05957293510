"""A zarr store whose chunks all have files, as `arrays` found: zarr would read one that vanished since as the fill value."""

from __future__ import annotations

from pathlib import Path

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, WrapperStore, ZipStore

METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")


class Whole(WrapperStore[Store]):
    """Raises FileNotFoundError for a chunk without a file."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        found = await super().get(key, prototype, byte_range)
        if found is None and not key.endswith(METADATA):
            raise FileNotFoundError(f"its file {key} is gone")
        return found


def open_whole(path: Path) -> Whole:
    """The folder or zip at `path`, to be read."""
    return Whole(LocalStore(path, read_only=True) if path.is_dir() else ZipStore(path, mode="r"))
