"""The pickle in a file of `torch.save`, read without running anything.

A pickle is a program that may call anything it names. Here a name means one of a few functions of ours, which build tensors,
dictionaries and bytes, or a stand-in that keeps what it is given (OmegaConf's settings). Every other name is refused before
anything is made of it. What a few bytes of it repeat costs no more than what they hold once: it can name the same value again
and again, and hand it to whatever copies, hashes or writes it.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...spec import KinoiseError

Unpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]

LARGEST_PICKLE = 4 * 2**20
"""Bytes of the pickle itself, whose storages lie beside it: a byte of it can become some hundred of memory."""
DIMENSIONS = 64
"""Of a tensor, at most."""
ARGUMENTS = 16
"""Of what a pickle calls, at most: one byte of it hands over a list however long."""
KEYS = (str, int, float, bool, type(None))
"""What keys of dictionaries are, or a tuple of a few of them: nothing deeper, which would be hashed anew at every look."""
SAID = 200
"""Characters of a name or an error out of a file, at most."""

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


def _size(value: Any) -> bool:
    """Whether it is a number that a tensor's size, step or offset can be: products of longer ones take hours."""
    return type(value) is int and 0 <= value < 2**63


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Made:
    """Of `torch._utils._rebuild_tensor_v2`. Raises KinoiseError where it would reach out of its storage."""
    whole = type(size) is type(stride) is tuple and len(size) == len(stride) <= DIMENSIONS
    if not isinstance(storage, Storage) or not whole or not all(map(_size, (offset, *size, *stride))):
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


def _nothing(*_: Any) -> None:
    """In place of what kinoise has no use for: devices, built-in types that dill names."""


FUNCTIONS = {
    ("torch._utils", "_rebuild_tensor_v2"): Function(_tensor),
    ("torch._utils", "_rebuild_parameter"): Function(lambda data, *_: data),
    ("torch", "Size"): Function(lambda items=(): items),
    ("torch", "device"): Function(_nothing),
    ("collections", "OrderedDict"): Function(_dictionary),
    ("collections", "defaultdict"): Function(_dictionary),
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


Load = Callable[[Any], None]
"""What a reader does at an opcode. Its `stack` is what came since the last mark."""


def _refused(what: str) -> Load:
    def refuse(_: Any) -> None:
        raise KinoiseError(f"it holds {what}, which torch.save writes none of")

    return refuse


def _keyed(place: slice) -> Load:
    """Args:
    place: of the keys in the stack.
    """

    def check(reader: Any) -> None:
        for key in reader.stack[place]:
            # OmegaConf keeps what its resolvers found under the arguments: {"now": {("%Y.%m.%d",): "2026.11.23"}}.
            parts = key if type(key) is tuple and len(key) <= ARGUMENTS else (key,)
            if any(type(item) not in KEYS or (type(item) is int and abs(item) >= 2**63) for item in parts):
                raise KinoiseError("a dictionary of the file is damaged")

    return check


def _called(reader: Any) -> None:
    if type(reader.stack[-1]) is not tuple or len(reader.stack[-1]) > ARGUMENTS:
        raise KinoiseError(f"it calls something otherwise than with {ARGUMENTS} values at most, as torch.save does")


def _built(reader: Any) -> None:
    """Without the attributes of a state dict, its modules' versions: each would be a copy of what a few bytes name."""
    state, inst = reader.stack.pop(), reader.stack[-1]
    if isinstance(inst, Fixed):
        inst.__setstate__(state)
    elif not isinstance(inst, OrderedDict):
        raise KinoiseError("the file changes what it was given")


def _checked(code: bytes, check: Load) -> Load:
    usual: Any = Unpickler.dispatch[code[0]]

    def load(reader: Any) -> None:
        check(reader)
        usual(reader)

    return load


class Reader(Unpickler):
    """Nothing but what is named above. In Python, since the one in C takes memory for as many objects as a file says it has."""

    dispatch: ClassVar = {
        **Unpickler.dispatch,
        pickle.DICT[0]: _checked(pickle.DICT, _keyed(slice(None, None, 2))),
        pickle.SETITEM[0]: _checked(pickle.SETITEM, _keyed(slice(-2, -1))),
        pickle.SETITEMS[0]: _checked(pickle.SETITEMS, _keyed(slice(None, None, 2))),
        pickle.REDUCE[0]: _checked(pickle.REDUCE, _called),
        pickle.NEWOBJ[0]: _checked(pickle.NEWOBJ, _called),
        pickle.NEWOBJ_EX[0]: _refused("an object with named arguments"),
        pickle.BUILD[0]: _built,
        # Python takes memory for as many bytes as such an object says it has.
        pickle.BYTEARRAY8[0]: _refused("a bytearray"),
        # What is in them is hashed.
        **dict.fromkeys((code[0] for code in (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET)), _refused("a set")),
    }

    def __init__(self, file: io.BytesIO, storages: Callable[[Any], Storage]) -> None:
        super().__init__(file, encoding="latin1")
        self._storages, self._bytes_left = storages, LARGEST_PICKLE

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in FUNCTIONS:
            return FUNCTIONS[module, name]
        if (module, name) == ("_codecs", "encode"):
            return Function(self._encoded)
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if name in SETTINGS.get(module, ()):
            return StandIn
        raise KinoiseError(
            f"it asks for {module[:SAID]}.{name[:SAID]}, which could run anything: kinoise reads tensors and plain containers "
            "alone. If you trust the file, save its state_dict anew, without other objects"
        )

    def persistent_load(self, pid: Any) -> Storage:
        return self._storages(pid)

    def _encoded(self, text: Any, encoding: Any = "latin1") -> bytes:
        """Of `_codecs.encode`, by which old pickles write bytes: all that a file writes are as many as it holds, at most."""
        if not isinstance(text, str) or encoding != "latin1":
            raise KinoiseError("bytes of the file are damaged")
        self._bytes_left -= len(text)
        if self._bytes_left < 0:
            raise KinoiseError(f"it makes more than {LARGEST_PICKLE >> 20} MiB of bytes, which its pickle can't hold")
        return text.encode("latin1")
