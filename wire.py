"""Messages as bytes: msgpack whose arrays are written as openpi's client and server write them.

An array is the map `{b"__ndarray__": True, b"data": bytes in C order, b"dtype": "<f4", b"shape": [...]}`, a NumPy scalar the
map `{b"__npgeneric__": True, b"data": number, b"dtype": "<f4"}`. Nothing is unpickled, and nothing is allocated because a
message says so: every length is held against the bytes that came and against limits, before anything is made of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import msgpack
import numpy as np

from .spec import KinoiseError

DTYPES = ("<f4", "<f8", "|u1", "<i4", "<i8", "|b1")
ARRAY, SCALAR = b"__ndarray__", b"__npgeneric__"
ARRAY_KEYS = {ARRAY, b"data", b"dtype", b"shape"}
SCALAR_KEYS = {SCALAR, b"data", b"dtype"}


class WireError(KinoiseError):
    """Bytes that are no message, or a value that can't be sent."""


@dataclass(frozen=True)
class Limits:
    """What a message may hold.

    Args:
        message: bytes in all.
        array: bytes of one array.
        dims: of an array.
        items: values and keys in all; an array counts eight and one for each of its dimensions.
        depth: of nesting; an array takes two levels.
        text: bytes of a key or a text.
    """

    message: int = 16 << 20
    array: int = 8 << 20
    dims: int = 6
    items: int = 1024
    depth: int = 4
    text: int = 4096


def pack(value: Any) -> bytes:
    """Raises WireError for what has no place in a message: objects, other dtypes, integers of more than 64 bits."""
    try:
        packed = msgpack.packb(value, default=_plain)
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"can't be sent: {error}") from error
    assert packed is not None
    return packed


def unpack(data: bytes, limits: Limits = Limits()) -> dict[str, Any]:
    """The message in `data`, a map with text keys; its arrays are read-only views of what came.

    Raises WireError when `data` is anything else, or more than `limits` allow.
    """
    if len(data) > limits.message:
        raise WireError(f"a message of {len(data)} bytes: at most {limits.message} are taken")
    return _Reader(data, limits).message()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.str not in DTYPES:
            raise WireError(f"an array of {value.dtype} can't be sent: convert it to one of {_names()}")
        if isinstance(value, np.ndarray):
            return {ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
        return {SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
    raise WireError(f"a {type(value).__name__} can't be sent: numbers, texts, arrays, lists and maps can")


def _names() -> str:
    return ", ".join(np.dtype(item).name for item in DTYPES)


class _Reader:
    """One message, read value by value.

    msgpack's own `unpackb` allocates lists as long as a message claims, at every level, before any limit on depth or number
    could be checked; headers and leaves read one at a time can be refused first.
    """

    def __init__(self, data: bytes, limits: Limits) -> None:
        self._data, self._limits, self._items = data, limits, 0
        self._unpacker = msgpack.Unpacker(
            max_buffer_size=max(1, len(data)), max_str_len=limits.text, max_bin_len=limits.array, max_ext_len=0
        )
        self._unpacker.feed(data)

    def message(self) -> dict[str, Any]:
        try:
            value = self._value(1)
        except msgpack.OutOfData as error:
            raise WireError("the message is cut short") from error
        except ValueError as error:  # msgpack's own words for lengths beyond the limits, bytes without meaning, text not UTF-8
            raise WireError(f"the message is not valid: {str(error) or 'it is not msgpack'}") from error
        if self._unpacker.tell() != len(self._data):
            raise WireError(f"{len(self._data) - self._unpacker.tell()} bytes follow the message")
        if not isinstance(value, dict):
            raise WireError(f"expected a map with text keys, came {_kind(value)}")
        return value

    def _value(self, depth: int) -> Any:
        self._items += 1
        if self._items > self._limits.items:
            raise WireError(f"the message holds more than {self._limits.items} values")
        kind = _container(self._data, self._unpacker.tell())
        if kind is None:
            return self._unpacker.unpack()
        if depth > self._limits.depth:
            raise WireError(f"the message is nested deeper than {self._limits.depth} levels")
        if kind == "map":
            return self._map(self._unpacker.read_map_header(), depth)
        return [self._value(depth + 1) for _ in range(self._unpacker.read_array_header())]

    def _map(self, count: int, depth: int) -> Any:
        found: dict[str | bytes, Any] = {}
        for _ in range(count):
            key = self._value(depth + 1)
            if not isinstance(key, str | bytes):
                raise WireError(f"expected keys of text, came {_kind(key)}")
            if key in found:
                raise WireError(f"the key {key[:80]!r} comes twice")
            found[key] = self._value(depth + 1)
        if found.keys() == ARRAY_KEYS and found[ARRAY] is True:
            return self._array(found[b"data"], found[b"dtype"], found[b"shape"])
        if found.keys() == SCALAR_KEYS and found[SCALAR] is True:
            return _scalar(found[b"data"], found[b"dtype"])
        if any(isinstance(key, bytes) for key in found):
            raise WireError(f"expected keys of text, or those of an array; came {sorted(map(repr, found))[:8]}")
        return found

    def _array(self, data: Any, dtype: Any, shape: Any) -> np.ndarray:
        kind = _dtype(dtype)
        if not isinstance(shape, list) or any(type(size) is not int or size < 0 for size in shape):
            raise WireError(f"an array's shape has to be a list of sizes, came {str(shape)[:80]}")
        if len(shape) > self._limits.dims:
            raise WireError(f"an array of {len(shape)} dimensions: at most {self._limits.dims} are taken")
        if max(shape, default=0) > self._limits.array:
            raise WireError(f"an array of shape {shape}: at most {self._limits.array} bytes are taken")
        if not isinstance(data, bytes) or len(data) != math.prod(shape) * kind.itemsize:
            found = f"{len(data)} bytes" if isinstance(data, bytes) else _kind(data)
            raise WireError(
                f"an array of {kind.name} and shape {shape} takes {math.prod(shape) * kind.itemsize} bytes, came {found}"
            )
        if kind.kind == "b" and data.strip(b"\0\1"):
            raise WireError("an array of bool holds bytes other than 0 and 1")
        return np.frombuffer(data, kind).reshape(shape)


def _container(data: bytes, place: int) -> Literal["map", "list"] | None:
    """What begins at `place`, by msgpack's first byte; None for a leaf, which takes no memory beyond its own bytes."""
    head = data[place] if place < len(data) else 0xC0
    if 0x80 <= head <= 0x8F or head in (0xDE, 0xDF):
        return "map"
    if 0x90 <= head <= 0x9F or head in (0xDC, 0xDD):
        return "list"
    if 0xC7 <= head <= 0xC9 or 0xD4 <= head <= 0xD8:
        raise WireError("the message holds an extension type: numbers, texts, arrays, lists and maps are taken")
    return None


def _dtype(name: Any) -> np.dtype:
    if not isinstance(name, str) or name not in DTYPES:
        raise WireError(f"arrays of {str(name)[:80]!r} are not taken: expected one of {_names()}, little-endian")
    return np.dtype(name)


def _scalar(data: Any, dtype: Any) -> np.generic:
    kind = _dtype(dtype)
    if not isinstance(data, bool | int | float):
        raise WireError(f"expected a number, came {_kind(data)}")
    try:
        with np.errstate(over="raise"):
            return kind.type(data)
    except (ArithmeticError, ValueError) as error:
        raise WireError(f"{data} is no {kind.name}") from error


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
