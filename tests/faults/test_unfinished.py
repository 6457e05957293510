"""What a process that was killed while it wrote leaves, and who removes it: `kinoise.files`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kinoise.files import ANOTHERS_S, new_directory, write_large_file
from kinoise.spec import KinoiseError

PROGRAM = """
import sys, time
from pathlib import Path
from kinoise.files import new_directory
with new_directory(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("written")
    print("ready", flush=True)
    time.sleep(600)
"""


def make_directory(path: Path) -> None:
    with new_directory(path) as folder:
        (folder / "whole").write_text("all of it")


def make_file(path: Path) -> None:
    write_large_file(path, lambda temporary: temporary.write_text("all of it"))


WRITERS = [make_directory, make_file]


@pytest.fixture
def writing(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of writing `data`."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path / "data")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


def unfinished(folder: Path) -> list[Path]:
    return list(folder.glob(".*"))


@pytest.mark.parametrize("make", WRITERS)
def test_what_a_killed_process_left_is_removed_by_the_next(
    make: Callable[[Path], None], writing: subprocess.Popen[str], tmp_path: Path
) -> None:
    writing.kill()
    writing.wait()
    (left,) = unfinished(tmp_path)
    assert (left / "half").exists()
    make(tmp_path / "data")
    assert [item.name for item in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("make", WRITERS)
def test_what_is_still_written_stays(make: Callable[[Path], None], writing: subprocess.Popen[str], tmp_path: Path) -> None:
    (under_way,) = unfinished(tmp_path)
    make(tmp_path / "data")
    assert unfinished(tmp_path) == [under_way]
    assert (under_way / "half").exists()


@pytest.mark.parametrize("make", WRITERS)
def test_what_belongs_to_others_stays(make: Callable[[Path], None], tmp_path: Path) -> None:
    host = socket.gethostname()
    names = [
        ".data",
        ".data.original",
        ".data.unfinished-thesis",
        ".data.unfinished-another.machine-abcdefgh",
        f".data2.unfinished-{host}-abcdefgh",
        f".data.zarr.unfinished-{host}-abcdefgh",
        f"data.unfinished-{host}-abcdefgh",
    ]
    for name in names:
        (tmp_path / name).mkdir()
    fifo, linked = f".data.unfinished-{host}-fifofifo", f".data.unfinished-{host}-linklink"
    os.mkfifo(tmp_path / fifo)
    (tmp_path / linked).symlink_to(names[0])
    names += [fifo, linked]
    make(tmp_path / "data")
    assert {item.name for item in tmp_path.iterdir()} == {"data", *names}


def test_what_another_machine_left_is_removed_a_day_later(tmp_path: Path) -> None:
    left = tmp_path / ".data.unfinished-another.machine-abcdefgh"
    left.mkdir()
    (left / "half").touch()
    for past, there in ((0, True), (ANOTHERS_S / 2, True), (ANOTHERS_S + 60, False)):
        if left.exists():
            then = time.time() - past
            for item in (left / "half", left):
                os.utime(item, (then, then))
        make_file(tmp_path / "data")
        assert left.exists() is there


def test_a_name_with_a_patterns_letters_is_taken_as_it_is(tmp_path: Path) -> None:
    other, own = (f".{name}.unfinished-{socket.gethostname()}-abcdefgh" for name in ("data1", "data[12]"))
    (tmp_path / other).mkdir()
    (tmp_path / own).mkdir()
    make_directory(tmp_path / "data[12]")
    assert {item.name for item in tmp_path.iterdir()} == {"data[12]", other}


def test_one_that_another_removed_before_it_was_locked_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kinoise import files

    opened, lock, given = files._opened, files._lock, []

    def late(path: Path):
        given.append(path)
        if len(given) == 1:
            path.rmdir()
        return opened(path)

    def taken(descriptor: int) -> bool:
        if len(given) == 3:
            given[-1].rmdir()
        return len(given) != 2 and lock(descriptor)

    monkeypatch.setattr(files, "_opened", late)
    monkeypatch.setattr(files, "_lock", taken)
    make_directory(tmp_path / "data")
    assert len(given) == 4
    assert (tmp_path / "data" / "whole").read_text() == "all of it"


@pytest.mark.parametrize("make", WRITERS)
def test_nothing_is_left_by_what_fails(make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kinoise.files.sync", full)
    with pytest.raises(KinoiseError, match="the disk is full"):
        make(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []
