"""What torch.save wrote, read without running any of it."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from kinoise.policies.imports.torch_zip import plain, read_torch
from kinoise.spec import KinoiseError
from omegaconf import OmegaConf


def archive(path: Path, data: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as out:
        out.writestr("archive/data.pkl", data)
        out.writestr("archive/data/0", b"\0" * 8)
    return path


def opcodes(*, size: int, state: bool = False) -> bytes:
    """A tensor of `size` numbers over a storage of two; with `state`, one that is given a state of the file's choice."""
    head = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQ"
    body = storage + b"K\x00(" + b"J" + size.to_bytes(4, "little") + b"t(K\x01t\x89}tR"
    return head + body + (b"}b." if state else b".")


def test_settings_that_keep_what_their_resolvers_found_are_read(tmp_path):
    """As Hydra's `${now:...}` does in every configuration of a run, under the resolver's arguments."""
    OmegaConf.register_new_resolver("told", lambda *asked: "-".join(asked), use_cache=True, replace=True)
    settings = OmegaConf.create({"name": "${told:a,b}", "steps": 3})
    assert settings.name == "a-b"
    assert settings._metadata.resolver_cache["told"]
    OmegaConf.resolve(settings)
    torch.save({"cfg": settings}, tmp_path / "a.ckpt")
    assert plain(read_torch(tmp_path / "a.ckpt")["cfg"]) == {"name": "a-b", "steps": 3}


def test_a_pickle_may_build_what_its_storages_hold_and_change_nothing(tmp_path):
    assert torch.equal(read_torch(archive(tmp_path / "a", opcodes(size=2))), torch.zeros(2))
    with pytest.raises(KinoiseError, match="reaches beyond its storage of 2"):
        read_torch(archive(tmp_path / "b", opcodes(size=3)))
    with pytest.raises(KinoiseError, match="changes what it was given"):
        read_torch(archive(tmp_path / "c", opcodes(size=2, state=True)))
    with pytest.raises(KinoiseError, match="changes what it was given"):
        read_torch(archive(tmp_path / "d", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}b."))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00ls\x85R.", "posix.system"),
        (b"\x80\x02cbuiltins\ngetattr\n.", "builtins.getattr"),
        (b"\x80\x02cbuiltins\ndict\n(tR.", None),
        (b"\x80\x02X\xff\xff\xff\x7fa.", "damaged"),
        (b"\x80\x02r\xff\xff\xff\xff.", "damaged"),
        (b"\x80\x02]h\x05.", "damaged"),
        (b"garbage", "damaged"),
        (b"", "damaged"),
    ],
)
def test_damaged_and_foreign_pickles_end_in_one_line(tmp_path, data, why):
    path = archive(tmp_path / "a", data)
    if why is None:
        assert plain(read_torch(path)) is None
        return
    with pytest.raises(KinoiseError, match=why):
        read_torch(path)


def test_files_that_are_no_torch_archives_are_refused(tmp_path):
    (tmp_path / "old").write_bytes(pickle.dumps([1]))
    with pytest.raises(KinoiseError, match="no zip archive"):
        read_torch(tmp_path / "old")
    whole = archive(tmp_path / "whole", opcodes(size=2)).read_bytes()
    flipped = whole.replace(b"\0" * 8, b"\0" * 7 + b"\1", 1)
    for data in (whole[:-30], flipped):
        (tmp_path / "part").write_bytes(data)
        with pytest.raises(KinoiseError, match=r"cut short or damaged .*: download it again"):
            read_torch(tmp_path / "part")
    with pytest.raises(KinoiseError, match="compressed"):
        read_torch(archive(tmp_path / "bomb", b"\0" * 10**6, zipfile.ZIP_DEFLATED))
    with pytest.raises(KinoiseError, match="does not exist"):
        read_torch(tmp_path / "none")


def test_an_archive_that_lacks_bytes_in_its_midst_is_told_to_be_damaged(tmp_path: Path) -> None:
    data = archive(tmp_path / "a", opcodes(size=2)).read_bytes()
    (tmp_path / "a").write_bytes(data[:40] + data[44:])
    with pytest.raises(KinoiseError, match="lacks some of its bytes"):
        read_torch(tmp_path / "a")
