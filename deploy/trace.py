"""A trace: everything that a run's controller was told and everything that it did, in order, in one file.

The file is MAGIC, then frames: length and CRC-32 (little-endian, 4 bytes each), then a message of `wire`. The first frame is
the header, the others hold `{"events": [[kind, value], ...]}`, the last `{"end": {...}}`; a file without it was cut short and
holds what was written up to its last whole frame. Pictures lie in it as they are: compressing them would take a core from
planning.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np

from ..files import disk_errors
from ..spec import KinoiseError
from ..wire import ARRAY, DTYPES, WireError, pack, unpack
from .records import RECORDS

MAGIC = b"kinoise trace 1\n"
FRAME = struct.Struct("<II")
FRAME_BYTES, FRAME_EVENTS = 1 << 20, 512
"""At which a frame is written, so that no single one keeps the interpreter for long."""
EVERY_S = 0.1
"""A killed run's trace lacks no more than this."""
SMALL = 1 << 12
BACKLOG = 256 << 20
OVERHEAD = 200
"""Bytes that an event takes in memory beside its arrays, roughly."""


class TraceError(KinoiseError):
    """A file that is no trace, or a damaged one."""


class TraceWriter:
    """Writes events from a thread of its own: adding one takes a microsecond.

    When the disk can't keep up, or fails, the trace ends there: `close` says so, and how many events it lacks.

    Args:
        path: replaced if it exists.
        header: what there is to know about the run.
        backlog: bytes that may wait to be written.

    Raises:
        KinoiseError: `path` can't be written.
    """

    def __init__(self, path: Path, header: dict[str, Any], *, backlog: int = BACKLOG) -> None:
        self.path, self.trouble = path, ""
        self._events: deque[tuple[str, Any, int]] = deque()
        self._added, self._written, self._bytes = 0, 0, 0  # events of this run, events in the file, bytes of the file
        self._put, self._taken, self._backlog = 0, 0, backlog  # bytes, each counted by one thread alone
        self._over = threading.Event()
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb")
            self._file.write(MAGIC)
            self._frame([pack(header)])
        self._thread = threading.Thread(target=self._work, name="trace", daemon=True)
        self._thread.start()

    def add(self, kind: str, value: Any = None, size: int = 0) -> None:
        """Adds an event, from one thread alone. `value` is what `wire.pack` takes, of `size` bytes; it may not change later."""
        self._added += 1
        if self.trouble:
            return
        if self._put - self._taken > self._backlog:
            self.trouble = f"the disk could not keep up: more than {self._backlog >> 20} MiB waited to be written"
            return
        self._put += size + OVERHEAD
        self._events.append((kind, value, size))

    def close(self) -> dict[str, Any]:
        """Ends the trace. Returns `events` and `bytes` in it, `lost` events, and the `trouble` that lost them ("": none)."""
        self._over.set()
        self._thread.join()
        return {"events": self._written, "bytes": self._bytes, "lost": self._added - self._written, "trouble": self.trouble}

    def _work(self) -> None:
        try:
            with disk_errors(self.path), self._file:
                while not self._over.wait(EVERY_S):
                    self._write()
                self._write()
                end = {"events": self._written, "lost": self._added - self._written, "trouble": self.trouble}
                self._frame([pack({"end": end})])
                os.fsync(self._file.fileno())
        except (KinoiseError, OSError) as error:
            self.trouble = self.trouble or str(error)
            self._events.clear()

    def _write(self) -> None:
        while self._events:
            chunks, count, size = list[bytes | memoryview](), 0, 0
            while self._events and count < FRAME_EVENTS and size < FRAME_BYTES:
                kind, value, more = self._events.popleft()
                chunks += _chunks([kind, value])
                count, size = count + 1, size + more + OVERHEAD
            packer = msgpack.Packer()
            head = packer.pack_map_header(1) + packer.pack("events") + packer.pack_array_header(count)
            self._frame([head, *chunks])
            self._written += count
            self._taken += size

    def _frame(self, chunks: list[bytes | memoryview]) -> None:
        crc = 0
        for chunk in chunks:
            crc = zlib.crc32(chunk, crc)
        chunks = [FRAME.pack(sum(map(len, chunks)), crc), *chunks]
        for chunk in chunks:
            self._file.write(chunk)
        self._file.flush()
        self._bytes = self._file.tell()


def _chunks(value: Any) -> list[bytes | memoryview]:
    """What `pack` writes, in pieces: large arrays as they lie in memory, since copying them would hold the interpreter."""
    packer = msgpack.Packer()
    if isinstance(value, dict):
        inner = [piece for key, item in value.items() for piece in (packer.pack(key), *_chunks(item))]
        return [packer.pack_map_header(len(value)), *inner]
    if isinstance(value, list | tuple):
        return [packer.pack_array_header(len(value)), *(piece for item in value for piece in _chunks(item))]
    if not isinstance(value, np.ndarray) or value.nbytes < SMALL or value.dtype.str not in DTYPES:
        return [pack(value)]
    whole = pack({ARRAY: True, b"data": b"", b"dtype": value.dtype.str, b"shape": value.shape})
    before, after = whole.split(packer.pack(b"data") + packer.pack(b""), 1)
    data = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
    return [before, packer.pack(b"data"), b"\xc6" + len(data).to_bytes(4), data, after]


class TraceReader:
    """A trace, read frame by frame. To be used in a `with` block.

    Args:
        path: what `TraceWriter` wrote.

    Raises:
        TraceError: there is no such file, it is no trace, or its header is damaged.
    """

    def __init__(self, path: Path | str) -> None:
        self.path, self.frames = Path(path), 0
        self.end: dict[str, Any] | None = None
        try:
            self._file: BinaryIO = self.path.open("rb")
        except OSError as error:
            raise TraceError(f"{self.path}: no trace can be read there ({error.strerror})") from error
        try:
            if self._file.read(len(MAGIC)) != MAGIC:
                raise TraceError(f"{self.path} is no trace of this kinoise: expected what `kinoise control trace=true` writes")
            header = self._next()
            if header is None:
                raise TraceError(f"{self.path} was cut short within its header: nothing of the run is in it")
        except BaseException:
            self._file.close()
            raise
        self.header = header

    def __enter__(self) -> TraceReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def events(self) -> Iterator[tuple[str, Any]]:
        """The events in order; afterwards `end` says how the writing ended, None when it was cut short.

        Raises TraceError where the file is damaged.
        """
        while (frame := self._next()) is not None:
            if "end" in frame:
                if not isinstance(frame["end"], dict) or self._file.read(1):
                    raise TraceError(f"{self.path} is damaged at its end")
                self.end = frame["end"]
                return
            events = frame.get("events")
            if not isinstance(events, list):
                raise TraceError(f"{self.path}: frame {self.frames} holds no events: it is damaged")
            for event in events:
                if not isinstance(event, list) or len(event) != 2 or not isinstance(event[0], str):
                    raise TraceError(f"{self.path}: frame {self.frames} holds something that is no event: it is damaged")
                yield event[0], event[1]

    def _next(self) -> dict[str, Any] | None:
        """The next frame; None at the end of the file, also in the middle of a frame."""
        head = self._file.read(FRAME.size)
        if len(head) < FRAME.size:
            return None
        length, crc = FRAME.unpack(head)
        if length > RECORDS.message:
            raise TraceError(f"{self.path}: frame {self.frames} claims {length} bytes: it is damaged")
        data = self._file.read(length)
        if len(data) < length:
            return None
        if zlib.crc32(data) != crc:
            raise TraceError(f"{self.path}: frame {self.frames} is damaged: its checksum is not that of its bytes")
        self.frames += 1
        try:
            return unpack(data, RECORDS)
        except WireError as error:
            raise TraceError(f"{self.path}: frame {self.frames - 1} is damaged: {error}") from error
