"""Video of an episode: frames wait on disk until the episode has ended, then are encoded."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ..deploy.video import write_video
from ..files import disk_errors


class Film:
    """The frames lie in an unnamed file: many films at once don't fill the memory, and a killed process leaves nothing.

    Args:
        path: the mp4 to be, in a directory that exists.
        fps: frames per second.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self._path, self._fps = path, fps
        self._shapes: list[tuple[int, ...]] = []
        with disk_errors(path):
            self._file = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115

    def add(self, frame: UInt8[np.ndarray, "height width 3"]) -> None:
        with disk_errors(self._path):
            self._file.write(np.ascontiguousarray(frame).data)
        self._shapes.append(frame.shape)

    def save(self) -> None:
        """Encodes the frames to `path`. Raises KinoiseError when there are none."""
        with disk_errors(self._path):
            self._file.seek(0)
        write_video(self._path, self._frames(), self._fps)

    def close(self) -> None:
        self._file.close()

    def _frames(self) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        for shape in self._shapes:
            yield np.frombuffer(self._file.read(int(np.prod(shape))), np.uint8).reshape(shape)
