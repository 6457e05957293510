"""What is said of a damaged LeRobot data set: file, episode and feature; and that the other episodes can still be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kinoise import files
from kinoise.data import Episode, EpisodeStore, Reading, open_store
from kinoise.data.base import episode
from kinoise.data.lerobot import LeRobotStore
from kinoise.spec import Feature, KinoiseError, Spec
from lerobot_v21 import CAMERA, change_table, cut, declare, edit, film, frames, pictures, write_v21

TASKS = ["schieb den Würfel", "引き出しを開ける", "schieb den Würfel", "x", "y"]


@pytest.fixture(scope="module", autouse=True)
def _no_flush():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "sync", lambda path: None)
        yield


V21 = "data/chunk-000/episode_000001.parquet"
FILM = f"videos/chunk-000/{CAMERA}/episode_000001.mp4"


def column(name: str, array: Any) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(name), name, array)


def nan(table: pa.Table) -> pa.Table:
    rows = np.array(table.column("observation.state").to_pylist(), np.float32)
    rows[2, 1] = np.nan
    return column("observation.state", pa.array(list(rows)))(table)


def info(**changes: Any) -> Callable[[Path], None]:
    return lambda root: edit(root / "meta/info.json", lambda value: value.update(changes))


def line(file: str, number: int, **changes: Any) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        lines = [json.loads(text) for text in (root / file).read_text().splitlines()]
        lines[number].update(changes)
        (root / file).write_text("\n".join(map(json.dumps, lines)))

    return change


# Damage to a data set of version 2.1 with videos and episodes of 3, 4 and 5 steps; what is said; whether the rest can be read.
DAMAGE: dict[str, tuple[Callable[[Path], object], str, bool]] = {
    "missing video": (lambda root: (root / FILM).unlink(), f"{FILM} is missing: the '{CAMERA}' of episode 1", True),
    "missing parquet": (lambda root: (root / V21).unlink(), f"{V21} is missing: the data of episode 1", True),
    "cut parquet": (lambda root: cut(root / V21), f"{V21} can't be read .*cut short.*It holds episode 1", True),
    "missing rows": (
        lambda root: change_table(root / V21, lambda table: table.slice(0, 3)),
        f"{V21}: episode 1 has 3 rows .*expected its 4 steps",
        True,
    ),
    "rows of another episode": (
        lambda root: change_table(root / V21, column("episode_index", pa.array([1, 1, 7, 1]))),
        f"{V21}: episode 1 has 0 rows",
        True,
    ),
    "cut video": (
        lambda root: film(root / FILM, frames(2, 1), 10),
        f"{FILM}: episode 1, '{CAMERA}': no frame at 0.200 s, which is step 2 of 4",
        True,
    ),
    "truncated video": (lambda root: cut(root / FILM), f"{FILM}: episode 1, '{CAMERA}': can't be decoded", True),
    "video of another size": (
        lambda root: film(root / FILM, frames(4, 1, (32, 32)), 10),
        rf"{FILM}: episode 1, '{CAMERA}': a frame is \[32, 32, 3\], expected \[32, 48, 3\]",
        True,
    ),
    "NaN": (lambda root: change_table(root / V21, nan), f"{V21}: episode 1, 'observation.state' is NaN .* step 2", True),
    "text for numbers": (
        lambda root: change_table(root / V21, column("action", pa.array(["a"] * 4))),
        f"{V21}: episode 1, 'action': it holds string, expected numbers",
        True,
    ),
    "float for integers": (
        lambda root: (
            change_table(root / V21, lambda table: table.append_column("count", pa.array([1.5] * 4))),
            declare(root, count={"dtype": "int64", "shape": [1]}),
        ),
        f"{V21}: episode 1, 'count' is float64 in the file, expected int64",
        False,
    ),
    "another number of dimensions": (
        lambda root: change_table(root / V21, column("action", pa.array([[1.0, 2.0, 3.0]] * 4))),
        rf"{V21}: episode 1, 'action': it has 3 numbers a row, expected \[2\]",
        True,
    ),
    "ragged rows": (
        lambda root: change_table(root / V21, column("action", pa.array([[1.0, 2.0], [1.0], [1.0], [1.0, 2.0]]))),
        f"{V21}: episode 1, 'action': its rows have 1 to 2 numbers",
        True,
    ),
    "gaps": (
        lambda root: change_table(root / V21, column("action", pa.array([[1.0, None]] * 4))),
        f"{V21}: episode 1, 'action': some of its numbers are missing",
        True,
    ),
    "missing column": (
        lambda root: change_table(root / V21, lambda table: table.drop_columns(["action"])),
        f"{V21}: episode 1: column 'action' is missing",
        True,
    ),
    "time that goes back": (
        lambda root: change_table(root / V21, column("timestamp", pa.array([0.0, 0.2, 0.1, 0.3]))),
        f"{FILM}: episode 1, '{CAMERA}': its 'timestamp' goes back",
        True,
    ),
    "no steps": (line("meta/episodes.jsonl", 1, length=0), "episodes.jsonl: episode 1 has length 0", True),
    "listed twice": (line("meta/episodes.jsonl", 1, episode_index=0), "episodes.jsonl: episode 0 is listed twice", True),
    "length that is no number": (line("meta/episodes.jsonl", 1, length=None), "episodes.jsonl: episode 1 is damaged", True),
    "no table of tasks": (lambda root: (root / "meta/tasks.jsonl").unlink(), r"meta/tasks\.jsonl is missing", True),
    "cut table of tasks": (lambda root: cut(root / "meta/tasks.jsonl"), r"meta/tasks\.jsonl, line .: not JSON", True),
    "other totals": (info(total_frames=99), r"info\.json: total_frames is 99, but .*episodes\.jsonl lists 12", True),
    "no table of episodes": (lambda root: (root / "meta/episodes.jsonl").unlink(), r"meta/episodes\.jsonl is missing", False),
    "cut table of episodes": (lambda root: cut(root / "meta/episodes.jsonl", 0.9), r"episodes\.jsonl, line 3: not JSON", False),
    "cut info": (lambda root: cut(root / "meta/info.json"), r"info\.json is not valid JSON", False),
    "info of a list": (lambda root: (root / "meta/info.json").write_text("[]"), r"info\.json holds list", False),
    "no info": (lambda root: (root / "meta/info.json").unlink(), r"info\.json is missing", False),
    "no features": (info(features=None), r"info\.json is damaged", False),
    "no action": (info(features={"observation.state": {"dtype": "float32", "shape": [3]}}), "expected 'action'", False),
    "rate of zero": (info(fps=0), "fps is 0.0, expected steps per second", False),
    "unknown version": (info(codebase_version="v1.6"), "codebase_version is 'v1.6'; kinoise reads v3.0, v2.1, v2.0", False),
    "path that leads out": (
        info(data_path="../{episode_index}.parquet"),
        r"data_path leads out of the data set: '\.\./0",
        False,
    ),
    "absolute path": (info(video_path="/tmp/{episode_index}.mp4"), "video_path leads out of the data set: '/tmp/0", False),
    "path that looks into objects": (
        info(data_path="{episode_index.__class__}"),
        "'{episode_index.__class__}' is unknown",
        False,
    ),
    "path padded without end": (info(data_path="{episode_index:099999999d}"), "'{episode_index}' is unknown", False),
    "path of another version": (info(data_path="{file_index}.parquet"), r"data_path is .* v2\.1 does not fill", False),
}


def read_all(store: EpisodeStore) -> tuple[list[Episode], list[str]]:
    """The episodes that can be read, and what is said of the others."""
    good, said = [], []
    for index in range(len(store.ends)):
        try:
            good.append(episode(store, index))
        except KinoiseError as error:
            said.append(str(error))
    return good, said


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named_and_the_other_episodes_can_be_read(case, tmp_path):
    damage, message, readable = DAMAGE[case]
    root, items = tmp_path / "da ta", pictures((3, 4, 5))
    write_v21(root, items, TASKS[:3])
    damage(root)
    with pytest.raises(KinoiseError, match=message) as caught:
        episode(open_store(root, Reading(format="lerobot")), 1)
    assert str(root) in str(caught.value)
    assert "\n" not in str(caught.value)
    if not readable:
        return
    problems: list[str] = []
    good, later = read_all(open_store(root, report=problems.append))
    assert any(str(caught.value) == problem for problem in [*problems, *later])
    states = {item.arrays["state"].tobytes() for item in good}
    assert all(items[index]["state"].tobytes() in states for index in (0, 2))


def test_all_problems_are_said_at_once(tmp_path):
    root = tmp_path / "data"
    items = pictures((3, 4, 5, 6, 7))
    write_v21(root, items, TASKS)
    (root / FILM.replace("000001", "000000")).unlink()
    cut(root / V21)
    film(root / FILM.replace("000001", "000002"), frames(2), 10)
    change_table(root / V21.replace("000001", "000003"), lambda table: table.slice(1, 5))
    problems: list[str] = []
    store = open_store(root, report=problems.append)
    good, later = read_all(store)
    # What is missing is said first, then what the footers tell, and on reading what the videos do.
    said = [f"episode_00000{number}.{kind}" for number, kind in ((0, "mp4"), (1, "parquet"), (3, "parquet"), (2, "mp4"))]
    assert [part in problem for part, problem in zip(said, [*problems, *later], strict=True)] == [True] * 4
    assert [item.instruction for item in good] == [TASKS[4]]
    np.testing.assert_array_equal(good[0].arrays["state"], items[4]["state"])


def test_nothing_left_to_read_is_an_error(tmp_path):
    write_v21(tmp_path / "data", pictures((3,)), ["x"])
    cut(tmp_path / "data/data/chunk-000/episode_000000.parquet")
    with pytest.raises(KinoiseError, match="none of its 1 episodes can be read"):
        open_store(tmp_path / "data", report=lambda problem: None)


V3 = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def flip(file: Path, column: str) -> None:
    """Changes a byte of the numbers of a column, in its last row group."""
    footer = pq.read_metadata(file)
    group = footer.row_group(footer.num_row_groups - 1)
    found = next(item for item in map(group.column, range(group.num_columns)) if item.path_in_schema.startswith(column))
    content = bytearray(file.read_bytes())
    content[found.data_page_offset - 2] ^= 1  # the end of its dictionary, where the last of its numbers is
    file.write_bytes(content)


DAMAGE_V3: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing rows": (
        lambda root: change_table(root / V3, lambda table: pa.concat_tables([table.slice(0, 8), table.slice(9)])),
        f"{V3}: episode 2 has 8 rows",
    ),
    "changed bytes": (lambda root: flip(root / V3, "action"), f"{V3} can't be read .*damaged"),
    "cut parquet": (lambda root: cut(root / V3), f"{V3} can't be read .*It holds episodes 0, 1, 2"),
    "cut table of episodes": (lambda root: cut(root / EPISODES), f"{EPISODES} can't be read"),
    "no table of episodes": (lambda root: (root / EPISODES).unlink(), "holds no parquet file"),
    "no table of tasks": (lambda root: (root / "meta/tasks.parquet").unlink(), "tasks.parquet is missing"),
    "cut table of tasks": (lambda root: cut(root / "meta/tasks.parquet"), "the table of tasks can't be read"),
    "no place of a video": (
        lambda root: change_table(root / EPISODES, lambda table: table.drop_columns([f"videos/{CAMERA}/from_timestamp"])),
        f"episode 0 is damaged .*videos/{CAMERA}/from_timestamp",
    ),
    "other rows": (
        lambda root: change_table(root / EPISODES, column("dataset_to_index", pa.array([6, 7, 15]))),
        "episode 2 has length 9, but spans 8 rows",
    ),
    "cut video": (
        lambda root: film(root / f"videos/{CAMERA}/chunk-000/file-000.mp4", frames(12), 10),
        f"file-000.mp4: episode 2, '{CAMERA}': no frame at 1.200 s, which is step 5 of 9",
    ),
    "missing video": (
        lambda root: (root / f"videos/{CAMERA}/chunk-000/file-000.mp4").unlink(),
        f"file-000.mp4 is missing: the '{CAMERA}' of episodes 0, 1, 2",
    ),
}


@pytest.mark.parametrize("case", DAMAGE_V3)
def test_damage_to_version_3_is_named(case, tmp_path):
    damage, message = DAMAGE_V3[case]
    spec = Spec({"image.top": Feature((32, 48, 3), "image")}, Feature((2,)), 10.0)
    items = [
        Episode({"action": item["action"], "image.top": item[CAMERA]}, task)
        for item, task in zip(pictures(), TASKS, strict=False)
    ]
    LeRobotStore.write(tmp_path / "data", spec, items, video=True)
    damage(tmp_path / "data")
    with pytest.raises(KinoiseError, match=message) as caught:
        episode(open_store(tmp_path / "data"), 2)
    assert "\n" not in str(caught.value)
