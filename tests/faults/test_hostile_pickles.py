"""Pickles of a few bytes that name the same value again and again: refused at once, and no memory taken for the copies."""

from __future__ import annotations

import resource
import struct
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from kinoise.policies.imports.torch_zip import read_torch
from kinoise.spec import KinoiseError

GROWTH = 200 << 10
"""KiB that refusing may take."""
LONG_S = 20.0
"""Of the processor's time; each of these took hours, or gigabytes."""
START = b"\x80\x02"
NESTED = b")" + b"2\x86" * 60
"""A tuple of two tuples, each of two, and so on: 2^60 values, in 121 bytes."""
MANY = 200_000


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def repeated(call: bytes, times: int = MANY) -> bytes:
    """A list of what the call makes, so many times."""
    return b"](" + call * times + b"e."


def tensor(size: bytes, stride: bytes) -> bytes:
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x02tQ"
    return START + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + size + stride + b"\x89}tR."


LONG_NUMBER = b"\x8b" + struct.pack("<i", 10**5) + b"\x7f" * 10**5
"""Of 800,000 bits."""
LONG_LIST = START + b"(" + b"N" * 10**6 + b"tq\x000"
LONG_DICT = START + b"}(" + b"".join(b"J" + struct.pack("<i", key) + b"N" for key in range(10**4)) + b"uq\x000"

HOSTILE = {
    "a key": START + b"}" + NESTED + b"Ns.",
    "keys": START + b"}(" + NESTED + b"Nu.",
    "a dictionary's keys": START + b"(" + NESTED + b"Nd.",
    "a long number as a key": START + b"}" + LONG_NUMBER + b"q\x00" + b"Nsh\x00Ns" * 10 + b".",
    "a set": b"\x80\x04\x8f(" + NESTED + b"\x90.",
    "a frozen set": b"\x80\x04(" + NESTED + b"\x91.",
    "a storage's name": START + b"(" + text("storage") + b"ctorch\nFloatStorage\n" + NESTED + b"NNtQ.",
    "a storage's type": START + b"(" + text("storage") + NESTED + text("0") + b"NNtQ.",
    "an error's text": START + b"c_codecs\nencode\n" + NESTED + text("latin1") + b"\x86R.",
    "a name": START + b"c" + b"m" * 10**6 + b"\nn\n.",
    "bytes": START
    + (b"c_codecs\nencode\nq\x00" + text("a" * 2**20) + text("latin1") + b"\x86q\x010")
    + repeated(b"h\x00h\x01R", 1500),
    "a size": tensor(b"(" + LONG_NUMBER + b"q\x05" + b"h\x05" * 60 + b"t", b"(" + b"K\x00" * 61 + b"t"),
    "a step": tensor(b"K\x02\x85", LONG_NUMBER + b"\x85"),
    "less than nothing": tensor(b"K\x02\x85", b"J\xff\xff\xff\xff\x85"),
    "more steps than sizes": tensor(b"K\x02\x85", b"K\x01K\x01\x86"),
    "what is called": LONG_LIST + b"ccollections\nOrderedDict\nq\x010" + repeated(b"h\x01h\x00R"),
    "what is made": LONG_LIST + b"ctyping\nAny\nq\x010" + repeated(b"h\x01h\x00\x81"),
}


def written(path: Path, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", b"\0" * 8)
    return path


@pytest.mark.parametrize("case", HOSTILE)
def test_what_a_pickle_repeats_is_refused_before_it_is_hashed_copied_or_written(case: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a", HOSTILE[case])
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(KinoiseError) as caught:
        read_torch(path)
    assert time.process_time() - began < LONG_S
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 1000


def test_attributes_of_state_dicts_are_not_copied_into_each(tmp_path: Path) -> None:
    """Torch gives them one, the versions of their modules; a pickle can give the same thousands of them to each."""
    made = b"ccollections\nOrderedDict\nq\x01)Rh\x00b"
    path = written(tmp_path / "a", LONG_DICT + repeated(made, 1000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read_torch(path) == [{}] * 1000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH


def test_what_torch_writes_is_read(tmp_path: Path) -> None:
    """Keys of each kind, bytes in the pickle of an old protocol, a module's state dict with its versions."""
    state = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).state_dict()
    value = {"a": 1, 2: [3.0], 0.5: (), True: b"\x80\xff" * 9, None: None, "state": state, "empty": OrderedDict()}
    torch.save(value, tmp_path / "a")
    found = read_torch(tmp_path / "a")
    assert {key: item for key, item in found.items() if key != "state"} == {k: v for k, v in value.items() if k != "state"}
    assert found["state"].keys() == state.keys()
    assert all(torch.equal(found["state"][name], item) for name, item in state.items())
