"""A video of a run."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8

from ..files import write_file
from ..spec import KinoiseError


def write_video(path: Path, frames: Iterator[UInt8[np.ndarray, "height width 3"]], fps: float) -> None:
    """Encodes `frames` as H.264 that browsers play: yuv420p, the index in front, and an odd last row or column left out.

    Raises KinoiseError when there is no frame.
    """
    first = next(frames, None)
    if first is None:
        raise KinoiseError(f"no frame for {path}: the run ended before its first step. Let it run longer.")
    write_file(path, lambda temporary: _encode(temporary, first, frames, fps))


def _encode(path: Path, first: np.ndarray, rest: Iterator[np.ndarray], fps: float) -> None:
    height, width = (side - side % 2 for side in first.shape[:2])
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": "23"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for pixels in chain([first], rest):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
