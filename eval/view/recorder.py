"""What a view is written to: a few kinds of things over time, and rerun's file of them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ...files import write_file
from ...spec import KinoiseError

TIME = "time"
"""The timeline of seconds; every other one counts something."""
JPEG_QUALITY = 90
Level = str
"""`INFO`, `WARN` or `ERROR`."""


@runtime_checkable
class Recorder(Protocol):
    """Paths are words with `/` between them; whatever has a path in common is shown together."""

    def series(
        self,
        path: str,
        names: Sequence[str],
        at: Float[np.ndarray, "n"],
        values: Float[np.ndarray, "n d"],
        timeline: str = TIME,
    ) -> None:
        """Numbers over time, a line for each of `names`; a further call with the same path begins a new line.

        Args:
            at: seconds, or places on another `timeline`; ascending.
        """
        ...

    def image(self, path: str, at: float, pixels: UInt8[np.ndarray, "height width 3"]) -> None:
        """A picture from `at` seconds on."""
        ...

    def film(self, path: str, file: Path) -> None:
        """A video that begins at 0 seconds."""
        ...

    def note(self, path: str, at: float, text: str, level: Level = "INFO") -> None:
        """A line of a log at `at` seconds."""
        ...

    def page(self, path: str, markdown: str) -> None:
        """Text that holds for the whole recording."""
        ...

    def arrange(self, pages: Sequence[str], pictures: Sequence[str], plots: Sequence[str], logs: Sequence[str]) -> None:
        """Which paths get a view of their own, by the kind of view."""
        ...


def load_rerun() -> Any:
    """rerun's SDK. Raises KinoiseError when it can't be imported."""
    try:
        import rerun  # pyright: ignore[reportMissingImports]
        import rerun.blueprint  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise KinoiseError(
            f"rerun can't be imported ({error}). Install it with: pip install -c constraints.txt -e '.[rerun]'"
        ) from error
    if not hasattr(rerun, "TimeColumn"):
        raise KinoiseError("the installed 'rerun' is not rerun-sdk, or is too old: pip install 'rerun-sdk>=0.24'")
    return rerun


def write_rrd(path: Path, title: str, fill: Callable[[Recorder], None]) -> None:
    """Calls `fill` and moves what it recorded to `path` in one step.

    Raises KinoiseError when rerun isn't installed or the file can't be written, and what `fill` raises.
    """
    rerun = load_rerun()

    def write(temporary: Path) -> None:
        strict = rerun.strict_mode()
        rerun.set_strict_mode(True)  # otherwise what can't be recorded is left out, with a warning
        try:
            stream = rerun.RecordingStream("kinoise")
            stream.save(temporary)
            stream.send_recording_name(title)
            try:
                fill(RerunRecorder(rerun, stream))
            finally:
                stream.flush()
                stream.disconnect()
        finally:
            rerun.set_strict_mode(strict)

    write_file(path, write)


class RerunRecorder:
    """A `Recorder` that writes to a rerun stream."""

    def __init__(self, rerun: Any, stream: Any) -> None:
        self._rerun, self._stream = rerun, stream
        self._named: set[str] = set()

    def series(
        self,
        path: str,
        names: Sequence[str],
        at: Float[np.ndarray, "n"],
        values: Float[np.ndarray, "n d"],
        timeline: str = TIME,
    ) -> None:
        rerun, place = self._rerun, self._place(path)
        if not len(at):
            return
        if path in self._named:
            self._send(path, timeline, at[:1], rerun.Clear.columns(is_recursive=[False]))
        else:
            self._named.add(path)
            self._stream.log(place, rerun.SeriesLines(names=list(names)), static=True)
        columns = rerun.Scalars.columns(scalars=np.asarray(values, np.float64).ravel())
        self._send(path, timeline, at, columns.partition([values.shape[1]] * len(at)))

    def image(self, path: str, at: float, pixels: UInt8[np.ndarray, "height width 3"]) -> None:
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, "JPEG", quality=JPEG_QUALITY)
        columns = self._rerun.EncodedImage.columns(blob=[encoded.getvalue()], media_type=["image/jpeg"])
        self._send(path, TIME, np.array([at]), columns)

    def film(self, path: str, file: Path) -> None:
        rerun, place = self._rerun, self._place(path)
        video = rerun.AssetVideo(path=file)
        self._stream.log(place, video, static=True)
        frames = video.read_frame_timestamps_nanos()
        self._send(path, TIME, 1e-9 * frames, rerun.VideoFrameReference.columns_nanos(frames))

    def note(self, path: str, at: float, text: str, level: Level = "INFO") -> None:
        self._send(path, TIME, np.array([at]), self._rerun.TextLog.columns(text=[text], level=[level]))

    def page(self, path: str, markdown: str) -> None:
        self._stream.log(self._place(path), self._rerun.TextDocument(markdown, media_type="text/markdown"), static=True)

    def arrange(self, pages: Sequence[str], pictures: Sequence[str], plots: Sequence[str], logs: Sequence[str]) -> None:
        views = self._rerun.blueprint

        def made(kind: Any, paths: Sequence[str]) -> list[Any]:
            return [kind(origin=self._place(path), name=path) for path in paths]

        seen = made(views.Spatial2DView, pictures)
        told = [*made(views.TextDocumentView, pages), *made(views.TextLogView, logs)]
        left = [*([views.Grid(*seen)] if seen else []), *([views.Tabs(*told)] if told else [])]
        right = made(views.TimeSeriesView, plots)
        columns = [views.Vertical(*items) for items in (left, right) if items]
        self._stream.send_blueprint(views.Blueprint(views.Horizontal(*columns), collapse_panels=True))

    def _send(self, path: str, timeline: str, at: np.ndarray, columns: Any) -> None:
        kind = {"duration": at} if timeline == TIME else {"sequence": np.asarray(at, np.int64)}
        self._stream.send_columns(self._place(path), [self._rerun.TimeColumn(timeline, **kind)], columns)

    def _place(self, path: str) -> str:
        """`path` with what else than letters and digits is in its words escaped."""
        return self._rerun.new_entity_path(path.split("/"))
