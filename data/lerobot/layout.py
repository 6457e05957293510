"""`meta/info.json` of a LeRobot data set: its version, features, rate and where its files are."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from string import Formatter
from typing import Any, NamedTuple

from ...files import MALFORMED, read_json
from ...spec import KinoiseError

INFO = "meta/info.json"
VERSIONS = ("v3.0", "v2.1", "v2.0")
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
TASKS_PATH = "meta/tasks.parquet"
STATS_PATH = "meta/stats.json"
CHUNK_FILES = 1000
"""Files in one `chunk-` folder."""
BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Columns that LeRobot adds to every data set."""
_FIELDS = {"chunk_index", "file_index", "video_key", "episode_chunk", "episode_index"}


class Place(NamedTuple):
    """A file's number in a chunk of files."""

    chunk_index: int
    file_index: int


def following(place: Place | None) -> Place:
    """The file after `place`, or the first."""
    if place is None:
        return Place(0, 0)
    chunk, file = divmod(place.chunk_index * CHUNK_FILES + place.file_index + 1, CHUNK_FILES)
    return Place(chunk, file)


@dataclass(frozen=True)
class Declared:
    """A feature as `info.json` declares it.

    Args:
        dtype: numpy's name of a number type, or "image", "video", "string".
        shape: of one step; `(1,)` for a number.
        names: of the axes or dimensions: a list, a dict of lists, a dict of indices, or nothing.
        depth: whether a video is said to hold depth.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    names: Any = None
    depth: bool = False

    @property
    def visual(self) -> bool:
        return self.dtype in ("image", "video")


@dataclass(frozen=True)
class Info:
    """What `meta/info.json` says.

    Args:
        fps: steps per second; None where it says none.
        splits: name -> (first episode, one past the last), of those that are such ranges.
        odd: the others, a line each.
        total: how many episodes and steps there should be; None where it doesn't say.
    """

    root: Path
    version: str
    features: dict[str, Declared]
    fps: float | None
    data_path: str
    video_path: str | None
    chunks_size: int
    splits: dict[str, tuple[int, int]]
    odd: tuple[str, ...]
    total: tuple[int | None, int | None]
    robot_type: str | None

    def data_file(self, **fields: int) -> str:
        """Relative to the root. Raises KinoiseError for a template that leads elsewhere."""
        return self._file("data_path", self.data_path, fields)

    def video_file(self, **fields: Any) -> str:
        """Likewise, for a video."""
        if self.video_path is None:
            raise KinoiseError(
                f"{self.root / INFO}: no video_path, but '{fields['video_key']}' is a video. Restore it from the source."
            )
        return self._file("video_path", self.video_path, fields)

    def _file(self, name: str, template: str, fields: dict[str, Any]) -> str:
        # A template comes with the data: it may neither look into objects nor ask for gigabytes of padding.
        for _, field, form, conversion in Formatter().parse(template):
            if field is None:
                continue
            if field not in _FIELDS or conversion or not re.fullmatch(r"0?\d?d?", form or ""):
                raise KinoiseError(
                    f"{self.root / INFO}: {name} is '{template}', whose '{{{field}}}' is unknown. Known are {sorted(_FIELDS)}, "
                    f"with widths such as :03d. Restore it from the source."
                )
        try:
            return inside(self.root, template.format(**fields), f"{self.root / INFO}: {name}")
        except (KeyError, ValueError, IndexError) as error:
            raise KinoiseError(
                f"{self.root / INFO}: {name} is '{template}', which {self.version} does not fill ({error!r}). "
                f"Restore it from the source."
            ) from error


def inside(root: Path, path: str, label: str) -> str:
    """`path`, which must stay in the folder `root` it is relative to. Raises KinoiseError, which starts with `label`."""
    # By its letters: the hub's cache is made of links that lead elsewhere.
    parts = PurePosixPath(path)
    if not path or parts.is_absolute() or ".." in parts.parts or "\\" in path or "\0" in path:
        raise KinoiseError(f"{label} leads out of the data set: '{path}'. Expected a path inside {root}.")
    return path


def read_info(root: Path) -> Info:
    """Raises KinoiseError when the file is missing, damaged, of a version that can't be read, or lacks what is needed."""
    file = root / INFO
    if not root.is_dir():
        raise KinoiseError(f"{root} is not a folder: expected a LeRobot data set, with {INFO}.")
    if not file.is_file():
        raise KinoiseError(
            f"{file} is missing: expected a LeRobot data set. Check the path, or restore the file from its source."
        )
    value = read_json(file)
    if not isinstance(value, dict):
        raise KinoiseError(f"{file} holds {type(value).__name__}, expected an object. Restore it from the source.")
    version = value.get("codebase_version")
    if version not in VERSIONS:
        raise KinoiseError(
            f"{file}: codebase_version is {version!r}; kinoise reads {', '.join(VERSIONS)}. Convert it with LeRobot's tools."
        )
    try:
        features = {str(name): _declared(str(name), item) for name, item in value["features"].items()}
        fps = None if value.get("fps") is None else float(value["fps"])
        if fps is not None and not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"fps is {fps}, expected steps per second, above 0")
        splits, odd = _splits(value.get("splits") or {})
        return Info(
            root=root,
            version=version,
            features=features,
            fps=fps,
            data_path=str(value["data_path"]),
            video_path=None if value.get("video_path") is None else str(value["video_path"]),
            chunks_size=_at_least_one("chunks_size", value.get("chunks_size", CHUNK_FILES)),
            splits=splits,
            odd=tuple(odd),
            total=(_number(value.get("total_episodes")), _number(value.get("total_frames"))),
            robot_type=None if value.get("robot_type") is None else str(value["robot_type"]),
        )
    except MALFORMED as error:
        raise KinoiseError(f"{file} is damaged ({error!r}). Restore it from the source.") from error


def _declared(name: str, item: Any) -> Declared:
    shape = tuple(int(size) for size in item["shape"])
    if any(size < 0 for size in shape):
        raise ValueError(f"feature '{name}' has shape {list(shape)}")
    details = {**(item.get("video_info") or {}), **(item.get("info") or {})}
    depth = any(bool(details.get(name)) for name in ("video.is_depth_map", "is_depth_map"))
    return Declared(name, str(item["dtype"]), shape, item.get("names"), depth)


def _at_least_one(name: str, value: Any) -> int:
    if int(value) < 1:
        raise ValueError(f"{name} is {value}, expected 1 or more")
    return int(value)


def _number(value: Any) -> int | None:
    return None if value is None else int(value)


def _splits(value: dict[str, Any]) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """The ranges of episodes, as LeRobot's tools write them, and a line for what is none."""
    found, odd = {}, []
    for name, text in value.items():
        match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", str(text))
        if match is None:
            odd.append(f"split '{name}': {text!r} is no range of episodes, first:end")
        else:
            found[str(name)] = (int(match[1]), int(match[2]))
    return found, odd
