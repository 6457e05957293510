"""How much of the mapped files counts as this process's memory: bounded, so that data may be larger than the machine's.

A page of a mapped file that was looked at stays in the process's page tables, and in its resident set, until the kernel is
short of memory. Dropping the tables' entries leaves the page itself in the kernel's cache, which all processes share: the next
look costs a minor fault, no reading. MADV_DONTNEED of madvise(2); nothing is lost, as the maps are of files and read-only.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

RESIDENT_BYTES = 2**29
LOOK_BYTES = 2**23
"""Between two looks at the resident set. It can't be reckoned: a fault maps from 4 KiB to 2 MiB, as the kernel likes."""


class Resident:
    """Lets go of all maps each time that more than `limit` bytes of files have become resident.

    Args:
        limit: bytes. Maps of less than an eighth of it are left alone: arrays of states, where faults cost more than copies.
    """

    def __init__(self, limit: int = RESIDENT_BYTES) -> None:
        self.limit = limit
        self._maps: WeakKeyDictionary[object, Sequence[mmap.mmap]] = WeakKeyDictionary()
        self._unseen = self._least = 0
        self._lock = threading.Lock()

    def watch(self, owner: object, maps: Sequence[mmap.mmap]) -> None:
        """Minds what is told of `owner` from now on, for as long as it lives."""
        if sum(map(len, maps)) > self.limit // 8:
            with self._lock:
                self._least = self._least or file_bytes()
                self._maps[owner] = maps

    def touched(self, owner: object, nbytes: int) -> None:
        """To be told of each read through the owner's maps. Views stay valid when their pages are let go."""
        if owner not in self._maps:
            return
        with self._lock:
            self._unseen += nbytes
            if self._unseen < LOOK_BYTES:
                return
            self._unseen = 0
            if file_bytes() < self._least + self.limit:
                return
            for maps in list(self._maps.values()):
                for item in maps:
                    item.madvise(mmap.MADV_DONTNEED)
            self._least = file_bytes()


def file_bytes() -> int:
    """What of files, libraries included, is resident in this process: proc(5), /proc/pid/statm, `shared`."""
    return int(Path("/proc/self/statm").read_bytes().split()[2]) * mmap.PAGESIZE


RESIDENT = Resident()
"""This process's."""
