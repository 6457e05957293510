"""A process that walks HDF5 files before kinoise does: run by probe.py, which gives it a word that its answers begin with.

In a line come a file's path and a limit, in a line goes an answer. It stands alone, since h5py is all it takes; importing
kinoise would take seconds.
"""

from __future__ import annotations

import json
import math
import resource
import signal
import sys
from contextlib import suppress
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5l, h5o, h5t  # type: ignore[attr-defined]

DAMAGED = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)
Seen = set[tuple[int, bool]]
LISTED = 2**26
"""Bytes of names at most that are read here; of more the reader looks first whether the file holds them."""
AGAIN = 75
"""Exit code for: ask another process."""


def walk(group: Any, seen: Seen, listed: bool = False) -> None:
    """Every object of the file once, by the calls that the reader makes; what raises is the reader's to say.

    Args:
        listed: whether the group is `mask`, whose arrays the reader takes whole.
    """
    with suppress(*DAMAGED):
        read_attributes(group)
    names: list[bytes] = []

    def add(name: bytes, info: Any) -> None:
        if info.type == h5l.TYPE_HARD:
            names.append(name)

    group.links.iterate(add, info=True)
    for name in names:
        with suppress(*DAMAGED):
            if name != b"next_obs":  # which the reader doesn't open
                look_at(h5o.open(group, name), seen, listed or name == b"mask")


def look_at(item: Any, seen: Seen, listed: bool) -> None:
    if isinstance(item, h5g.GroupID):
        at = (h5o.get_info(item).addr, listed)
        if at not in seen:
            seen.add(at)
            walk(item, seen, listed)
    elif isinstance(item, h5d.DatasetID):
        kind, created = item.get_type(), item.get_create_plist()
        layout = created.get_layout()
        if layout == h5d.CHUNKED:
            item.get_num_chunks()
        own = layout != h5d.VIRTUAL and not created.get_external_count()
        if listed and isinstance(kind, h5t.TypeStringID) and own and math.prod(item.shape) * kind.get_size() <= LISTED:
            h5py.Dataset(item)[()]


def read_attributes(owner: Any) -> None:
    for index in range(h5a.get_num_attrs(owner)):
        found = h5a.open(owner, index=index)
        if found.shape is not None and math.prod(found.shape):
            found.read(np.empty(found.shape, found.dtype))


def main(word: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the command, whose end is this one's
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGXCPU})
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(word, "ready", flush=True)
    for count, line in enumerate(sys.stdin):
        path, seconds = json.loads(line)
        used, most = resource.getrusage(resource.RUSAGE_SELF), resource.getrlimit(resource.RLIMIT_CPU)[1]
        end = math.ceil(used.ru_utime + used.ru_stime + seconds)
        if most != resource.RLIM_INFINITY and end > most:
            if count:
                sys.exit(AGAIN)  # another process has all of what this machine allows
            end = most
        resource.setrlimit(resource.RLIMIT_CPU, (end, most))
        with suppress(*DAMAGED), h5py.File(path, "r", locking="best-effort") as file:
            walk(file.id, set())
        print(word, "walked", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
