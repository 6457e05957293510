"""What the targets of `benchmarks.fuzz` are made of: sound episodes, and folders of which one file at a time is replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from kinoise.data import Episode
from kinoise.spec import Feature, Spec

Run = Callable[[bytes], None]
SPEC = Spec({"state": Feature((3,))}, Feature((2,), low=(-1.0,) * 2, high=(1.0,) * 2), rate=10.0)


class Target(NamedTuple):
    """A decoder.

    Args:
        seeds: sound inputs, for whose making there is a folder.
        runner: of one input; it may write to its folder alone.
        json: whether an input, after its first byte, may be JSON, which is mutated as such.
        alone: called once where nothing but the fuzzer runs, to make its inputs cheaper.
    """

    seeds: Callable[[Path], list[bytes]]
    runner: Callable[[Path], Run]
    json: bool = True
    alone: Callable[[], None] | None = None


def demonstrations(count: int = 3) -> list[Episode]:
    gen = np.random.default_rng(0)
    return [
        Episode(
            {
                "state": gen.normal(size=(steps, 3)).astype(np.float32),
                "action": gen.uniform(-1, 1, (steps, 2)).astype(np.float32),
            },
            f"do {steps % 2}",
            {"task": "point", "seed": steps},
        )
        for steps in range(4, 4 + count)
    ]


class Folder:
    """A data set of which one file at a time is replaced: `[number, *content]`; an input without content removes the file."""

    def __init__(self, path: Path, files: Sequence[str]) -> None:
        self.path, self.files = path, files
        self._sound = {name: (path / name).read_bytes() for name in files}

    def seeds(self) -> list[bytes]:
        return [bytes([number]) + self._sound[name] for number, name in enumerate(self.files)]

    def put(self, data: bytes) -> str:
        """Puts the input in place; the name of the file for `restore`."""
        name = self.files[data[0] % len(self.files)]
        if len(data) > 1:
            (self.path / name).write_bytes(data[1:])
        else:
            (self.path / name).unlink()
        return name

    def restore(self, name: str) -> None:
        (self.path / name).write_bytes(self._sound[name])


def replaced(folder: Folder, read: Callable[[], None]) -> Run:
    def one(data: bytes) -> None:
        if not data:
            return
        name = folder.put(data)
        try:
            read()
        finally:
            folder.restore(name)

    return one
