"""What a decoded copy promises: what the source holds, made once for each content, wherever the source lies."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from kinoise.data import Reading, open_store, write_store
from kinoise.data.cache import build, content, mapped, measured
from kinoise.data.cache import copies as cache
from kinoise.data.native import NativeStore
from kinoise.data.subset import Subset
from kinoise.data.view import view
from kinoise.spec import KinoiseError
from rich.console import Console
from taped import LENGTHS, QUIET, SPEC, TapedStore, copies, episodes, same, settled_tape, write_tape


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    return settled_tape(tmp_path / "my tape")


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
