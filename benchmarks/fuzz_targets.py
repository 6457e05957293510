"""What `benchmarks.fuzz` gives bytes to: kinoise's decoders, each with sound inputs to begin from.

An input of most targets is a byte, which says what of a sound data set or checkpoint is replaced, and then the replacement: so
a mutation gets past whatever is read before. Whatever comes, a decoder may raise KinoiseError and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import zipfile
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from kinoise.data import FORMATS, Reading
from kinoise.data.base import episode as whole
from kinoise.data.robomimic import probe
from kinoise.spec import KinoiseError
from kinoise.wire import Limits, pack, unpack

from .fuzz_checkpoints import CHECKPOINTS
from .fuzz_inputs import SPEC, Folder, Run, Target, demonstrations, replaced

READING = Reading(rate=10.0)


def ignore(problem: str) -> None:
    """A `Report` that goes on: what lies behind the first problem is to be reached too."""


def read_store(path: Path, name: str) -> None:
    """Opens a data set as training does and decodes its first episode."""
    store = FORMATS[name](path, READING, ignore)
    whole(store, 0)


def _wire(folder: Path) -> Run:
    small = Limits(message=1 << 14, array=1 << 12, items=64, depth=4, text=256)

    def one(data: bytes) -> None:
        with suppress(KinoiseError):
            unpack(data, small)
        found = unpack(data)
        assert unpack(pack(found)).keys() == found.keys(), "what was taken can't be sent on"

    return one


def _wire_seeds(folder: Path) -> list[bytes]:
    arrays = {name: np.zeros((2, 3), name) for name in ("float32", "float64", "uint8", "int32", "int64", "bool")}
    nested = {"a": {"b": [1, -1, 2.5, None, True, "text"]}, "scalar": np.float32(2), "empty": np.zeros((0, 4), np.float32)}
    return [pack(arrays), pack(nested), pack({"state": np.zeros(5, np.float32), "prompt": "go", "elapsed": 3, "id": "x"})]


def _zarr_folder(folder: Path) -> Folder:
    path = folder / "store"
    if not path.exists():
        FORMATS["zarr"].write(path, SPEC, demonstrations())
    arrays = ("data/action", "data/state", "meta/episode_ends")
    chunks = [next(item for item in (path / name).iterdir() if item.name[0].isdigit()) for name in arrays]
    names = [".zgroup", ".zattrs", *(f"{name}/.zarray" for name in arrays)]
    return Folder(path, [*names, *(str(item.relative_to(path)) for item in chunks)])


VERSION_3 = {
    "zarr_format": 3,
    "node_type": "array",
    "shape": [15, 2],
    "data_type": "float32",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [15, 2]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
    "fill_value": 0,
}


def _zarr_seeds(folder: Path) -> list[bytes]:
    store = _zarr_folder(folder)
    archive = folder / "seed.zip"
    FORMATS["zarr"].write(archive, SPEC, demonstrations(1))
    count = len(store.files)
    return [*store.seeds(), bytes([count]) + json.dumps(VERSION_3).encode(), bytes([count + 1]) + archive.read_bytes()]


def _zarr(folder: Path) -> Run:
    """A file of a version 2 store; the metadata of a version 3 array beside its; a whole zip."""
    store, archive, newer = _zarr_folder(folder), folder / "one.zip", folder / "store" / "data" / "newer"
    one_file = replaced(store, lambda: read_store(store.path, "zarr"))
    count = len(store.files)

    def one(data: bytes) -> None:
        kind = data[0] % (count + 2) if data else 0
        if kind < count:
            one_file(bytes([kind]) + data[1:])
        elif kind == count:
            (newer / "c/0").mkdir(parents=True, exist_ok=True)
            (newer / "c/0/0").write_bytes(bytes(15 * 2 * 4))
            (newer / "zarr.json").write_bytes(data[1:])
            try:
                read_store(store.path, "zarr")
            finally:
                shutil.rmtree(newer)
        else:
            archive.write_bytes(data[1:])
            if FORMATS["zarr"].recognises(archive) or zipfile.is_zipfile(archive):
                read_store(archive, "zarr")

    return one


def _zarr_in_one_thread() -> None:
    """Has zarr do in this thread what it hands to others: handing over costs more than reading arrays of a few bytes."""
    from zarr.api import synchronous
    from zarr.core import array, group, sync

    loop = asyncio.new_event_loop()

    def here(coroutine: Coroutine[Any, Any, Any], *_: Any, **__: Any) -> Any:
        return loop.run_until_complete(coroutine)

    async def at_once(function: Callable[..., Any], *args: Any, **settings: Any) -> Any:
        return function(*args, **settings)

    for module in (sync, synchronous, array, group):
        module.sync = here  # type: ignore[assignment]
    asyncio.to_thread = at_once  # type: ignore[assignment]


def _hdf5_seeds(folder: Path) -> list[bytes]:
    ours, packed, plain = folder / "ours.hdf5", folder / "packed.hdf5", folder / "plain.hdf5"
    FORMATS["robomimic"].write(ours, SPEC, demonstrations(2))
    with h5py.File(ours) as file, h5py.File(packed, "w") as copy:  # without the room that the writer leaves: mutations are few
        for name in file:
            file.copy(name, copy)
    with h5py.File(plain, "w", libver="latest") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": 20}})
        for number in range(2):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = 4
            demo["actions"] = np.zeros((4, 2))
            demo["obs/state"] = np.zeros((4, 3))
        file["mask/train"] = np.array([b"demo_0"])
    return [packed.read_bytes(), plain.read_bytes()]


def _hdf5(folder: Path) -> Run:
    """With the process that walks files first, which is given one second of the processor in place of five."""
    path = folder / "one.hdf5"
    probe.BASE_S = 1.0

    def one(data: bytes) -> None:
        path.unlink(missing_ok=True)  # HDF5 knows a file that is open by its inode
        path.write_bytes(data)
        read_store(path, "robomimic")

    return one


def _lerobot_folders(folder: Path) -> list[Folder]:
    new, old = folder / "v3", folder / "v21"
    if not new.exists():
        FORMATS["lerobot"].write(new, SPEC, demonstrations())
        _version_21(new, old)
    v3 = [str(item.relative_to(new)) for item in sorted(new.rglob("*")) if item.is_file()]
    return [Folder(new, v3), Folder(old, ["meta/info.json", "meta/episodes.jsonl", "meta/tasks.jsonl"])]


def _version_21(new: Path, old: Path) -> None:
    """The same table of episodes in the older layout; all of them in one file of rows."""
    info = json.loads((new / "meta/info.json").read_text())
    rows = next((new / "data").rglob("*.parquet"))
    (old / "meta").mkdir(parents=True)
    shutil.copy(rows, old / "rows.parquet")
    info |= {"codebase_version": "v2.1", "data_path": "rows.parquet"}
    (old / "meta/info.json").write_text(json.dumps(info))
    lengths = [len(item.arrays["action"]) for item in demonstrations()]
    texts = [item.instruction for item in demonstrations()]
    lines = [{"episode_index": n, "tasks": [texts[n]], "length": length} for n, length in enumerate(lengths)]
    (old / "meta/episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tasks = [{"task_index": n, "task": text} for n, text in enumerate(dict.fromkeys(texts))]
    (old / "meta/tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in tasks))


def _lerobot_seeds(folder: Path) -> list[bytes]:
    found, first = [], 0
    for item in _lerobot_folders(folder):
        found += [bytes([first + seed[0]]) + seed[1:] for seed in item.seeds()]
        first += len(item.files)
    return found


def _lerobot(folder: Path) -> Run:
    folders = _lerobot_folders(folder)
    runs = [replaced(item, lambda path=item.path: read_store(path, "lerobot")) for item in folders]
    first = len(folders[0].files)
    count = first + len(folders[1].files)

    def one(data: bytes) -> None:
        if data:
            kind = data[0] % count
            runs[kind >= first](bytes([kind - first * (kind >= first)]) + data[1:])

    return one


def _native_folder(folder: Path) -> Folder:
    path = folder / "native"
    if not path.exists():
        FORMATS["kinoise"].write(path, SPEC, demonstrations())
    return Folder(path, ["kinoise.json", *(f"{name}/.zarray" for name in ("data/action", "data/state", "meta/episode_ends"))])


def _native(folder: Path) -> Run:
    store = _native_folder(folder)
    return replaced(store, lambda: read_store(store.path, "kinoise"))


TARGETS = {
    "wire": Target(_wire_seeds, _wire, json=False),
    "native": Target(lambda folder: _native_folder(folder).seeds(), _native),
    "zarr": Target(_zarr_seeds, _zarr, alone=_zarr_in_one_thread),
    "hdf5": Target(_hdf5_seeds, _hdf5, json=False),
    "parquet": Target(_lerobot_seeds, _lerobot),
    **CHECKPOINTS,
}
