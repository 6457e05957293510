"""Writing a LeRobot data set, v3.0, an episode at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ...files import new_directory, write_json
from ...spec import KinoiseError, Spec
from ..base import TIMESTAMP, Episode, Extra, features
from ..check import check_episode, check_meta, check_spec, extras_of, label
from .encode import SMALLEST, VideoWriter
from .images import encoded
from .layout import BOOKKEEPING, CHUNK_FILES, DATA_PATH, EPISODES_PATH, INFO, STATS_PATH, VIDEO_PATH
from .own import write_own
from .sources import lerobot_names
from .statistics import Statistics, as_json, episode_statistics, joined
from .tables import ParquetFiles, column, write_tasks

MB = 2**20
DATA_MB, VIDEO_MB = 100.0, 200.0
IN_MEMORY = 2**27
"""Bytes of frames that are turned into a row group of PNG files at a time."""
AXES = ["height", "width", "channels"]
AXES_MOST = 5
"""Axes of a step's array that LeRobot's columns can have."""
TABLE_ROWS = 64
"""Episodes whose statistics wait to be written."""
TIMES_WITHIN = 1e-4
"""Seconds that a time stamp may be from its step's time for LeRobot still to find the frame of a video."""


def write(
    path: Path,
    spec: Spec,
    episodes: Iterable[Episode],
    meta: Mapping[str, Any] | None = None,
    *,
    video: bool = False,
    data_mb: float = DATA_MB,
    video_mb: float = VIDEO_MB,
) -> list[str]:
    """See `LeRobotStore.write`."""
    path = Path(path)
    check_spec(spec)
    check_meta(meta)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise KinoiseError(f"{path} exists already. Choose another out=, or remove it first.")
    with new_directory(path) as folder, ExitStack() as stack:
        writer: _Writer | None = None
        for index, episode in enumerate(episodes):
            extras = extras_of(episode) if writer is None else writer.extras
            steps = check_episode(spec, extras, episode, label(index, episode))
            if writer is None:
                writer = _Writer(folder, spec, episode, stack, meta or {}, video=video, data_mb=data_mb, video_mb=video_mb)
            writer.append(index, episode, steps)
        if writer is None:
            raise KinoiseError(f"no episodes to write to {path}: a store needs at least one.")
        writer.flush()
        stack.close()
        writer.finish()
        return writer.lost


class _Writer:
    """An unfinished data set in `folder`, whose files `stack` closes.

    Args:
        first: its first episode, which says what the extras are.
    """

    def __init__(
        self,
        folder: Path,
        spec: Spec,
        first: Episode,
        stack: ExitStack,
        meta: Mapping[str, Any],
        *,
        video: bool,
        data_mb: float,
        video_mb: float,
    ) -> None:
        self.folder, self.spec, self.stack, self.meta = folder, spec, stack, meta
        self.data_mb, self.video_mb = data_mb, video_mb
        self.lost: list[str] = []
        self.extras = extras_of(first)
        self.kept = {key: extra for key, extra in self.extras.items() if self._holds(key, extra)}
        self.regular = TIMESTAMP in self.extras and self._on_time(first)
        self.names = lerobot_names(spec, self.kept, self.regular)
        self.images = {self.names[key] for key, feature in features(spec).items() if feature.kind == "image"}
        self.data = stack.enter_context(ParquetFiles(folder, DATA_PATH, data_mb * MB))
        self.table = stack.enter_context(ParquetFiles(folder, EPISODES_PATH, data_mb * MB))
        self.videos: dict[str, VideoWriter] = {}
        for key, feature in features(spec).items():
            if video and feature.kind == "image":
                self._film(key, feature.shape)
        self.texts: dict[str, int] = {}
        self.rows: list[dict[str, Any]] = []
        self.own: list[dict[str, Any]] = []
        self.statistics: dict[str, Statistics] | None = None
        self.schema: pa.Schema | None = None
        self.steps = 0

    def append(self, index: int, episode: Episode, steps: int) -> None:
        if self.regular and self.videos and not self._on_time(episode):
            raise KinoiseError(
                f"{label(index, episode)}: '{TIMESTAMP}' is not step / {self.spec.rate:g} Hz as in the first episode, but "
                f"LeRobot finds the frames of a video by it. Write image columns: video=False."
            )
        text = self.texts.setdefault(episode.instruction, len(self.texts))
        arrays = self._arrays(index, episode, steps, text)
        row: dict[str, Any] = {"episode_index": index, "tasks": [episode.instruction], "length": steps}
        row |= self._write_rows(arrays, steps)
        row |= {"dataset_from_index": self.steps, "dataset_to_index": self.steps + steps}
        for key, writer in self.videos.items():
            span, name = writer.append(episode.arrays[key]), f"videos/{self.names[key]}"
            row |= {f"{name}/chunk_index": span.place.chunk_index, f"{name}/file_index": span.place.file_index}
            row |= {f"{name}/from_timestamp": span.start, f"{name}/to_timestamp": span.stop}
            arrays[self.names[key]] = episode.arrays[key]
        found = {name: episode_statistics(array, name in self.images) for name, array in arrays.items()}
        self.statistics = joined(self.statistics, found)
        row |= {f"stats/{name}/{kind}": value for name, item in as_json(found).items() for kind, value in item.items()}
        self.rows.append(row)
        self.own.append({"length": steps, "info": dict(episode.info)})
        self.steps += steps
        if len(self.rows) >= TABLE_ROWS:
            self.flush()

    def flush(self) -> None:
        """Writes the episodes that wait into the table of episodes."""
        if not self.rows:
            return
        rows, self.rows = self.rows, []
        size = pa.Table.from_pylist(rows).nbytes
        place = self.table.room(size)
        for row in rows:
            row |= {"meta/episodes/chunk_index": place.chunk_index, "meta/episodes/file_index": place.file_index}
        table = pa.Table.from_pylist(rows, schema=self.schema)
        self.schema = table.schema
        self.table.append(table)

    def finish(self) -> None:
        """What is known when all episodes are there: `info.json`, the tasks, the statistics, and kinoise's own file."""
        assert self.statistics is not None
        write_tasks(self.folder, list(self.texts))
        write_json(self.folder / STATS_PATH, as_json(self.statistics))
        theirs = self.meta.get("lerobot")
        write_json(
            self.folder / INFO,
            {
                "codebase_version": "v3.0",
                "robot_type": theirs.get("robot_type") if isinstance(theirs, dict) else None,
                "total_episodes": len(self.own),
                "total_frames": self.steps,
                "total_tasks": len(self.texts),
                "chunks_size": CHUNK_FILES,
                "data_files_size_in_mb": _whole(self.data_mb),
                "video_files_size_in_mb": _whole(self.video_mb),
                "fps": _whole(self.spec.rate),
                "splits": {"train": f"0:{len(self.own)}"},
                "data_path": DATA_PATH,
                "video_path": VIDEO_PATH if self.videos else None,
                "features": self._declared(),
            },
        )
        write_own(self.folder, self.spec, self.names, self.kept, self.own, self.meta)

    def _declared(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for key, feature in features(self.spec).items():
            shape, name = list(feature.shape), self.names[key]
            if key in self.videos:
                found[name] = {"dtype": "video", "shape": shape, "names": AXES, "info": self.videos[key].info()}
            elif feature.kind == "image":
                found[name] = {"dtype": "image", "shape": shape, "names": AXES}
            else:
                found[name] = {"dtype": "float32", "shape": shape, "names": list(feature.names) or None}
        for key, extra in self.kept.items():
            found[self.names[key]] = {"dtype": extra.dtype.name, "shape": list(extra.shape or (1,)), "names": None}
        kept = {name: {"dtype": "int64", "shape": [1], "names": None} for name in BOOKKEEPING}
        return {**kept, "timestamp": {"dtype": "float32", "shape": [1], "names": None}, **found}

    def _holds(self, key: str, extra: Extra) -> bool:
        held = len(extra.shape) <= AXES_MOST
        if not held:
            self.lost.append(f"{key}: {extra.dtype}{list(extra.shape)}, which a column can't hold")
        return held

    def _on_time(self, episode: Episode) -> bool:
        """Whether the time stamps are those that LeRobot would give."""
        stamps = episode.extras[TIMESTAMP]
        times = np.arange(len(stamps)) / self.spec.rate
        return stamps.dtype == np.float32 and stamps.ndim == 1 and bool((abs(stamps - times) <= TIMES_WITHIN).all())

    def _film(self, key: str, shape: tuple[int, ...]) -> None:
        if min(shape[:2]) < SMALLEST or shape[0] % 2 or shape[1] % 2:
            self.lost.append(f"{key}: kept as images, not video, for codecs need even sides of {SMALLEST} pixels or more")
            return
        writer = VideoWriter(self.folder, self.names[key], shape, self.spec.rate, self.video_mb * MB)
        self.videos[key] = self.stack.enter_context(writer)
        self.lost.append(f"{key}: compressed as video, not bit for bit")

    def _arrays(self, index: int, episode: Episode, steps: int, text: int) -> dict[str, np.ndarray]:
        """The columns of an episode by LeRobot's names; images still as pixels, videos left out."""
        arrays = {self.names[key]: episode.arrays[key] for key in features(self.spec) if key not in self.videos}
        arrays |= {self.names[key]: episode.extras[key] for key in self.kept}
        arrays.setdefault("timestamp", (np.arange(steps) / self.spec.rate).astype(np.float32))
        arrays["frame_index"] = np.arange(steps)
        arrays["episode_index"] = np.full(steps, index)
        arrays["index"] = np.arange(self.steps, self.steps + steps)
        arrays["task_index"] = np.full(steps, text)
        return arrays

    def _write_rows(self, arrays: dict[str, np.ndarray], steps: int) -> dict[str, int]:
        """Writes an episode's rows, and says into which file."""
        at_once = max(1, IN_MEMORY // max(1, sum(array.nbytes for array in arrays.values()) // steps))
        place = None
        for start in range(0, steps, at_once):
            part = {name: array[start : start + at_once] for name, array in arrays.items()}
            table = pa.table(
                {name: encoded(array, start) if name in self.images else column(array) for name, array in part.items()}
            )
            # An episode is in one file.
            place = self.data.room(table.nbytes * steps // len(table)) if place is None else place
            self.data.append(table)
        assert place is not None
        return {"data/chunk_index": place.chunk_index, "data/file_index": place.file_index}


def _whole(number: float) -> int | float:
    """As an integer where it is one, which LeRobot expects."""
    return int(number) if number == int(number) else number
