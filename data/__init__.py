"""Demonstrations: stores in the registered file formats, training windows, statistics."""

from __future__ import annotations

from pathlib import Path

from ..spec import KinoiseError
from .base import Episode, EpisodeStore
from .native import NativeStore, write_store

FORMATS: dict[str, type[EpisodeStore]] = {"zarr": NativeStore}


def open_store(path: Path | str, format: str | None = None) -> EpisodeStore:
    """The demonstrations at `path`, in the format named or, without one, in the first that recognises it.

    Raises KinoiseError when there is nothing at `path`, no format fits, or the store is damaged.
    """
    path = Path(path)
    if format is not None and format not in FORMATS:
        raise KinoiseError(f"format '{format}' is unknown; the formats are {', '.join(FORMATS)}.")
    if not path.exists():
        raise KinoiseError(f"{path} does not exist. Check the path, or record demonstrations with kinoise collect out={path}.")
    if format is not None:
        return FORMATS[format](path)
    for member in FORMATS.values():
        if member.recognises(path):
            return member(path)
    raise KinoiseError(
        f"{path} is no data set in a format that kinoise reads ({', '.join(FORMATS)}). "
        f"Check the path, or record demonstrations with kinoise collect."
    )


__all__ = ["FORMATS", "Episode", "EpisodeStore", "open_store", "write_store"]
