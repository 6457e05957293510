"""Videos as LeRobot encodes them, many episodes to a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.container import OutputContainer
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8

from ...spec import KinoiseError
from .layout import VIDEO_PATH, Place, following

CODECS = {"libsvtav1": {"g": "2", "crf": "30", "preset": "12"}, "libx264": {"g": "2", "crf": "30"}}
"""LeRobot's settings; the second is for builds of FFmpeg without the first. A key frame every other frame lets a reader start
anywhere."""
PIXELS = "yuv420p"
SMALLEST = 16
"""Pixels of a side: encoders refuse less."""


class Span(NamedTuple):
    """Where an episode's frames went: in which file, and from when to when (s) in it."""

    place: Place
    start: float
    stop: float


class VideoWriter:
    """Encodes the frames of one camera, episode after episode. Use in a `with` block.

    Args:
        root: of the data set.
        name: LeRobot's, of the feature.
        rate: frames per second.
        limit: bytes of a file, after which the next episode starts another.
    """

    def __init__(self, root: Path, name: str, shape: tuple[int, ...], rate: float, limit: float) -> None:
        self.root, self.name, self.shape, self.limit = root, name, shape, limit
        self.rate = Fraction(rate).limit_denominator(100_000)
        self.codec = next((codec for codec in CODECS if codec in av.codecs_available), None)
        if self.codec is None:
            raise KinoiseError(f"this build of PyAV encodes none of {', '.join(CODECS)}. Write image columns: video=False.")
        self._place: Place | None = None
        self._open: tuple[OutputContainer, VideoStream] | None = None
        self._frames = self._bytes = 0
        self._reformatter = VideoReformatter()

    def append(self, frames: UInt8[np.ndarray, "steps height width 3"]) -> Span:
        """Raises KinoiseError when they can't be encoded."""
        with self._errors():
            expected = self._bytes + self._bytes / max(self._frames, 1) * len(frames)
            if self._open is None or expected >= self.limit:
                self._next()
            assert self._open is not None
            assert self._place is not None
            first, (container, stream) = self._frames, self._open
            for frame in frames:
                made = self._reformatter.reformat(av.VideoFrame.from_ndarray(frame, format="rgb24"), format=PIXELS)
                made.pts, made.time_base = self._frames, 1 / self.rate
                self._mux(container, stream.encode(made))
                self._frames += 1
            return Span(self._place, float(first / self.rate), float(self._frames / self.rate))

    def info(self) -> dict[str, Any]:
        """What LeRobot says of a video in `info.json`."""
        height, width, _ = self.shape
        return {
            "video.height": height,
            "video.width": width,
            "video.codec": "av1" if self.codec == "libsvtav1" else "h264",
            "video.pix_fmt": PIXELS,
            "video.is_depth_map": False,
            "video.fps": int(self.rate),
            "video.channels": 3,
            "has_audio": False,
        }

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            with self._errors():
                self._close()
        elif self._open is not None:
            self._open[0].close()

    def _next(self) -> None:
        self._close()
        self._place = following(self._place)
        file = self.root / VIDEO_PATH.format(video_key=self.name, **self._place._asdict())
        file.parent.mkdir(parents=True, exist_ok=True)
        # The encoder tells its life to stderr unless told not to before it starts.
        os.environ.setdefault("SVT_LOG", "1")
        container = av.open(str(file), "w")
        assert self.codec is not None
        stream = container.add_stream(self.codec, self.rate, options=CODECS[self.codec])
        assert isinstance(stream, VideoStream)
        stream.height, stream.width, stream.pix_fmt = self.shape[0], self.shape[1], PIXELS
        self._open, self._frames, self._bytes = (container, stream), 0, 0

    def _close(self) -> None:
        if self._open is not None:
            (container, stream), self._open = self._open, None
            self._mux(container, stream.encode(None))
            container.close()

    def _mux(self, container: OutputContainer, packets: list[av.Packet]) -> None:
        self._bytes += sum(packet.size for packet in packets)
        container.mux(packets)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except FFmpegError as error:
            if isinstance(error, OSError):  # a full disk, say, which the caller knows how to tell
                raise
            reason = " ".join(str(error).split())[:200]
            raise KinoiseError(f"'{self.name}' can't be encoded ({reason}). Write image columns: video=False.") from error
