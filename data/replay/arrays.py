"""What the files of a zarr store say before anything is decoded: its arrays, their codecs, which chunks are there.

Specifications: https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html and .../v3/core/index.html
"""

from __future__ import annotations

import itertools
import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...files import MALFORMED
from ...spec import KinoiseError

V2, V3 = ".zarray", "zarr.json"
GROUPS = (".zgroup", V3)
METADATA = (*GROUPS, V2, ".zattrs")
NUMBERS = "biuf"
BROKEN_ZIP = (zipfile.BadZipFile, OSError, zlib.error, NotImplementedError, RuntimeError, ValueError, EOFError, struct.error)
"""What zipfile raises for archives that are damaged."""
METADATA_BYTES = 2**28
"""Of all arrays and groups of a zip together, unpacked: a small zip may hold any number of zeros."""
MISSING_CHUNKS = 10**6
"""More can't be missing from a store that was ever one: going through what damaged metadata claim would not end."""
EMPTY_CHUNKS = "zarr.config.set({'array.write_empty_chunks': True})"


@dataclass(frozen=True)
class ZarrArray:
    """An array of numbers in a zarr store, by its metadata.

    Args:
        name: its path in the store.
        dtype: in this machine's byte order.
        missing: chunks that have no file, by their place along the first axis: (first row, one past the last, file name).
    """

    name: str
    version: int
    shape: tuple[int, ...]
    dtype: np.dtype
    missing: tuple[tuple[int, int, str], ...]


class ZarrFiles:
    """The files of a zarr store, in a folder or in a zip, where it may lie in a folder of its own.

    Raises KinoiseError for a zip that can't be read.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.root = path, ""
        self._zip: list[str] | None = None
        self._said: dict[str, bytes] = {}
        if path.is_dir():
            return
        try:
            with zipfile.ZipFile(path) as file:
                self._zip = file.namelist()
                said = [item for item in file.infolist() if item.filename.rpartition("/")[2] in METADATA]
                if (size := sum(item.file_size for item in said)) > METADATA_BYTES:
                    raise KinoiseError(f"{path} holds {size} bytes of metadata, expected {METADATA_BYTES} at most.")
                self._said = {item.filename: file.read(item) for item in said}
        except BROKEN_ZIP as error:
            raise KinoiseError(f"{path} is no zip that can be read ({error}): it was cut short. Copy it again.") from error
        tops = [name.rpartition("/")[0] for name in self._zip if name.rpartition("/")[2] in GROUPS]
        self.root = min(tops, key=lambda name: (name.count("/") + bool(name), name), default="")

    def arrays(self, group: str) -> list[str]:
        """The arrays below `group`, at any depth, by their paths in the store."""
        if self._zip is None:
            return sorted(item.relative_to(self.path).as_posix() for item in _array_folders(self.path / group))
        start, top = self._place(f"{group}/"), len(self._place(""))
        places = {name.rpartition("/")[0][top:] for name in self._said if name.startswith(start)}
        return sorted(name for name in places if self._is_array(name))

    def json(self, name: str) -> dict[str, Any] | None:
        """A metadata file; None when it isn't there. Raises KinoiseError when it isn't a JSON object."""
        try:
            data = (self.path / name).read_bytes() if self._zip is None else self._said[self._place(name)]
        except (FileNotFoundError, NotADirectoryError, KeyError):
            return None
        except OSError as error:
            raise KinoiseError(f"{self.path}: {name} can't be read ({error.strerror}). Check its permissions.") from error
        with suppress(ValueError, RecursionError):
            value = json.loads(data)
            if isinstance(value, dict):
                return value
        raise KinoiseError(f"{self.path}: {name} is not a JSON object: it was cut short or edited. Copy the store again.")

    def attributes(self) -> dict[str, Any]:
        """Of the store's root."""
        newer = self.json(V3)
        found = self.json(".zattrs") if newer is None else newer.get("attributes")
        return dict(found) if isinstance(found, dict) else {}

    def array(self, name: str) -> ZarrArray:
        """Raises KinoiseError for what isn't an array of numbers, has codecs that are missing here or would unpickle, or has
        damaged metadata."""
        older, newer = self.json(f"{name}/{V2}"), self.json(f"{name}/{V3}")
        if older is None and newer is None:
            raise KinoiseError(f"{self.path}: {name} is missing: the store is incomplete, or no replay buffer.")
        where = f"{self.path}: {name}"
        try:
            read = _version2(older, where) if older is not None else _version3(newer or {}, where)
        except MALFORMED as error:
            raise KinoiseError(f"{where} has damaged metadata ({error!r}). Copy or write the store again.") from error
        if len(read.chunks) != len(read.shape) or any(size < 1 for size in read.chunks):
            raise KinoiseError(f"{where} has damaged metadata: shape {read.shape} in chunks of {read.chunks}.")
        there = self._chunks(name)
        grid = [-(-size // part) for size, part in zip(read.shape, read.chunks, strict=True)]
        if math.prod(grid) > len(there) + MISSING_CHUNKS:
            raise KinoiseError(f"{where} has damaged metadata: {math.prod(grid)} chunks, but {len(there)} files.")
        missing = []
        # An empty range beside a long one makes no place, but product lists both.
        for place in itertools.product(*map(range, grid)) if all(grid) else ():
            key = read.prefix + read.separator.join(map(str, place)) if place else read.scalar
            if key not in there:
                first = place[0] * read.chunks[0] if place else 0
                missing.append((first, first + (read.chunks[0] if place else 1), key))
        return ZarrArray(name, 2 if older is not None else 3, read.shape, read.dtype, tuple(missing))

    def _is_array(self, name: str) -> bool:
        return self.json(f"{name}/{V2}") is not None or (self.json(f"{name}/{V3}") or {}).get("node_type") == "array"

    def _chunks(self, name: str) -> set[str]:
        if self._zip is None:
            top = str(self.path / name)
            return {
                f"{folder[len(top) + 1 :]}/{file}" if len(folder) > len(top) else file
                for folder, _, files in os.walk(top)
                for file in files
            }
        start = self._place(f"{name}/")
        return {item[len(start) :] for item in self._zip if item.startswith(start)}

    def _place(self, name: str) -> str:
        return f"{self.root}/{name}" if self.root else name


def _array_folders(folder: Path) -> Iterator[Path]:
    """Not the folders inside of an array: they hold chunks, and there may be very many."""
    for item in folder.iterdir() if folder.is_dir() else ():
        if (item / V2).exists() or _says_array(item / V3):
            yield item
        elif item.is_dir():
            yield from _array_folders(item)


def _says_array(file: Path) -> bool:
    """Also of metadata that can't be parsed: whoever reads the array says so."""
    try:
        value = json.loads(file.read_bytes())
    except OSError:
        return False
    except (ValueError, RecursionError):
        return True
    return not isinstance(value, dict) or value.get("node_type") == "array"


def is_replay(path: Path) -> bool:
    """Whether a folder or zip holds a zarr group with `data` in it, or would if it weren't cut short."""
    if path.is_dir():
        return (path / "data").is_dir() and any((top / name).exists() for top in (path, path / "data") for name in GROUPS)
    if not path.is_file():  # a pipe, say, which would be waited for
        return False
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":
                return False
        with zipfile.ZipFile(path) as file:
            names = [f"/{name}" for name in file.namelist()]
    except OSError:
        return False
    except BROKEN_ZIP:
        return path.suffix == ".zip"
    return any(name.endswith(GROUPS) for name in names) and any("/data/" in name for name in names)


@dataclass(frozen=True)
class _Read:
    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: tuple[int, ...]
    separator: str
    prefix: str = ""
    """Before a chunk's place in its key."""
    scalar: str = "0"
    """The key of the only chunk of an array without axes."""


def _version2(value: dict[str, Any], where: str) -> _Read:
    stored = value["dtype"]
    dtype = np.dtype(stored if isinstance(stored, str) else [tuple(item) for item in stored])
    _check_numbers(dtype, where)
    for config in [value.get("compressor"), *(value.get("filters") or [])]:
        if config is not None:
            _check_codec(dict(config), where)
    separator = _separator(value.get("dimension_separator") or ".")
    return _Read(_sizes(value["shape"]), dtype.newbyteorder("="), _sizes(value["chunks"]), separator)


def _version3(value: dict[str, Any], where: str) -> _Read:
    stored = value["data_type"]
    try:
        dtype = np.dtype(stored)
    except TypeError:
        dtype = np.dtype(object)
    _check_numbers(dtype, where)
    _check_codecs(value["codecs"], where)
    grid, keys = value["chunk_grid"], value["chunk_key_encoding"]
    if grid["name"] != "regular":
        raise KinoiseError(f"{where} has a chunk grid '{grid['name']}': expected a regular one. Write it again.")
    plain = keys["name"] == "v2"
    separator = _separator(keys.get("configuration", {}).get("separator", "." if plain else "/"))
    prefix, scalar = ("", "0") if plain else (f"c{separator}", "c")
    return _Read(_sizes(value["shape"]), dtype, _sizes(grid["configuration"]["chunk_shape"]), separator, prefix, scalar)


def _separator(value: Any) -> str:
    if value not in (".", "/"):
        raise ValueError(f"the separator {value!r}, expected '.' or '/'")
    return value


def _sizes(value: Any) -> tuple[int, ...]:
    found = tuple(int(item) for item in value)
    if min(found, default=0) < 0:
        raise ValueError(f"the sizes {found}, expected none below 0")
    return found


def _check_numbers(dtype: np.dtype, where: str) -> None:
    if dtype.kind == "O":
        raise KinoiseError(f"{where} holds Python objects, which are never unpickled: expected numbers. Remove or convert it.")
    if dtype.kind not in NUMBERS or dtype.itemsize > 8:
        raise KinoiseError(f"{where} holds {dtype}: expected numbers of 64 bits at most. Remove or convert it.")


def _check_harmless(codec: str, where: str) -> None:
    if "pickle" in codec:
        raise KinoiseError(f"{where} is stored with the codec '{codec}', which could run any program: nothing is unpickled.")


def _check_codec(config: dict[str, Any], where: str) -> None:
    """Raises KinoiseError for a codec that unpickles, or that this machine lacks."""
    name = str(config["id"])
    _check_harmless(name, where)
    from numcodecs.registry import get_codec

    try:
        if name.startswith("imagecodecs_"):
            from imagecodecs.numcodecs import register_codecs  # type: ignore[import-not-found]

            register_codecs(verbose=False)
        get_codec(dict(config))
    except ImportError as error:
        raise KinoiseError(
            f"{where} is compressed with {name}, which needs imagecodecs. Run: pip install imagecodecs"
        ) from error
    except (ValueError, TypeError) as error:
        raise KinoiseError(f"{where} is compressed with {name}, which isn't to be had here ({error}). Install it.") from error


def _check_codecs(codecs: Any, where: str) -> None:
    from zarr.registry import get_codec_class

    for codec in codecs:
        name = str(codec["name"])
        if "pickle" in name:
            raise KinoiseError(
                f"{where} is stored with the codec '{name}', which could run any program: kinoise never unpickles."
            )
        try:
            get_codec_class(name)
        except (KeyError, ValueError) as error:
            raise KinoiseError(f"{where} is compressed with {name}, which isn't to be had here. Install it.") from error
        inner = codec.get("configuration") or {}
        _check_codecs([*inner.get("codecs", ()), *inner.get("index_codecs", ())], where)
