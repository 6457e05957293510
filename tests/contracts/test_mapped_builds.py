"""How a decoded copy is made: whole or not at all, whoever is killed in between, and whatever fails is named.

Run as a script, this file is a process that makes one, to be killed or to wait for another: see `started`.
"""

from __future__ import annotations

import errno
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from kinoise.data.cache import build, mapped, spread
from kinoise.data.chunks import ChunkFiles
from kinoise.spec import KinoiseError
from taped import LENGTHS, QUIET, TapedStore, copies, episodes, same, settled_tape


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    return settled_tape(tmp_path / "my tape")


def started(tape: Path, folder: Path, pause: float, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, __file__, str(tape), str(folder), str(pause), *arguments], stderr=subprocess.PIPE)


def journal(folder: Path) -> list[str]:
    found = list(folder.glob(".*.building/journal"))
    return found[0].read_text().splitlines() if found else []


def until(holds) -> None:
    deadline = time.monotonic() + 300
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_killed_build_goes_on_where_it_was(tape, tmp_path, workers):
    """SIGKILL after two blocks; the processes that decode end with it."""
    folder = tmp_path / "cache"
    running = started(tape, folder, 0.3, workers)
    until(lambda: len(journal(folder)) >= 2)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    running.kill()
    running.communicate()
    until(lambda: not any(b"spawn_main" in cmdline(pid) for pid in children))
    assert not any(not name.startswith(".") for name in copies(folder))
    done = {index for line in journal(folder) for index in range(int(line.split()[0]), int(line.split()[1]) + 1)}
    with next(folder.glob(".*.building/journal")).open("a") as file:
        file.write("4")  # a line that was cut short, of an episode that is not there
    source = TapedStore(tape)
    store = mapped(source, folder, console=QUIET)
    assert {episode for episode, _ in source.decoded} == set(range(len(LENGTHS))) - done
    assert done
    same(store, TapedStore(tape))
    assert copies(folder) == [store.path.name]


def cmdline(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_two_at_once_wait_for_each_other(tape, tmp_path):
    folder = tmp_path / "cache"
    running = [started(tape, folder, 0.1, "1"), started(tape, folder, 0.1, "1")]
    said = [item.communicate(timeout=300)[1].decode() for item in running]
    assert [item.returncode for item in running] == [0, 0], said
    assert sum("decoding" in text for text in said) == 1
    assert sum("another process" in text or "using" in text for text in said) == 1
    source = TapedStore(tape)
    same(mapped(source, folder, console=QUIET), TapedStore(tape))


def test_an_interrupt_leaves_what_was_done(tape, tmp_path, monkeypatch):
    decode = TapedStore.decode

    def interrupted(self, episode, keys):
        if episode == 3:
            raise KeyboardInterrupt
        return decode(self, episode, keys)

    monkeypatch.setattr(TapedStore, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mapped(TapedStore(tape), tmp_path / "cache", workers=4, console=QUIET)
    monkeypatch.undo()
    source = TapedStore(tape)
    same(mapped(source, tmp_path / "cache", console=QUIET), TapedStore(tape))
    assert {episode for episode, _ in source.decoded} == {3, 4}


BAD = {
    "unreadable": (lambda arrays: None, "episode 2 can't be read"),
    "short": (lambda arrays: {**arrays, "image.a": arrays["image.a"][1:]}, r"'image.a' of episode 2 is uint8\[3, 4, 5, 3\]"),
    "wrong type": (lambda arrays: {**arrays, "state": arrays["state"].astype(float)}, r"'state' of episode 2 is float64"),
    "NaN": (lambda arrays: {**arrays, "state": arrays["state"] * np.float32("nan")}, "episode 2 is NaN or infinite at step 0"),
}


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("case", BAD)
def test_a_bad_episode_is_named_and_nothing_is_left(tape, tmp_path, case, alone, monkeypatch):
    monkeypatch.setattr(build, "ALONE_BYTES", 2**24 if alone else 0)
    change, message = BAD[case]
    item = episodes()[2]
    arrays = change({**item.arrays, **item.extras})
    (tape / "2.npz").unlink()
    if arrays is None:
        (tape / "2.npz").write_bytes(b"PK cut short")
    else:
        np.savez(tape / "2.npz", **arrays)
    with pytest.raises(KinoiseError, match=message) as caught:
        mapped(TapedStore(tape), tmp_path / "cache", workers=2, console=QUIET)
    assert "\n" not in str(caught.value)
    assert str(tape) in str(caught.value)
    assert not copies(tmp_path / "cache")


def test_a_process_that_dies_is_an_error_and_what_was_done_stays(tape, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "ALONE_BYTES", 0)
    (tape / "4.crash").touch()
    with pytest.raises(spread.Unfinished, match="run the command again"):
        mapped(TapedStore(tape), tmp_path / "cache", workers=2, console=QUIET)
    assert copies(tmp_path / "cache")[0].endswith(".building")


def test_too_small_a_disk_is_said_before_and_a_full_one_when_it_is(tape, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(build.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        source = TapedStore(tape)
        with pytest.raises(KinoiseError, match=r"takes 0\.0 GB more.*cache=FOLDER"):
            mapped(source, tmp_path / "cache", console=QUIET)
        assert not source.decoded
    with monkeypatch.context() as patch:
        write = ChunkFiles.write

        def full(self, start, rows):
            if start > 10:
                raise OSError(errno.ENOSPC, "No space left on device")
            write(self, start, rows)

        patch.setattr(ChunkFiles, "write", full)
        with pytest.raises(KinoiseError, match="disk is full"):
            mapped(TapedStore(tape), tmp_path / "cache", workers=3, console=QUIET)
    source = TapedStore(tape)
    same(mapped(source, tmp_path / "cache", console=QUIET), TapedStore(tape))
    assert {episode for episode, _ in source.decoded} < set(range(len(LENGTHS)))


def test_a_damaged_copy_is_told_and_made_again_when_it_is_removed(tape, tmp_path):
    store = mapped(TapedStore(tape), tmp_path / "cache", console=QUIET)
    file = store.path / "data" / "state" / "0.0"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(KinoiseError, match="Remove it: it will be made again"):
        mapped(TapedStore(tape), tmp_path / "cache", console=QUIET)
    shutil.rmtree(store.path)
    same(mapped(TapedStore(tape), tmp_path / "cache", console=QUIET), TapedStore(tape))


def test_a_folder_that_cannot_be_made_is_one_line(tape, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KinoiseError, match="can't write"):
        mapped(TapedStore(tape), tmp_path / "file" / "cache", console=QUIET)


if __name__ == "__main__":
    # Under spawn this file is imported by the processes that decode, so nothing else may happen in it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    build.ALONE_BYTES = 0
    mapped(TapedStore(Path(sys.argv[1]), pause=float(sys.argv[3])), sys.argv[2], workers=int(sys.argv[4]))
