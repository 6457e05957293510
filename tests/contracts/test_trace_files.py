"""A trace as a file: cut, damaged, hostile, on a slow disk, written in pieces."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kinoise.deploy.recording import require_whole
from kinoise.deploy.trace import FRAME, MAGIC, TraceError, TraceReader, TraceWriter, _chunks
from kinoise.spec import KinoiseError
from kinoise.wire import pack
from loop_fakes import Setup
from traces import again, events, noise, record, rewrite


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("trace") / "run.trace", Setup(2, answer=noise, history=2))


def test_a_trace_that_was_cut_anywhere_holds_what_came_before(usual: Path, tmp_path: Path) -> None:
    whole, found, cut = usual.read_bytes(), events(usual), tmp_path / "cut.trace"
    with TraceReader(usual) as trace:
        header = len(MAGIC) + FRAME.size + len(pack(trace.header))
    for size in [*range(0, header, 97), *range(header, len(whole), len(whole) // 30), len(whole) - 1]:
        cut.write_bytes(whole[:size])
        if size < header:
            with pytest.raises(TraceError, match=r"no trace|cut short"):
                TraceReader(cut)
            continue
        with TraceReader(cut) as trace:
            part = list(trace.events())
            assert trace.end is None
        assert pack({"": part}) == pack({"": found[: len(part)]})
    outcome = again(cut)
    assert outcome.difference is None
    assert outcome.counts["command"] > 0


def test_a_flipped_bit_is_damage_not_a_run(usual: Path, tmp_path: Path) -> None:
    whole, count, bad = usual.read_bytes(), len(events(usual)), tmp_path / "bad.trace"
    for place in range(0, len(whole), len(whole) // 50):
        bad.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            with TraceReader(bad) as trace:
                found = list(trace.events())
        except TraceError:
            continue
        assert len(found) < count or trace.end is None, place  # a length that is too long looks like a file that was cut short


def frame(data: bytes) -> bytes:
    return struct.pack("<II", len(data), zlib.crc32(data)) + data


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        b"\x81\xa6events\xdd\xff\xff\xff\xff",
        b"\x81\xa6events\xc9\x00\x00\x00\x01\x00\x00",
        b"\x91" * 100_000,
        pack({"events": 3}),
        pack({"events": [["now"]]}),
        pack({"events": [[3, 4]]}),
        pack({"end": 3}),
        pack({"other": 3}),
    ],
)
def test_a_hostile_trace_is_refused(data: bytes, usual: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    with TraceReader(usual) as trace:
        head = MAGIC + frame(pack(trace.header))
    path.write_bytes(head + frame(data))
    with pytest.raises(TraceError):
        again(path)
    path.write_bytes(head + struct.pack("<II", 2**32 - 1, 0))
    with pytest.raises(TraceError, match="damaged"):
        again(path)


@pytest.mark.parametrize(
    ("kind", "value"), [("now", "noon"), ("observe", {"values": {}}), ("poll", {"plan": {}}), ("busy", 3.5), ("stopped", None)]
)
def test_events_of_the_wrong_kind_are_refused(kind: str, value: Any, usual: Path, tmp_path: Path) -> None:
    def change(found: list[tuple[str, Any]]) -> None:
        place = [place for place, item in enumerate(found) if item[0] == kind and (kind != "poll" or item[1])][-2]
        found[place] = (kind, value)

    with pytest.raises(TraceError, match="damaged"):
        again(rewrite(usual, tmp_path, change))


@pytest.mark.parametrize("header", [{"guards": {"nonsense": 1}}, {"controller": {"rate": "fast"}}, {"spec": 3}])
def test_a_header_that_is_not_understood_is_refused(header: dict[str, Any], usual: Path, tmp_path: Path) -> None:
    with pytest.raises(KinoiseError):
        again(rewrite(usual, tmp_path, **header))


def test_a_disk_that_can_not_keep_up_ends_the_trace_and_is_counted(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "slow.trace", {}, backlog=1000)
    for number in range(50):
        writer.add("now", float(number), size=100)
    outcome = writer.close()
    assert 1 <= outcome["events"] < 50
    assert outcome["events"] + outcome["lost"] == 50
    assert "keep up" in outcome["trouble"]
    assert [value for _, value in events(writer.path)] == list(range(outcome["events"]))
    with pytest.raises(KinoiseError, match=f"lacks its last {outcome['lost']} events"):
        require_whole({"file": "slow.trace", **outcome})


def test_what_can_not_be_written_ends_the_trace_and_not_the_run(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "odd.trace", {})
    writer.add("now", 1.0)
    writer.add("now", object())
    outcome = writer.close()
    assert "can't be sent" in outcome["trouble"]
    assert outcome["lost"] >= 1
    with pytest.raises(KinoiseError, match="Choose another out="):
        TraceWriter(tmp_path / "odd.trace" / "run.trace", {})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_values_written_in_pieces_are_the_values_written_whole(value: Any) -> None:
    assert b"".join(_chunks({"": value})) == pack({"": value})


@pytest.mark.parametrize("shape", [(), (3,), (64, 64, 3), (1000, 0), (2, 40000)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.bool_])
def test_arrays_written_in_pieces_are_those_written_whole(shape: tuple[int, ...], dtype: type, tmp_path: Path) -> None:
    array = np.ones(shape, dtype)
    strided = np.stack([array, array], -1)[..., 0]
    for value in (array, strided):
        joined = b"".join(_chunks({"a": [value, 1]}))
        writer = TraceWriter(tmp_path / "one.trace", {})
        writer.add("a", value)
        writer.close()
        ((_, found),) = events(writer.path)
        np.testing.assert_array_equal(found, value)
        assert found.dtype == value.dtype
        assert len(joined) == len(pack({"a": [value, 1]})) or value.nbytes < 1 << 16
