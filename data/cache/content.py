"""What a data set's files hold, as one number; reading 20 GB again only because they are opened again is avoided."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

from ...files import read_json, write_json
from ...spec import KinoiseError

BLOCK_BYTES = 2**24
SETTLED_NS = 2 * 10**9
SKIPPED = {".cache", ".git"}
"""Folders in a source that tools keep for themselves, beside the data."""


def source_files(path: Path) -> dict[str, Path]:
    """Every file of a source by its name relative to it, in order; linked folders are followed, each once."""
    if not path.is_dir():
        return {path.name: path}
    found, seen = {}, {path.resolve()}
    for folder, inner, names in os.walk(path, followlinks=True):
        entered = [Path(folder, name) for name in sorted(inner) if name not in SKIPPED]
        inner[:] = [item.name for item in entered if (real := item.resolve()) not in seen and not seen.add(real)]
        for name in names:
            found[Path(folder, name).relative_to(path).as_posix()] = Path(folder, name)
    return dict(sorted(found.items()))


def content(path: Path, memory: Path, *, workers: int, advance: Callable[[int, int], None] = lambda done, total: None) -> str:
    """SHA-256 over the names, sizes and bytes of the files at `path`: the same wherever they lie.

    Args:
        memory: a JSON file in which the digests of files are kept, by path, with what tells that a file is still the same
            (size, time of its change, inode). Read and written; one that is damaged is as good as none.
        workers: threads that read.
        advance: called with bytes read and bytes to read.

    Raises:
        KinoiseError: a file can't be read, or changes meanwhile.
    """
    files = source_files(path)
    now = {name: identity(file) for name, file in files.items()}
    known = _recalled(memory)
    digests = {}
    for name, file in files.items():
        kept = known.get(str(file.resolve()))
        if kept is not None and kept[:-1] == now[name]:
            digests[name] = kept[-1]
    unread = {name: file for name, file in files.items() if name not in digests}
    fresh = _read({name: (file, now[name][0]) for name, file in unread.items()}, workers, advance)
    for name, file in unread.items():
        if identity(file) != now[name]:
            raise KinoiseError(f"{file} changed while it was read. Wait until it is written, then run the command again.")
    # A file that was written just now may be written again within one tick of the file system's clock.
    settled = time.time_ns() - SETTLED_NS
    keep = {str(unread[name].resolve()): [*now[name], digest] for name, digest in fresh.items()}
    keep = {name: item for name, item in keep.items() if max(item[1], item[2]) < settled}
    if keep:
        write_json(memory, {**known, **keep})
    digests |= fresh
    whole = hashlib.sha256()
    for name in files:
        whole.update(f"{name}\0{now[name][0]}\0{digests[name]}\n".encode(errors="surrogateescape"))
    return whole.hexdigest()


def identities(path: Path) -> dict[str, list[int]]:
    """Of every file of a source, by name: as long as they stay the same, so do the files."""
    return {name: identity(file) for name, file in source_files(path).items()}


def title(path: Path) -> str:
    """What is made of a source is called after it: the beginning of its name, with room for more in a file's 255 bytes."""
    return os.fsencode(path.resolve().name)[:100].decode(errors="ignore")


def identity(file: Path) -> list[int]:
    """Size, times of the last change to the bytes and to the inode (which no tool can set back), inode."""
    try:
        found = file.stat()
    except OSError as error:
        raise KinoiseError(f"{file} cannot be read ({error.strerror}). Restore it, or remove what points to it.") from error
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _recalled(memory: Path) -> dict[str, list[Any]]:
    try:
        found = read_json(memory)
    except KinoiseError:
        return {}
    return (
        found if isinstance(found, dict) and all(isinstance(item, list) and len(item) == 5 for item in found.values()) else {}
    )


def _read(files: dict[str, tuple[Path, int]], workers: int, advance: Callable[[int, int], None]) -> dict[str, str]:
    """For each file the digest of its blocks' digests: blocks of one large file are read side by side, too."""
    total, done = sum(size for _, size in files.values()), 0
    blocks = [(name, file, start) for name, (file, size) in files.items() for start in range(0, max(1, size), BLOCK_BYTES)]
    result: dict[str, str] = {}

    def digested() -> Iterator[tuple[str, bytes]]:
        nonlocal done
        with ThreadPoolExecutor(workers) as pool:
            try:
                for (name, _, _), (digest, size) in zip(blocks, pool.map(_digest, blocks), strict=True):
                    done += size
                    advance(done, total)
                    yield name, digest
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    for name, parts in groupby(digested(), key=lambda item: item[0]):
        result[name] = hashlib.sha256(b"".join(digest for _, digest in parts)).hexdigest()
    return result


def _digest(block: tuple[str, Path, int]) -> tuple[bytes, int]:
    _, file, start = block
    try:
        with file.open("rb") as opened:
            opened.seek(start)
            data = opened.read(BLOCK_BYTES)
    except OSError as error:
        raise KinoiseError(f"{file} cannot be read ({error.strerror}). Check its permissions and the disk.") from error
    return hashlib.sha256(data).digest(), len(data)
