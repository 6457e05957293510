"""Files of `torch.save`, read without running anything: tensors and plain containers alone.

A pickle is a program that may call anything it names. Here a name means one of a few functions of ours, which build tensors,
dictionaries and bytes, or a stand-in that keeps what it is given (OmegaConf's settings). Every other name is refused before
anything is made of it. Storages are read out of the archive, where they lie uncompressed, within their bounds.
"""

from __future__ import annotations

import errno
import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...spec import KinoiseError
from .bounds import Budget

LARGEST_PICKLE = 4 * 2**20
"""Bytes of the pickle itself, whose storages lie beside it: a byte of it can become some hundred of memory."""
DIMENSIONS = 64
"""Of a tensor, at most."""

ZIP = b"PK\x03\x04"
"""What an archive begins with, and what is left of one still does."""

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Fixed:
    """What no pickle can change: one that gives it a state is damaged, or hostile."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise KinoiseError("the file changes what it was given")


class StandIn(Fixed):
    """In place of an object of a class that is not loaded: the state that its pickle gives it, and nothing that it could do."""

    __slots__ = ("state",)

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Function(Fixed):
    """One of ours, which a pickle may call."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)


class Storage(Fixed):
    """A file of the archive, as numbers of one type."""

    __slots__ = ("numbers",)

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers


class Made(Fixed):
    """A tensor, until all is read: one that a pickle reached could be changed by it."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Made:
    """Of `torch._utils._rebuild_tensor_v2`. Raises KinoiseError where it would reach out of its storage."""
    whole = len(size) <= DIMENSIONS and all(type(item) is int and item >= 0 for item in (offset, *size, *stride))
    if not isinstance(storage, Storage) or not whole:
        raise KinoiseError("a tensor of the file is damaged")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    count = len(storage.numbers)
    if 0 not in size and (last >= count or math.prod(size) > count):
        raise KinoiseError(f"a tensor of the file reaches beyond its storage of {count} numbers")
    # No copy: a pickle of some kilobytes can ask for thousands of tensors over one large storage.
    return Made(torch.as_strided(storage.numbers, size, stride, offset))


def _dictionary(*_: Any) -> OrderedDict[Any, Any]:
    """Empty; what is in it follows."""
    return OrderedDict()


def _bytes(text: Any, encoding: Any = "latin1") -> bytes:
    """Of `_codecs.encode`, by which old pickles write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise KinoiseError("bytes of the file are damaged")
    return text.encode("latin1")


def _nothing(*_: Any) -> None:
    """In place of what kinoise has no use for: devices, built-in types that dill names."""


FUNCTIONS = {
    ("torch._utils", "_rebuild_tensor_v2"): Function(_tensor),
    ("torch._utils", "_rebuild_parameter"): Function(lambda data, *_: data),
    ("torch", "Size"): Function(lambda items=(): items),
    ("torch", "device"): Function(_nothing),
    ("collections", "OrderedDict"): Function(_dictionary),
    ("collections", "defaultdict"): Function(_dictionary),
    ("_codecs", "encode"): Function(_bytes),
    ("dill._dill", "_load_type"): Function(_nothing),
}

TYPES = ("dict", "list", "tuple", "int", "float", "str", "bool", "NoneType")
SETTINGS = {
    "omegaconf.dictconfig": ("DictConfig",),
    "omegaconf.listconfig": ("ListConfig",),
    "omegaconf.base": ("ContainerMetadata", "Metadata"),
    "omegaconf.nodes": (
        *("AnyNode", "IntegerNode", "FloatNode", "StringNode", "BooleanNode", "BytesNode", "PathNode"),
        *("InterpolationResultNode",),
    ),
    "typing": ("Any", "Union", "Optional", "Dict", "List"),
    "builtins": TYPES,
    "__builtin__": (*TYPES, "long", "unicode"),  # what protocol 2 calls int and str
}
"""Names that stand for themselves and are called by nothing: OmegaConf's classes, and types that it says values are of."""


def _refused(_: Any) -> None:
    raise KinoiseError("it holds a bytearray, which torch.save writes none of")


class Reader(pickle._Unpickler):  # type: ignore[name-defined]
    """Nothing but what is named above. In Python, since the one in C takes memory for as many objects as a file says it has."""

    # Python takes memory for as many bytes as such an object says it has.
    dispatch: ClassVar = {**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: _refused}  # type: ignore[attr-defined]

    def __init__(self, file: io.BytesIO, storages: Callable[[Any], Storage]) -> None:
        super().__init__(file, encoding="latin1")
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in FUNCTIONS:
            return FUNCTIONS[module, name]
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if name in SETTINGS.get(module, ()):
            return StandIn
        raise KinoiseError(
            f"it asks for {module}.{name}, which could run anything: kinoise reads tensors and plain containers alone. "
            "If you trust the file, save its state_dict anew, without other objects"
        )

    def persistent_load(self, pid: Any) -> Storage:
        return self._storages(pid)


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote to `path`, with `StandIn`s for settings. Raises KinoiseError for whatever else is in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, path.stat().st_size)
    except FileNotFoundError as error:
        raise KinoiseError(f"{path} does not exist") from error
    except zipfile.BadZipFile as error:
        with path.open("rb") as file:
            begun = file.read(len(ZIP)) == ZIP
        if begun:
            raise KinoiseError(f"{path}: a zip archive that is cut short or damaged ({error}): download it again") from error
        raise KinoiseError(
            f"{path}: no zip archive, as torch.save has written since 1.6. Load and save it anew with a newer torch"
        ) from error
    except KinoiseError as error:
        raise KinoiseError(f"{path}: {error}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the file's beginning, where bytes of it are gone
            raise
        raise KinoiseError(f"{path}: a zip archive that lacks some of its bytes: download it again") from error
    except Exception as error:  # whatever a damaged pickle makes of the reader's own stack
        raise KinoiseError(f"{path}: its pickle is damaged ({type(error).__name__}: {error})") from error


def _read(archive: zipfile.ZipFile, size: int) -> Any:
    """Args:
    size: bytes of the archive.
    """
    members = {item.filename: item for item in archive.infolist()}
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1 or members[pickles[0]].file_size > LARGEST_PICKLE:
        raise KinoiseError(f"no file of torch.save with one data.pkl of at most {LARGEST_PICKLE >> 20} MiB")
    stored = all(item.compress_type == zipfile.ZIP_STORED and item.file_size <= item.compress_size for item in members.values())
    if not stored or sum(item.file_size for item in members.values()) > size:
        raise KinoiseError("its members are compressed, or share their bytes, which those of torch.save never do")
    folder, known = pickles[0].removesuffix("data.pkl"), {}

    def storage(pid: Any) -> Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], torch.dtype):
            raise KinoiseError("a storage of the file is damaged")
        name = f"{folder}data/{pid[2]}"
        if name not in members:
            raise KinoiseError(f"it lacks its storage {pid[2]}")
        if name not in known:
            known[name] = pid[1], bytearray(archive.read(name))
        kind, data = known[name]
        if kind != pid[1]:
            raise KinoiseError(f"its storage {pid[2]} is of two types")
        count = len(data) // kind.itemsize
        return Storage(torch.frombuffer(data, dtype=kind, count=count) if count else torch.empty(0, dtype=kind))

    return _finished(Reader(io.BytesIO(archive.read(pickles[0])), storage).load(), {})


def _finished(value: Any, seen: dict[int, Any]) -> Any:
    """With tensors in place of `Made`, each object once however often it occurs."""
    if isinstance(value, Made):
        return value.tensor
    if not isinstance(value, (dict, list, tuple, StandIn)):
        return value
    if id(value) not in seen:
        result: Any = {} if isinstance(value, dict) else [] if isinstance(value, list) else value
        seen[id(value)] = value, result  # the value too: an object that is gone may share its id with a new one
        if isinstance(value, dict):
            result.update((_key(key), _finished(item, seen)) for key, item in value.items())
        elif isinstance(value, list):
            result.extend(_finished(item, seen) for item in value)
        elif isinstance(value, StandIn):
            value.state = _finished(value.state, seen)
        else:
            seen[id(value)] = value, tuple(_finished(item, seen) for item in value)
    return seen[id(value)][1]


def _key(key: Any) -> Any:
    if isinstance(key, (Fixed, tuple)):
        raise KinoiseError("a dictionary of the file is damaged")
    return key


def plain(value: Any) -> Any:
    """Settings without stand-ins: OmegaConf's containers and nodes as dicts, lists and values. Others become None.

    Raises KinoiseError for more than settings could be, see `Budget`: what a pickle shares counts wherever it occurs.
    """
    return _plain(value, Budget(), 0)


def _plain(value: Any, budget: Budget, depth: int) -> Any:
    budget.spend(value, depth)
    if isinstance(value, StandIn):
        state = value.state[0] if isinstance(value.state, tuple) and value.state else value.state
        if not isinstance(state, Mapping):
            return None
        return _plain(state["_content"] if "_content" in state else state.get("_val"), budget, depth + 1)
    if isinstance(value, Mapping):
        for key in value:
            budget.spend(key, depth)
        return {key: _plain(item, budget, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, budget, depth + 1) for item in value]
    return value if isinstance(value, (str, bytes, int, float)) else None
