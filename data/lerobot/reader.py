"""Reading LeRobot data sets, v3.0 (many episodes to a file) and v2.1 (a file for each), without LeRobot."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from ...spec import KinoiseError, Spec
from ..base import AS_IT_IS, Episode, Extra, Reading, Report, features, refuse
from ..decoded import DecodedStore
from .episodes import Entry, numbered, read_episodes
from .images import decoded
from .layout import INFO, Info, read_info
from .own import read_own
from .rows import Rows, values
from .sources import TASK_INDEX, sources
from .video import frames
from .writer import DATA_MB, VIDEO_MB, write


class LeRobotStore(DecodedStore):
    """An EpisodeStore over LeRobot's files. Opening it reads `meta/` and the parquet files' footers.

    What the files don't say is taken to be: actions absolute, unless a name begins with "delta"; the gripper's dimensions
    those with "gripper" in their names. An episode's instruction is its task; of several, the first by `task_index`. All of
    this is overruled by `meta/kinoise.json`, which kinoise's writer leaves there, while it fits the other files.
    """

    format = "lerobot"

    def __init__(self, path: Path, reading: Reading = AS_IT_IS, report: Report = refuse) -> None:
        """Raises KinoiseError for metadata that can't be read. `report` takes missing, short or contradictory files."""
        self.path = Path(path)
        info = read_info(self.path)
        entries, tasks, lost = read_episodes(info, report)
        entries = _filtered(info, entries, reading.filter)
        first, end = info.splits.get(reading.filter or "", (-math.inf, math.inf))
        self._rows = Rows(self.path)
        self._entries = self._rows.sound(entries, report)
        if not self._entries:
            raise KinoiseError(f"{self.path}: none of its {len(entries)} episodes can be read.")
        self.lost = sum(first <= number < end for number in lost) + len(entries) - len(self._entries)
        self._declared = info.features
        self.ends = np.cumsum([entry.length for entry in self._entries], dtype=np.int64)
        instructions = [entry.tasks[0] if entry.tasks else "" for entry in self._entries]
        self.texts = tuple(dict.fromkeys(instructions))
        where = {text: index for index, text in enumerate(self.texts)}
        self.text = np.array([where[text] for text in instructions], np.int64)
        own, aside = read_own(info, self._entries)
        if own is None:
            self._derive(info, tasks, reading)
            self.dropped += (*info.odd, *((aside,) if aside else ()))
        else:
            self.spec, self.extras, self._names = own.spec, own.extras, own.names
            self.info, self.meta, self.dropped = own.info, own.meta, info.odd

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return any((path / "meta" / name).exists() for name in ("info.json", "tasks.parquet", "episodes.jsonl", "tasks.jsonl"))

    @classmethod
    def write(
        cls,
        path: Path,
        spec: Spec,
        episodes: Iterable[Episode],
        meta: Mapping[str, Any] | None = None,
        *,
        video: bool = False,
        data_mb: float = DATA_MB,
        video_mb: float = VIDEO_MB,
    ) -> list[str]:
        """See `Format.write`. Writes v3.0, which LeRobot 0.4 reads.

        Args:
            video: images as AV1 video (H.264 where there is no encoder) with LeRobot's settings: a fraction of the size, but
                not bit for bit. By default they are PNG files in the parquet files, which lose nothing.
            data_mb, video_mb: 2**20 bytes, after which the next episode starts another parquet file, another video.
        """
        return write(path, spec, episodes, meta, video=video, data_mb=data_mb, video_mb=video_mb)

    @property
    def original(self) -> Int64[np.ndarray, "episodes"]:
        return np.array([entry.number for entry in self._entries], np.int64)

    def decode(self, episode: int, keys: Sequence[str]) -> dict[str, np.ndarray]:
        entry = self._entries[episode]
        names = {key: self._names[key] for key in keys}
        films = {key: name for key, name in names.items() if self._declared[name].dtype == "video"}
        columns = {name for key, name in names.items() if key not in films}
        timed = bool(films) and "timestamp" in self._declared
        table = self._rows.read(entry, sorted(columns | ({"timestamp"} if timed else set())))
        result = {}
        for key, name in names.items():
            label = f"{self.path / entry.data}: episode {entry.number}, '{name}'"
            if key in films:
                times = self._numbers(table["timestamp"], (), np.dtype(np.float64), label) if timed else None
                result[key] = self._film(entry, key, name, times)
            elif self._declared[name].dtype == "image":
                result[key] = decoded(table[name], features(self.spec)[key].shape, self.path, label)
            elif key in self.extras:
                result[key] = self._numbers(table[name], self.extras[key].shape, self.extras[key].dtype, label)
            else:
                feature = features(self.spec)[key]
                result[key] = self._numbers(table[name], feature.shape, feature.dtype, label)
                if not np.isfinite(result[key]).all():
                    step = int(np.argwhere(~np.isfinite(result[key]))[0, 0])
                    raise KinoiseError(f"{label} is NaN or infinite at step {step}. Repair or remove the episode.")
        return result

    def _film(self, entry: Entry, key: str, name: str, times: np.ndarray | None) -> np.ndarray:
        clip = entry.clips[name]
        label = f"{self.path / clip.file}: episode {entry.number}, '{name}'"
        if times is None:
            times = np.arange(entry.length) / self.spec.rate
        if not np.isfinite(times).all() or (np.diff(times) < 0).any():
            raise KinoiseError(f"{label}: its 'timestamp' goes back, so its frames can't be found. Repair or drop the episode.")
        return frames(self.path / clip.file, clip.start + times, self.spec.rate, features(self.spec)[key].shape, label)

    def _numbers(self, column: Any, shape: tuple[int, ...], dtype: np.dtype, label: str) -> np.ndarray:
        try:
            array = values(column, shape)
        except ValueError as error:
            raise KinoiseError(f"{label}: {error}. Convert the data set again.") from error
        if not np.can_cast(array.dtype, dtype, "same_kind"):
            raise KinoiseError(f"{label} is {array.dtype} in the file, expected {dtype}. Convert the data set again.")
        return array.astype(dtype)

    def _derive(self, info: Info, tasks: Mapping[int, str], reading: Reading) -> None:
        """Everything about the data out of LeRobot's own metadata."""
        found = sources(info)
        rate = info.fps if info.fps is not None else reading.rate
        if rate is None:
            raise KinoiseError(f"{self.path / INFO} has no fps. Give the control steps per second: rate=.")
        assert found.action is not None
        named = found.action.names
        self.spec = Spec(
            found.observations,
            found.action,
            float(rate),
            "delta" if any(name.lower().startswith("delta") for name in named) else "absolute",
            tuple(index for index, name in enumerate(named) if "gripper" in name.lower()),
            language=all(self.texts),
        )
        self.extras, self._names = found.extras, found.names
        self.info = [{} for _ in self._entries]
        self.meta = {"lerobot": {"robot_type": info.robot_type}}
        whole = (0, info.total[0])
        if any(span != whole for span in info.splits.values()):
            for entry, item in zip(self._entries, self.info, strict=True):
                item["filters"] = [name for name, (first, end) in info.splits.items() if first <= entry.number < end]
        several = [entry.number for entry in self._entries if len(entry.tasks) > 1]
        if several:
            found.dropped.append(
                f"{numbered(several)}: several tasks among the frames; the instruction is the first, '{TASK_INDEX}' is an extra"
            )
            for entry, item in zip(self._entries, self.info, strict=True):
                item["tasks"] = list(entry.tasks)
            self.meta["lerobot"]["tasks"] = {str(index): text for index, text in tasks.items()}
            self.extras[TASK_INDEX], self._names[TASK_INDEX] = Extra(np.dtype(np.int64), ()), TASK_INDEX
        self.dropped = tuple(found.dropped)


def _filtered(info: Info, entries: list[Entry], name: str | None) -> list[Entry]:
    if name is None:
        return entries
    if name not in info.splits:
        raise KinoiseError(f"{info.root / INFO}: filter={name} is none of its splits, which are {sorted(info.splits)}.")
    first, end = info.splits[name]
    kept = [entry for entry in entries if first <= entry.number < end]
    if not kept:
        raise KinoiseError(f"{info.root / INFO}: the split '{name}' is {first}:{end}, which holds no episode.")
    return kept
