"""The codec of the policy server: what goes in comes out, in openpi's bytes; what is hostile is refused, and cheaply."""

from __future__ import annotations

import tracemalloc
import warnings
from contextlib import suppress
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from kinoise.wire import DTYPES, Limits, WireError, pack, unpack

KINDS = st.sampled_from([np.dtype(item) for item in DTYPES])
ARRAYS = KINDS.flatmap(lambda kind: npst.arrays(kind, npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)))
LEAVES = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=20) | st.binary(max_size=20)
)
SCALARS = KINDS.flatmap(lambda kind: npst.from_dtype(kind)).map(lambda item: np.asarray(item)[()])
VALUES = LEAVES | ARRAYS | SCALARS | st.lists(LEAVES, max_size=4) | st.dictionaries(st.text(max_size=5), LEAVES, max_size=3)
MESSAGES = st.dictionaries(st.text(max_size=10), VALUES, max_size=6)


def array(data: Any = b"\0" * 8, dtype: Any = "<f4", shape: Any = (2,), **more: Any) -> bytes:
    """A message with one array, whose fields may be anything."""
    fields = {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}
    return msgpack.packb({"x": fields | {key.encode(): value for key, value in more.items()}})


def same(one: Any, other: Any) -> bool:
    """Equal, with equal types, bit for bit."""
    if isinstance(one, dict):
        return type(other) is dict and one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return type(other) is list and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray | np.generic):
        return (type(one), one.dtype, one.shape) == (type(other), other.dtype, other.shape) and one.tobytes() == other.tobytes()
    if isinstance(one, float):
        return isinstance(other, float) and np.float64(one).tobytes() == np.float64(other).tobytes()
    return type(one) is type(other) and one == other


def as_sent(message: dict[str, Any]) -> dict[str, Any]:
    """What NumPy's scalars are to msgpack: a float64 is a float; others are numbers, of which NaN is one, whatever its bits."""
    numbers = {key: float(item) if isinstance(item, np.float64) else item for key, item in message.items()}
    nans = {key: item.dtype.type("nan") for key, item in numbers.items() if isinstance(item, np.generic) and item != item}
    return numbers | nans


@given(MESSAGES)
def test_what_is_packed_is_unpacked(message: dict[str, Any]) -> None:
    assert same(as_sent(unpack(pack(message))), as_sent(message))


def test_the_bytes_are_those_of_openpi() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    shape = b"\x92\x02\x03"
    dtype, data = b"\xa3<f4", b"\xc4\x18" + values.tobytes()
    fields = b"\xc4\x0b__ndarray__\xc3\xc4\x04data" + data + b"\xc4\x05dtype" + dtype + b"\xc4\x05shape" + shape
    assert pack({"state": values}) == b"\x81\xa5state\x84" + fields
    assert pack({"n": np.int32(7)}) == b"\x81\xa1n\x83\xc4\x0d__npgeneric__\xc3\xc4\x04data\x07\xc4\x05dtype\xa3<i4"


@given(MESSAGES, st.data())
def test_a_message_cut_short_is_refused(message: dict[str, Any], data: st.DataObject) -> None:
    whole = pack(message)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(WireError):
        unpack(whole[:cut])
    with pytest.raises(WireError, match="follow"):
        unpack(whole + b"\xc0")


@given(MESSAGES, st.data())
def test_damaged_bytes_are_refused_or_are_another_message(message: dict[str, Any], data: st.DataObject) -> None:
    bytes_ = bytearray(pack(message))
    for _ in range(data.draw(st.integers(1, 4))):
        bytes_[data.draw(st.integers(0, len(bytes_) - 1))] = data.draw(st.integers(0, 255))
    with suppress(WireError):
        assert isinstance(unpack(bytes(bytes_)), dict)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_a_message(data: bytes) -> None:
    with suppress(WireError):
        assert isinstance(unpack(data), dict)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "cut short"),
        (msgpack.packb([1]), "a list"),
        (msgpack.packb(None), "nothing"),
        (msgpack.packb("text"), "a str"),
        (msgpack.packb({1: 2}), "keys of text"),
        (msgpack.packb({None: 2}), "keys of text"),
        (b"\x81\x90\x01", "keys of text"),
        (msgpack.packb({b"x": 2}), "keys of text"),
        (b"\x82\xa1a\x01\xa1a\x02", "twice"),
        (b"\xc1", "not msgpack"),
        (b"\x81\xa1a\xd6\xff\0\0\0\0", "extension"),
        (b"\x81\xa1a\xc7\x00\x05", "extension"),
        (b"\x81\xa1a\xa2\xff\xfe", "utf-8"),
        (msgpack.packb({"x": "a" * 5000}), "not valid"),
        (msgpack.packb({"x": b"a" * 5000}), "not valid"),
        (msgpack.packb({"x": list(range(2000))}), "more than 100 values"),
        (msgpack.packb({"x": [[[[1]]]]}), "nested deeper"),
        (b"\x81\xa1a" * 2000 + b"\xc0", "nested deeper"),
        (b"\x91" * 2000 + b"\xc0", "nested deeper"),
        (b"\xdf\xff\xff\xff\xff", "cut short"),
        (b"\x81\xa1a\xdd\xff\xff\xff\xff", "cut short"),
        (b"\x81\xa1a\xc6\xff\xff\xff\xff", "cut short|not valid"),
        (b"\x81\xa1a\xdb\xff\xff\xff\xff", "cut short|not valid"),
        (b"\0" * 9000, "at most 8192"),
        (array(dtype="|O"), "not taken"),
        (array(dtype="|V8"), "not taken"),
        (array(dtype=">f4"), "not taken"),
        (array(dtype="<c8", data=b"\0" * 16), "not taken"),
        (array(dtype="<f4,<f4"), "not taken"),
        (array(dtype="float32"), "not taken"),
        (array(dtype=["<f4"]), "not taken"),
        (array(dtype=None), "not taken"),
        (pack({"x": {b"__ndarray__": True, b"data": b"", b"dtype": np.zeros(2, "u1"), b"shape": [0]}}), "not taken"),
        (array(shape=(-2,)), "list of sizes"),
        (array(shape=(-1, -2)), "list of sizes"),
        (array(shape=(2.0,)), "list of sizes"),
        (array(shape=(True, 2)), "list of sizes"),
        (array(shape=2), "list of sizes"),
        (array(shape="2"), "list of sizes"),
        (array(shape=(2**63,)), "at most"),
        (array(shape=(2**63, 0)), "at most"),
        (array(shape=(3,)), "takes 12 bytes, came 8"),
        (array(shape=()), "takes 4 bytes, came 8"),
        (array(shape=(4096, 4096, 4096, 4096)), "came 8"),
        (array(shape=(0, 4096, 4096, 4096, 4096, 4096)), "came 8"),
        (array(shape=(1,) * 7, data=b"\0" * 4), "7 dimensions"),
        (array(data="text"), "came a str"),
        (array(data=[0, 0]), "came a list"),
        (array(dtype="|b1", data=b"\0\2"), "other than 0 and 1"),
        (array(extra=1), "keys of text"),
        (msgpack.packb({"x": {b"__ndarray__": True}}), "keys of text"),
        (msgpack.packb({"x": {b"__ndarray__": False, b"data": b"", b"dtype": "<f4", b"shape": [0]}}), "keys of text"),
        (msgpack.packb({"x": {b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}}), "no uint8"),
        (msgpack.packb({"x": {b"__npgeneric__": True, b"data": float("nan"), b"dtype": "<i4"}}), "no int32"),
        (msgpack.packb({"x": {b"__npgeneric__": True, b"data": -1e39, b"dtype": "<f4"}}), "no float32"),
        (msgpack.packb({"x": {b"__npgeneric__": True, b"data": "1", b"dtype": "<f4"}}), "expected a number"),
        (msgpack.packb({"x": {b"__npgeneric__": True, b"data": 1, b"dtype": "|O"}}), "not taken"),
    ],
)
def test_what_is_hostile_is_refused(data: bytes, said: str) -> None:
    with warnings.catch_warnings(action="error"), pytest.raises(WireError, match=said):  # and in silence
        unpack(data, Limits(message=8192, array=4096, items=100))


def test_a_zero_sized_array_may_not_overflow_its_shape() -> None:
    shape = (0, *(2**22,) * 5)
    with suppress(WireError):
        assert unpack(array(data=b"", shape=shape))["x"].shape == shape


@pytest.mark.parametrize("head", [b"\xdd\x00\xff\xff\xff", b"\xdf\x00\xff\xff\xff", b"\x81\xa1a\xdd\x00\xff\xff\xff"])
def test_a_claim_of_length_allocates_nothing(head: bytes) -> None:
    data = b"\x81\xa1a" + head * 200
    tracemalloc.start()
    with pytest.raises(WireError):
        unpack(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(2, np.float16),
        np.zeros(2, ">f4"),
        np.array([object()]),
        np.array(["a"]),
        np.zeros(2, complex),
        2**70,
        object(),
        {1, 2},
    ],
)
def test_what_has_no_place_in_a_message_is_not_sent(value: Any) -> None:
    with pytest.raises(WireError, match="can't be sent"):
        pack({"x": value})


def test_arrays_are_read_only_views_of_the_message() -> None:
    found = unpack(pack({"x": np.ones(3, np.float32)}))["x"]
    assert not found.flags.writeable
