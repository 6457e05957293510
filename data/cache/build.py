"""A native store made of another store, by several processes, so that a kill loses only the blocks under way.

Every episode's place is known before it is decoded, so that each process writes its rows straight to where they belong. When a
block of episodes is on disk for good, a line of the journal says so; the next attempt goes on with the others.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from ...files import sync, write_json
from ...spec import KinoiseError, Spec
from ..base import EpisodeStore, Extra, features, starts
from ..chunks import ChunkFiles
from ..decoded import DecodedStore
from ..native import CHUNK_BYTES, NativeStore, write_header
from ..stats import statistics
from .spread import Spread, Unfinished

BLOCK_BYTES = 2**26
ALONE_BYTES = 2**26
"""Below this much to write no processes are started: they take longer to come up than the work."""
STATS_FILE = "stats.json"
JOURNAL = "journal"


class Build:
    """The copy of `store` under `folder`: the arrays of `spec` and the extras. Sent to the processes that write it."""

    def __init__(self, store: EpisodeStore, spec: Spec, folder: Path) -> None:
        self.store, self.spec, self.folder = store, spec, folder
        self.first = starts(store.ends)
        images = [key for key, feature in features(spec).items() if feature.kind == "image"]
        numbers = [key for key in features(spec) if key not in images]
        # All numbers of an episode at once, since they often lie together; of the pictures one camera's, for memory's sake.
        self.groups = [(*numbers, *store.extras), *((key,) for key in images)]
        self.arrays: dict[str, Extra] = {key: Extra(item.dtype, item.shape) for key, item in features(spec).items()}
        self.arrays |= store.extras
        places = {key: folder / ("extra" if key in store.extras else "data") / key for key in self.arrays}
        rows = int(store.ends[-1])
        self.files = {key: ChunkFiles(places[key], *item, rows, CHUNK_BYTES) for key, item in self.arrays.items()}

    @property
    def nbytes(self) -> int:
        return sum(item.nbytes for item in self.files.values())

    @property
    def step_bytes(self) -> int:
        return sum(item.row_bytes for item in self.files.values())

    def steps(self, episodes: Sequence[int]) -> int:
        return int((self.store.ends - self.first)[list(episodes)].sum())

    def write(self, block: Sequence[int]) -> None:
        """Decodes these episodes, which follow each other, and returns when they are on disk for good.

        Raises KinoiseError for one that can't be read or isn't what the store says of it, OSError for a full disk.
        """
        for episode in block:
            for keys in self.groups:
                for key, array in self._read(episode, keys).items():
                    self.files[key].write(int(self.first[episode]), array)
        for item in self.files.values():
            item.flush(int(self.first[block[0]]), int(self.store.ends[block[-1]]))

    def _read(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        try:
            arrays = _decoded(self.store, episode, keys)
            for key, array in arrays.items():
                self._check(episode, key, array)
        except KinoiseError as error:
            raise KinoiseError(f"{error} All that are bad are listed by: kinoise inspect {self.store.path}") from error
        return arrays

    def _check(self, episode: int, key: str, array: np.ndarray) -> None:
        dtype, shape = self.arrays[key]
        expected = (int(self.store.ends[episode] - self.first[episode]), *shape)
        where = f"{self.store.path}: '{key}' of episode {self.store.original[episode]}"
        if array.shape != expected or array.dtype != dtype:
            raise KinoiseError(
                f"{where} is {array.dtype}{list(array.shape)}, expected {dtype}{list(expected)}. "
                f"Its metadata and its data disagree: write the data set again."
            )
        if key in features(self.spec) and dtype.kind == "f" and not np.isfinite(array).all():
            step = int(np.argwhere(~np.isfinite(array))[0, 0])
            raise KinoiseError(f"{where} is NaN or infinite at step {step}. Repair or remove the episode.")

    def statistics(self, key: str) -> dict[str, Any]:
        """Those of one feature of the finished copy, as JSON."""
        return statistics(NativeStore(self.folder), keys=[key])[key].to_json()


class Journal:
    """Which episodes are on disk: a line `first last` for each block. A line that was cut short does not count."""

    def __init__(self, file: Path) -> None:
        self.done: set[int] = set()
        self._file = file.open("a+b")
        self._file.seek(0)
        lines, _, torn = self._file.read().rpartition(b"\n")
        self._file.truncate(self._file.tell() - len(torn))
        for line in lines.split(b"\n") if lines else ():
            first, last = map(int, line.split())
            self.done.update(range(first, last + 1))

    def add(self, block: Sequence[int]) -> None:
        self._file.write(b"%d %d\n" % (block[0], block[-1]))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done.update(block)

    def close(self) -> None:
        self._file.close()


def build(store: EpisodeStore, spec: Spec, folder: Path, workers: int, advance: Callable[[str, int, int], None]) -> None:
    """Makes `folder`, which holds nothing or an unfinished copy, a complete copy of `store` with its statistics.

    Args:
        workers: processes, at most.
        advance: called with what is being done, how much of it is done, and of how much.

    Raises:
        KinoiseError: an episode that can't be read.
        Unfinished: too little space for it, a process that died. What is done stays done.
        OSError: the disk is full; likewise.
    """
    job = Build(store, spec, folder)
    _require_space(job)
    for item in job.files.values():
        item.create()
    _sync_folders(folder)
    total, keys = int(store.ends[-1]) * job.step_bytes, list(features(spec))
    found: dict[str, Any] = {}
    with closing(Journal(folder / JOURNAL)) as journal:
        todo = [index for index in range(len(store.ends)) if index not in journal.done]
        left = job.steps(todo) * job.step_bytes
        with Spread(job, workers if total >= ALONE_BYTES else 1) as spread:
            for block, _ in spread.each(Build.write, list(_blocks(job, todo, left, workers))):
                journal.add(block)
                left -= job.steps(block) * job.step_bytes
                advance("decoding", total - left, total)
            _describe(job)
            for key, value in spread.each(Build.statistics, keys):
                found[key] = value
                advance("statistics", len(found), len(keys))
    write_json(folder / STATS_FILE, {key: found[key] for key in keys})  # in whatever order processes were done
    _sync_folders(folder)
    (folder / JOURNAL).unlink()


def _decoded(store: EpisodeStore, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
    if isinstance(store, DecodedStore):
        return store.decode(episode, keys)
    start, stop = int(starts(store.ends)[episode]), int(store.ends[episode])
    return {key: store.read(key, start, stop) for key in keys}


def _blocks(job: Build, todo: Sequence[int], nbytes: int, workers: int) -> Iterator[list[int]]:
    """Runs of episodes, each of at most BLOCK_BYTES and small enough that all processes have some, if there are that many."""
    most = min(BLOCK_BYTES, nbytes // (4 * workers))
    block: list[int] = []
    for episode in todo:
        if block and (episode != block[-1] + 1 or job.steps([*block, episode]) * job.step_bytes > most):
            yield block
            block = []
        block.append(episode)
    if block:
        yield block


def _require_space(job: Build) -> None:
    there = sum(file.stat().st_blocks * 512 for file in job.folder.rglob("*") if file.is_file())
    need, free = job.nbytes - there, shutil.disk_usage(job.folder).free
    if need > free:
        raise Unfinished(
            f"the decoded copy of {job.store.path} takes {need / 1e9:.1f} GB more, but the disk of {job.folder.parent} has "
            f"{free / 1e9:.1f} GB. Free some space, or put it on another disk with cache=FOLDER."
        )


def _describe(job: Build) -> None:
    """What makes a store of the arrays. Instructions that no episode has any more are left out."""
    store = job.store
    used, text = np.unique(store.text, return_inverse=True)
    ends = ChunkFiles(job.folder / "meta" / "episode_ends", np.dtype(np.int64), (), len(store.ends), CHUNK_BYTES)
    ends.create()
    ends.write(0, store.ends)
    ends.flush(0, len(store.ends))
    for item in (*job.files.values(), ends):
        item.complete()
    episodes = [{"text": number, "info": info} for number, info in zip(text.tolist(), store.info, strict=True)]
    write_header(job.folder, job.spec, [store.texts[index] for index in used.tolist()], episodes, store.extras, store.meta)


def _sync_folders(folder: Path) -> None:
    for item in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync(item)
