"""Writing diffusion_policy's zarr layout: zarr v2 with zstd, into a folder or a zip, an episode at a time."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ...files import new_directory, write_large_file
from ...spec import KinoiseError, Spec
from ..base import Episode, Extra, features
from ..check import check_episode, check_meta, check_spec, extras_of, label
from ..long_texts import apart

FORMAT = 1
ATTRIBUTE = "kinoise"
CHUNK_BYTES = 2**20
BYTES = {"id": "zstd", "level": 3}
NUMBERS = {"id": "blosc", "cname": "zstd", "clevel": 3, "shuffle": 1, "blocksize": 0}
"""As zarr 2 wrote them: what numcodecs' `get_config` adds today, its older versions refuse. Of Blosc's lz4 and zstd at levels 1
to 5 with and without shuffling, and zstd alone, these made Push-T's pictures and key points smallest but for 6 %, and are read
at 1 GB/s and more on one core."""
Put = Callable[[str, bytes], object]


def write_replay(
    path: Path,
    spec: Spec,
    episodes: Iterable[Episode],
    *,
    meta: Mapping[str, Any] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> None:
    """Streams `episodes` into a new store, a zip when `path` ends in `.zip`; see `Format.write`.

    Beside an episode, at most a chunk of each array is in memory.
    """
    path = Path(path)
    check_spec(spec)
    check_meta(meta)
    packed = path.suffix.lower() == ".zip"
    if path.exists() and (packed or not path.is_dir() or any(path.iterdir())):
        raise KinoiseError(f"{path} exists already. Choose another path, or remove it first.")
    if packed:
        write_large_file(path, lambda temporary: _zipped(temporary, path, spec, episodes, meta or {}, chunk_bytes))
        return
    with new_directory(path) as temporary:
        _written(partial(_put, temporary), path, spec, episodes, meta or {}, chunk_bytes)


def _zipped(file: Path, path: Path, spec: Spec, episodes: Iterable[Episode], meta: Mapping[str, Any], chunk_bytes: int) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _written(partial(_put_into, archive), path, spec, episodes, meta, chunk_bytes)


def _put(root: Path, name: str, data: bytes) -> None:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def _put_into(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name)  # without the time of day: the same episodes give the same file
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, data)


def _written(put: Put, path: Path, spec: Spec, episodes: Iterable[Episode], meta: Mapping[str, Any], chunk_bytes: int) -> None:
    wanted = features(spec)
    columns = {key: _Column(put, f"data/{key}", item.dtype, item.shape, chunk_bytes) for key, item in wanted.items()}
    beside: dict[str, _Column] = {}
    extras: dict[str, Extra] = {}
    texts: dict[str, int] = {}
    entries: list[dict[str, Any]] = []
    ends: list[int] = []
    for index, episode in enumerate(episodes):
        if index == 0:
            extras = extras_of(episode)
        steps = check_episode(spec, extras, episode, label(index, episode))
        if index == 0:
            beside = {key: _Column(put, f"data/{key}", *extra, chunk_bytes) for key, extra in extras.items()}
        for key, column in columns.items():
            column.append(episode.arrays[key])
        for key, column in beside.items():
            column.append(episode.extras[key])
        ends.append((ends[-1] if ends else 0) + steps)
        entries.append({"text": texts.setdefault(episode.instruction, len(texts)), "info": dict(episode.info)})
        del episode  # so that it is gone before the next one is made
    if not entries:
        raise KinoiseError(f"no episodes to write to {path}: a store needs at least one.")
    last = _Column(put, "meta/episode_ends", np.dtype(np.int64), (), chunk_bytes)
    last.append(np.array(ends, np.int64))
    for column in (*columns.values(), *beside.values(), last):
        column.close()
    held = {key: {"dtype": extra.dtype.name, "shape": list(extra.shape)} for key, extra in extras.items()}
    header = {"format": FORMAT, "kinoise": __version__, "spec": spec.to_json(), "texts": list(texts)}
    short, long = apart(entries)
    foreign, rest = _apart(meta)
    for group in ("", "data/", "meta/"):
        put(f"{group}.zgroup", _json({"zarr_format": 2}))
    put(".zattrs", _json({**foreign, ATTRIBUTE: {**header, "episodes": short, "long": long, "extras": held, "meta": rest}}))


def _apart(meta: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The attributes that a zarr store brought, which go back where they were, and the rest of `meta`."""
    told = meta.get("zarr")
    attributes = told.get("attributes") if isinstance(told, Mapping) else None
    if not isinstance(told, Mapping) or not isinstance(attributes, Mapping) or not attributes or ATTRIBUTE in attributes:
        return {}, dict(meta)
    others = {key: value for key, value in told.items() if key != "attributes"}
    rest = {key: value for key, value in meta.items() if key != "zarr"}
    return dict(attributes), {**rest, **({"zarr": others} if others else {})}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


class _Column:
    """Appends rows to a new array, a chunk of whole rows at a time; zarr pads the last chunk."""

    def __init__(self, put: Put, name: str, dtype: np.dtype, shape: tuple[int, ...], chunk_bytes: int) -> None:
        from numcodecs import get_codec

        self._put, self.name, self.rows = put, name, 0
        self._dtype, self._shape = dtype.newbyteorder("<"), shape
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        self._block = np.zeros((max(1, chunk_bytes // size), *shape), self._dtype)
        self._compressor = BYTES if dtype.itemsize == 1 else NUMBERS
        self._codec = get_codec(self._compressor)

    def append(self, rows: np.ndarray) -> None:
        while len(rows):
            filled = self.rows % len(self._block)
            part, rows = rows[: len(self._block) - filled], rows[len(self._block) - filled :]
            self._block[filled : filled + len(part)] = part
            self.rows += len(part)
            if self.rows % len(self._block) == 0:
                self._flush(self.rows // len(self._block) - 1)

    def close(self) -> None:
        index, filled = divmod(self.rows, len(self._block))
        if filled:
            self._block = self._block[:filled] if index == 0 else self._block
            self._block[filled:] = 0
            self._flush(index)
        metadata = {
            "zarr_format": 2,
            "shape": [self.rows, *self._shape],
            "chunks": list(self._block.shape),
            "dtype": self._dtype.str,
            "order": "C",
            "compressor": self._compressor,
            "filters": None,
            "fill_value": 0,
        }
        self._put(f"{self.name}/.zarray", _json(metadata))

    def _flush(self, index: int) -> None:
        name = ".".join([str(index), *("0" for _ in self._shape)])
        packed: Any = self._codec.encode(np.ascontiguousarray(self._block))
        self._put(f"{self.name}/{name}", bytes(packed))
