"""The table of a LeRobot data set's episodes: how long they are, what was asked for, and in which files they lie."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ...files import MALFORMED
from ...spec import KinoiseError
from ..base import Report
from .layout import INFO, TASKS_PATH, Info

UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError)
"""What pyarrow raises for damaged files; the last two when names in them are no text, or not those expected."""


class Clip(NamedTuple):
    """An episode's part of a video file."""

    file: str
    start: float
    """Seconds at which the episode's time 0 is."""


@dataclass(frozen=True)
class Entry:
    """An episode.

    Args:
        number: LeRobot's `episode_index`, which its rows bear.
        length: steps.
        tasks: what was asked for, by `task_index`; more than one where it changed within the episode.
        data: the parquet file with its rows, relative to the root.
        clips: for each video feature.
    """

    number: int
    length: int
    tasks: tuple[str, ...]
    data: str
    clips: dict[str, Clip]


def read_episodes(info: Info, report: Report) -> tuple[list[Entry], dict[int, str], list[int]]:
    """The episodes that can be read, by number, the tasks by index, and the numbers of the episodes that can't be read;
    `report` takes what is wrong with these.

    Raises KinoiseError when the table itself can't be read, or no episode is left.
    """
    tasks = _read_tasks(info, report)
    order = {text: index for index, text in tasks.items()}
    table, rows = _table_v3(info) if info.version == "v3.0" else _table_v2(info)
    videos = [name for name, item in info.features.items() if item.dtype == "video"]
    found: dict[int, Entry] = {}
    lost: list[int] = []
    for row in rows:
        try:
            entry = _entry(info, row, videos, order)
            wrong = _wrong(row, entry, found)
        except MALFORMED as error:
            report(f"{table}: episode {row.get('episode_index')} is damaged ({error!r}). Restore the file from its source.")
            lost.append(row["episode_index"] if isinstance(row.get("episode_index"), int) else len(rows))
            continue
        if wrong is not None:
            report(f"{table}: episode {entry.number} {wrong}. Restore the file from its source, or convert it again.")
            lost += [] if entry.number in found else [entry.number]
            continue
        found[entry.number] = entry
    entries = [found[number] for number in sorted(found)]
    _check_totals(info, table, entries, report)
    kept = _present(info, entries, report)
    if not kept:
        raise KinoiseError(f"{info.root}: none of the {len(entries)} episodes that {table} lists can be read.")
    lost += sorted(found.keys() - {entry.number for entry in kept})
    return kept, tasks, lost


def _wrong(row: dict[str, Any], entry: Entry, found: dict[int, Entry]) -> str | None:
    if entry.number in found:
        return "is listed twice"
    if entry.number < 0 or entry.length < 1:
        return f"has length {entry.length}, expected 1 step or more"
    span = None if row.get("dataset_to_index") is None else row["dataset_to_index"] - row["dataset_from_index"]
    if span is not None and span != entry.length:
        return f"has length {entry.length}, but spans {span} rows (dataset_from_index to dataset_to_index)"
    return None


def _entry(info: Info, row: dict[str, Any], videos: Sequence[str], order: dict[str, int]) -> Entry:
    number = int(row["episode_index"])
    texts = [text for text in (row["tasks"] if isinstance(row["tasks"], list) else [row["tasks"]]) if text is not None]
    # LeRobot writes a set in any order. Texts that its table of tasks lacks come last.
    tasks = tuple(sorted(dict.fromkeys(map(str, texts)), key=lambda text: order.get(text, len(order))))
    if info.version == "v3.0":
        data = info.data_file(chunk_index=int(row["data/chunk_index"]), file_index=int(row["data/file_index"]))
        clips = {}
        for key in videos:
            chunk, file = int(row[f"videos/{key}/chunk_index"]), int(row[f"videos/{key}/file_index"])
            path = info.video_file(video_key=key, chunk_index=chunk, file_index=file)
            clips[key] = Clip(path, float(row[f"videos/{key}/from_timestamp"]))
    else:
        place = {"episode_chunk": number // info.chunks_size, "episode_index": number}
        data = info.data_file(**place)
        clips = {key: Clip(info.video_file(video_key=key, **place), 0.0) for key in videos}
    return Entry(number, int(row["length"]), tasks, data, clips)


def _table_v3(info: Info) -> tuple[Path, list[dict[str, Any]]]:
    folder = info.root / "meta/episodes"
    files = sorted(folder.glob("*/*.parquet"))
    if not files:
        raise KinoiseError(f"{folder} holds no parquet file: the table of episodes is missing. Restore it from the source.")
    rows: list[dict[str, Any]] = []
    for file in files:
        try:
            parquet = pq.ParquetFile(file)
            names = parquet.schema_arrow.names
            # The statistics are most of the table.
            rows += parquet.read(columns=[name for name in names if not name.startswith("stats/")]).to_pylist()
        except UNREADABLE as error:
            raise KinoiseError(
                f"{file} can't be read ({_line(error)}): it was cut short. Restore it from the source."
            ) from error
    return folder, rows


def _table_v2(info: Info) -> tuple[Path, list[dict[str, Any]]]:
    file = info.root / "meta/episodes.jsonl"
    return file, _read_lines(file)


def _read_tasks(info: Info, report: Report) -> dict[int, str]:
    """By `task_index`; empty when the table can't be read, since the episodes bear the texts too."""
    try:
        if info.version != "v3.0":
            return {int(row["task_index"]): str(row["task"]) for row in _read_lines(info.root / "meta/tasks.jsonl")}
        file = info.root / TASKS_PATH
        if not file.is_file():
            raise KinoiseError(f"{file} is missing. Restore it from the source.")
        table = pq.read_table(file)
        texts = [name for name in table.column_names if name != "task_index"]
        indices = table.column("task_index").to_pylist()
        return dict(zip(map(int, indices), map(str, table.column(texts[0]).to_pylist()), strict=True))
    except KinoiseError as error:
        report(str(error))
    except (*UNREADABLE, *MALFORMED) as error:
        report(f"{info.root}: the table of tasks can't be read ({_line(error)}). Restore it from the source.")
    return {}


def _read_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file."""
    if not file.is_file():
        raise KinoiseError(f"{file} is missing. Restore it from the source.")
    rows, number = [], 0
    try:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                rows.append(json.loads(line))
                if not isinstance(rows[-1], dict):
                    raise KinoiseError(f"{file}, line {number}: expected an object, came {line.strip()[:40]}. Restore it.")
    except (OSError, UnicodeDecodeError) as error:
        raise KinoiseError(f"{file} can't be read ({_line(error)}). Restore it from the source.") from error
    except (ValueError, RecursionError) as error:
        raise KinoiseError(f"{file}, line {number}: not JSON ({error}). Restore it from the source.") from error
    return rows


def _check_totals(info: Info, table: Path, entries: Sequence[Entry], report: Report) -> None:
    for name, said, come in (
        ("total_episodes", info.total[0], len(entries)),
        ("total_frames", info.total[1], sum(entry.length for entry in entries)),
    ):
        if said is not None and said != come:
            report(
                f"{info.root / INFO}: {name} is {said}, but {table} lists {come} in whole. "
                f"Download what is missing, or convert the data set again."
            )
            return


def _present(info: Info, entries: Sequence[Entry], report: Report) -> list[Entry]:
    """Those whose files are there; a line for each file that is not."""
    owners: dict[tuple[str, str], list[int]] = {}
    for entry in entries:
        owners.setdefault((entry.data, "data"), []).append(entry.number)
        for key, clip in entry.clips.items():
            owners.setdefault((clip.file, f"'{key}'"), []).append(entry.number)
    lost: set[int] = set()
    for (file, label), numbers in sorted(owners.items()):
        if not (info.root / file).is_file():
            report(f"{info.root / file} is missing: the {label} of {numbered(numbers)}. Download or restore it.")
            lost.update(numbers)
    return [entry for entry in entries if entry.number not in lost]


def numbered(numbers: Iterable[int]) -> str:
    """Episodes by number, at most a handful of them."""
    numbers = list(numbers)
    shown = ", ".join(map(str, numbers[:5])) + (f", ... ({len(numbers)} in all)" if len(numbers) > 5 else "")
    return f"{'episode' if len(numbers) == 1 else 'episodes'} {shown}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
