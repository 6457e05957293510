"""What a decoded copy promises: what the source holds, made once, whole or not at all, whoever is killed in between."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from kinoise.data import Episode, Reading, open_store, write_store
from kinoise.data.cache import build, content, mapped, measured, spread
from kinoise.data.cache import copies as cache
from kinoise.data.chunks import ChunkFiles, ChunkReader
from kinoise.data.native import NativeStore
from kinoise.data.resident import Resident, file_bytes
from kinoise.data.subset import Subset
from kinoise.data.view import view
from kinoise.spec import Feature, KinoiseError, Spec
from rich.console import Console
from taped import TapedStore, write_tape

SPEC = Spec(
    {"state": Feature((3,)), "image.a": Feature((4, 5, 3), "image"), "image.b": Feature((3, 3, 3), "image")},
    Feature((2,), low=(-1.0, 0.0), high=(1.0, 1.0)),
    rate=20.0,
)
LENGTHS = (7, 1, 4, 9, 2)
QUIET = Console(quiet=True)


def episodes(lengths=LENGTHS, seed: int = 0) -> list[Episode]:
    rng = np.random.default_rng(seed)
    return [
        Episode(
            {
                "state": rng.normal(size=(steps, 3)).astype(np.float32),
                "action": rng.normal(size=(steps, 2)).astype(np.float32),
                "image.a": rng.integers(0, 256, (steps, 4, 5, 3), np.uint8),
                "image.b": rng.integers(0, 256, (steps, 3, 3, 3), np.uint8),
            },
            f"task {index % 2}",
            {"index": index},
            {"reward": rng.normal(size=steps), "sim_state": rng.normal(size=(steps, 6))},
        )
        for index, steps in enumerate(lengths)
    ]


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    path = write_tape(tmp_path / "my tape", SPEC, episodes())
    for item in path.iterdir():  # files that were there for a while: their hashes may be remembered
        os.utime(item, ns=(0, 0))
    return path


def copies(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir() if item.is_dir())


def same(one, other) -> None:
    steps = int(other.ends[-1])
    assert one.spec == other.spec
    assert one.keys == other.keys
    assert one.ends.tolist() == other.ends.tolist()
    assert [one.texts[index] for index in one.text] == [other.texts[index] for index in other.text]
    assert (one.info, one.extras, one.meta, one.dropped) == (other.info, other.extras, other.meta, other.dropped)
    for key in (*other.keys, *other.extras):
        np.testing.assert_array_equal(one.read(key, 0, steps), other.read(key, 0, steps))
    assert one.stats() == other.stats()


@pytest.mark.parametrize("chunk_bytes", [50, 2**26])
def test_a_copy_is_what_the_source_is(tape, tmp_path, chunk_bytes, monkeypatch):
    monkeypatch.setattr(build, "CHUNK_BYTES", chunk_bytes)
    store = mapped(TapedStore(tape), tmp_path / "cache", console=QUIET)
    assert isinstance(store, NativeStore)
    same(store, TapedStore(tape))
    same(open_store(store.path), SimpleNamespace(**{**vars(TapedStore(tape)), "dropped": ()}, **bound(TapedStore(tape))))
    assert copies(tmp_path / "cache") == [store.path.name]
    assert store.path.name.startswith("my tape-")


def bound(store: TapedStore) -> dict[str, object]:
    return {"keys": store.keys, "read": store.read, "stats": store.stats}


def test_several_processes_make_the_same(tape, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "ALONE_BYTES", 0)
    seen: list[list[int]] = []
    add = build.Journal.add
    monkeypatch.setattr(build.Journal, "add", lambda self, block: seen.append(list(block)) or add(self, block))
    source = TapedStore(tape)
    same(mapped(source, tmp_path / "cache", workers=2, console=QUIET), TapedStore(tape))
    assert not source.decoded
    assert len(seen) > 2
    assert sorted(index for block in seen for index in block) == list(range(len(LENGTHS)))


def test_a_native_store_is_itself(tmp_path):
    write_store(tmp_path / "native", SPEC, episodes())
    store = open_store(tmp_path / "native")
    assert mapped(store, tmp_path / "cache") is store
    seen = view(store, Reading(rename={"image.a": "image.top"}))
    assert mapped(seen, tmp_path / "cache").store is store
    assert not (tmp_path / "cache").exists()


def test_views_and_subsets_stay_over_a_copy_of_what_they_show(tape, tmp_path):
    reading = Reading(rename={"image.a": "image.top"}, keys=("image.top", "state"), rate=5.0, control="absolute")
    source = TapedStore(tape)
    store = mapped(view(source, reading), tmp_path / "cache", console=QUIET)
    same(store, view(TapedStore(tape), reading))
    assert "image.b" not in {key for _, keys in source.decoded for key in keys}
    other = mapped(view(TapedStore(tape), Reading(keys=("image.a", "state"))), tmp_path / "cache", console=QUIET)
    assert other.store.path == store.store.path
    chosen = mapped(Subset(TapedStore(tape), [3, 0]), tmp_path / "cache", console=QUIET)
    same(chosen, Subset(TapedStore(tape), [3, 0]))
    assert len(copies(tmp_path / "cache")) == 2


def test_a_copy_is_used_again_wherever_the_source_lies(tape, tmp_path, capsys):
    console = Console(stderr=True, width=400)
    first = mapped(TapedStore(tape), tmp_path / "cache", console=console)
    assert f"decoding {len(LENGTHS)} episodes of {tape} into {first.path}" in capsys.readouterr().err
    shutil.copytree(tape, tmp_path / "elsewhere" / "my tape")
    for path in (tape, tmp_path / "elsewhere" / "my tape"):
        source = TapedStore(path)
        assert mapped(source, tmp_path / "cache", console=console).path == first.path
        assert not source.decoded
        assert f"using the decoded copy {first.path}" in capsys.readouterr().err


def rewrite(tape: Path) -> None:
    """Other bytes in a file of the same size, with the time of its change set back."""
    file, before = tape / "3.npz", (tape / "3.npz").stat()
    data = bytearray(file.read_bytes())
    place = data.index(episodes()[3].arrays["image.a"].tobytes()[:50])
    data[place] ^= 255
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def rename(tape: Path) -> None:
    about = json.loads((tape / "about.json").read_text())
    about["episodes"][0]["info"] = {"index": "other"}
    (tape / "about.json").write_text(json.dumps(about))


@pytest.mark.parametrize("change", [rewrite, rename])
def test_another_content_is_another_copy(tape, tmp_path, change, monkeypatch):
    first = mapped(TapedStore(tape), tmp_path / "cache", console=QUIET)
    change(tape)
    monkeypatch.setattr(TapedStore, "decode", lambda self, episode, keys: no_checks(self, episode, keys))
    second = mapped(TapedStore(tape), tmp_path / "cache", console=QUIET)
    assert second.path != first.path
    monkeypatch.setattr(cache, "VERSION", 10**6)
    assert mapped(TapedStore(tape), tmp_path / "cache", console=QUIET).path not in (first.path, second.path)


def no_checks(store: TapedStore, episode: int, keys) -> dict[str, np.ndarray]:
    """Zip's own checksums would refuse what `rewrite` does."""
    return {key: episodes()[episode].arrays.get(key, episodes()[episode].extras.get(key)) for key in keys}


def test_a_source_that_changes_while_it_is_decoded_is_refused(tape, tmp_path, monkeypatch):
    def changed(self, episode, keys):
        if episode == 3 and "image.a" in keys:
            rewrite(self.path)
        return no_checks(self, episode, keys)

    monkeypatch.setattr(TapedStore, "decode", changed)
    with pytest.raises(KinoiseError, match="changed while it was decoded"):
        mapped(TapedStore(tape), tmp_path / "cache", console=QUIET)
    assert not copies(tmp_path / "cache")


def test_files_that_were_only_touched_while_it_was_decoded_are_the_same(tape, tmp_path, monkeypatch):
    decode = TapedStore.decode
    monkeypatch.setattr(TapedStore, "decode", lambda self, *what: (self.path / "3.npz").touch() or decode(self, *what))
    same(mapped(TapedStore(tape), tmp_path / "cache", console=QUIET), TapedStore(tape))


def test_copies_do_not_go_into_the_source(tape, tmp_path):
    (tmp_path / "link").symlink_to(tape)
    for folder in (tape / "cache", tmp_path / "link" / "run" / "cache", tape):
        with pytest.raises(KinoiseError, match=r"within the data set.*cache=FOLDER"):
            mapped(TapedStore(tape), folder, console=QUIET)
    assert len(list(tape.iterdir())) == len(LENGTHS) + 1


@pytest.mark.parametrize("name", ["x" * 255, "\N{HIRAGANA LETTER A}" * 85])
def test_a_source_may_have_the_longest_name(tmp_path, name):
    tape = write_tape(tmp_path / name, SPEC, episodes())
    same(mapped(TapedStore(tape), tmp_path / "cache", console=QUIET), TapedStore(tape))


def test_unchanged_files_are_not_read_again(tape, tmp_path, monkeypatch):
    read: list[Path] = []
    digest = content._digest
    monkeypatch.setattr(content, "_digest", lambda block: read.append(block[1]) or digest(block))
    monkeypatch.setattr(content, "SETTLED_NS", -(10**9))
    mapped(TapedStore(tape), tmp_path / "cache", console=QUIET)
    assert sorted(read) == sorted(tape.iterdir())
    read.clear()
    mapped(TapedStore(tape), tmp_path / "cache", console=QUIET)
    assert not read
    (tape / "2.npz").touch()
    mapped(TapedStore(tape), tmp_path / "cache", console=QUIET)
    assert read == [tape / "2.npz"]
    read.clear()
    (tmp_path / "cache" / cache.MEMORY_FILE).write_text('{"cut')
    mapped(TapedStore(tape), tmp_path / "cache", console=QUIET)
    assert len(read) == len(LENGTHS) + 1


def test_a_file_that_was_written_just_now_is_not_trusted(tape, tmp_path):
    mapped(TapedStore(tape), tmp_path / "cache", console=QUIET)
    kept = (
        json.loads((tmp_path / "cache" / cache.MEMORY_FILE).read_text())
        if (tmp_path / "cache" / cache.MEMORY_FILE).exists()
        else {}
    )
    assert not kept  # the inode's own time, which nobody can set back, is of just now


def test_large_files_and_linked_folders_are_all_of_the_content(tmp_path, monkeypatch):
    monkeypatch.setattr(content, "BLOCK_BYTES", 10)
    real = tmp_path / "real"
    real.mkdir()
    (real / "video").write_bytes(bytes(range(95)))
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "videos").symlink_to(real)
    (real / "loop").symlink_to(tmp_path / "source")

    def number() -> str:
        return content.content(tmp_path / "source", tmp_path / "memory.json", workers=2)

    first = number()
    assert number() == first
    (real / "video").write_bytes(bytes(range(94)) + b"!")
    second = number()
    (real / "video").rename(real / "film")
    assert len({first, second, number()}) == 3


def started(tape: Path, folder: Path, pause: float, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, __file__, str(tape), str(folder), str(pause), *arguments], stderr=subprocess.PIPE)


def journal(folder: Path) -> list[str]:
    found = list(folder.glob(".*.building/journal"))
    return found[0].read_text().splitlines() if found else []


def until(holds) -> None:
    deadline = time.monotonic() + 60
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
    said = [item.communicate(timeout=100)[1].decode() for item in running]
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


def test_statistics_of_a_large_native_store_are_taken_once(tmp_path, monkeypatch):
    write_store(tmp_path / "native", SPEC, episodes())
    store, reading = open_store(tmp_path / "native"), Reading(rename={"image.a": "image.top"}, keys=("image.top",))
    assert measured(store, tmp_path / "cache") is store
    monkeypatch.setattr("kinoise.data.cache.kept.LARGE_BYTES", 0)
    truth = store.stats()
    assert measured(store, tmp_path / "cache").stats() == truth
    with monkeypatch.context() as patch:
        patch.setattr("kinoise.data.native.statistics", lambda store: pytest.fail("taken again"))
        again = open_store(tmp_path / "native")
        assert measured(again, tmp_path / "cache").stats() == truth
        assert measured(view(again, reading), tmp_path / "cache").stats() == {
            "image.top": truth["image.a"],
            "action": truth["action"],
        }
    (tmp_path / "native" / "data" / "state" / "0.0").touch()
    measured(open_store(tmp_path / "native"), tmp_path / "cache").stats()
    (tmp_path / "mixture.yaml").write_text("datasets: [{path: native}, {path: native, name: again}]")
    with monkeypatch.context() as patch:
        patch.setattr("kinoise.data.native.statistics", lambda store: pytest.fail("taken again"))
        mixed = measured(open_store(tmp_path / "mixture.yaml"), tmp_path / "cache")
        assert mixed.stats()["image.a"].mean == pytest.approx(truth["image.a"].mean)
    files = list((tmp_path / "cache").iterdir())
    assert len(files) == 2
    files[0].write_text("{}")
    files[1].write_text("{}")
    assert measured(open_store(tmp_path / "native"), tmp_path / "cache").stats() == truth


def test_rows_written_in_any_order_make_the_array(tmp_path):
    rows = np.arange(60, dtype=np.float32).reshape(20, 3)
    files = ChunkFiles(tmp_path / "array", rows.dtype, (3,), 20, chunk_bytes=7 * 12)
    files.create()
    for start, stop in ((13, 20), (0, 1), (6, 13), (1, 6)):
        files.write(start, rows[start:stop])
    files.complete()
    reader = ChunkReader(tmp_path / "array", rows.dtype, (3,))
    np.testing.assert_array_equal(reader.read(0, 20), rows)
    assert files.nbytes == sum(item.stat().st_size for item in (tmp_path / "array").glob("[0-9]*")) == 21 * 12


def test_pages_are_let_go_and_views_of_them_stay_sound(tmp_path, monkeypatch):
    limit, rows = 2**21, 3000
    own = Resident(limit)
    monkeypatch.setattr("kinoise.data.chunks.RESIDENT", own)
    monkeypatch.setattr("kinoise.data.resident.LOOK_BYTES", 2**18)
    files = ChunkFiles(tmp_path / "array", np.dtype(np.uint8), (4096,), rows, chunk_bytes=2**20)
    files.create()
    truth = np.random.default_rng(0).integers(0, 256, (rows, 4096), np.uint8)
    files.write(0, truth)
    files.complete()
    reader = ChunkReader(tmp_path / "array", np.dtype(np.uint8), (4096,))
    kept, before, most = reader.read(0, 100), file_bytes(), 0
    for start in range(0, rows, 50):
        np.testing.assert_array_equal(reader.gather(np.arange(start, start + 50)), truth[start : start + 50])
        most = max(most, file_bytes() - before)
    assert most < 2 * limit < truth.nbytes
    np.testing.assert_array_equal(kept, truth[:100])


if __name__ == "__main__":
    # Under spawn this file is imported by the processes that decode, so nothing else may happen in it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    build.ALONE_BYTES = 0
    mapped(TapedStore(Path(sys.argv[1]), pause=float(sys.argv[3])), sys.argv[2], workers=int(sys.argv[4]))
