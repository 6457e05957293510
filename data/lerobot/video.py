"""An episode's frames out of a video file, found by their times."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from jaxtyping import Float64, UInt8

from ...spec import KinoiseError

TOLERANCE = 0.25
"""How far from a step's time its frame may be, in steps. LeRobot allows 0.1 ms, at which long files of joined clips, whose
times it sums, already fail; half a step would be another step's frame."""
_EXACT = 0.01
"""In steps: a frame this near is the nearest, and the next need not be looked at."""


def frames(
    file: Path, times: Float64[np.ndarray, "steps"], rate: float, shape: tuple[int, ...], label: str
) -> UInt8[np.ndarray, "steps height width 3"]:
    """For each of `times` (s, in the file, not decreasing) the nearest frame, as RGB.

    From the key frame before the first one on the file is decoded in order, once, on as many threads as the codec likes.

    Args:
        rate: steps per second.
        shape: expected of a frame, `(height, width, 3)`.
        label: how messages call file, episode and feature.

    Raises:
        KinoiseError: the file is missing or can't be decoded, its frames have another size, or a step has none near its time.
    """
    result, done = np.empty(0, np.uint8), 0
    before: tuple[float, av.VideoFrame] | None = None
    reformatter = VideoReformatter()
    last: av.VideoFrame | None = None

    def take(frame: av.VideoFrame, time: float) -> None:
        nonlocal result, done, last
        if abs(times[done] - time) > TOLERANCE / rate:
            raise KinoiseError(
                f"{label}: no frame at {times[done]:.3f} s, which is step {done} of {len(times)}: the nearest is at "
                f"{time:.3f} s. The video was cut short or lost frames: restore it from its source."
            )
        if frame is last:
            result[done] = result[done - 1]
        else:
            pixels = _rgb(reformatter, frame, shape, label)
            if done == 0:  # now that the shape is known to be true
                result = np.empty((len(times), *shape), np.uint8)
            result[done] = pixels
        last, done = frame, done + 1

    try:
        for time, frame in _decoded(file, float(times[0]) - _EXACT / rate):
            while done < len(times) and times[done] <= time + _EXACT / rate:
                nearer = before is not None and times[done] - before[0] < abs(time - times[done])
                take(
                    before[1] if nearer and before is not None else frame, before[0] if nearer and before is not None else time
                )
            if done == len(times):
                return result
            before = (time, frame)
    except (FFmpegError, OSError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise KinoiseError(f"{label}: can't be decoded ({reason}). Download the video again, or restore it.") from error
    if before is None:
        raise KinoiseError(f"{label}: the video holds no frames. Restore it from its source.")
    while done < len(times):
        take(before[1], before[0])
    return result


def _decoded(file: Path, start: float) -> Iterator[tuple[float, av.VideoFrame]]:
    """(time, frame) from the key frame at or before `start` on, in order."""
    with av.open(str(file)) as container:
        if not container.streams.video:
            raise ValueError("it has no video stream")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        base = stream.time_base
        if base is None:
            raise ValueError("it says no times")
        if start > 0:
            container.seek(int(start / base), stream=stream, backward=True)
        for frame in container.decode(stream):
            if frame.is_corrupt or frame.pts is None:
                raise ValueError("a frame is damaged")
            yield float(frame.pts * base), frame


def _rgb(reformatter: VideoReformatter, frame: av.VideoFrame, shape: tuple[int, ...], label: str) -> np.ndarray:
    if (frame.height, frame.width, 3) != shape:
        raise KinoiseError(
            f"{label}: a frame is {[frame.height, frame.width, 3]}, expected {list(shape)} as meta/info.json says. "
            f"Convert the data set again."
        )
    # One reformatter keeps its tables; frame.to_ndarray makes new ones for every frame.
    plane = reformatter.reformat(frame, format="rgb24").planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(shape[0], plane.line_size)
    return rows[:, : shape[1] * 3].reshape(shape)
