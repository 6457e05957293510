"""A policy out of settings by strangers: built as long as it is no larger than the weights that came with them."""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_buffer_registration_hook, register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode

from ..spec import KinoiseError

BESIDE = 2**26
"""Numbers that a policy may be built of beside those that its file holds: tables that are made anew, the sentence encoder."""
TENSORS = 10_000
"""Tensors, likewise: modules of a few numbers each take memory too."""


class Held(NamedTuple):
    """What a file of weights holds."""

    numbers: int
    tensors: int


def held_by_shapes(shapes: Collection[tuple[int, ...]]) -> Held:
    return Held(sum(math.prod(shape) for shape in shapes), len(shapes))


def held_by(tensors: Mapping[str, Tensor]) -> Held:
    """Numbers that several tensors have in common count once: a file may name the same ones without end."""
    storages = {}
    for item in tensors.values():
        storage = item.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes() // item.itemsize
    return Held(sum(storages.values()), len(storages))


class _Depth(threading.local):
    """How many blocks of `elsewhere` are under way in a thread."""

    value = 0


_elsewhere = _Depth()


@contextmanager
def elsewhere() -> Iterator[None]:
    """What is built in the block counts for no `no_larger` about it: a model whose weights are in files of its own."""
    _elsewhere.value += 1
    try:
        yield
    finally:
        _elsewhere.value -= 1


@contextmanager
def no_larger(held: Held, weights: Path, settings: Path) -> Iterator[None]:
    """Raises KinoiseError where what is built in the block can't be, or comes to more than goes with the file `weights`.

    Settings come from the same hands as the weights: a width of 10^9 would take all memory before the two are compared.

    Args:
        settings: the file that they are from, which may be `weights`.
    """
    most, tensors, built, made = 2 * held.numbers + BESIDE, 2 * held.tensors + TENSORS, 0, 0
    own = threading.get_ident()  # torch's hooks are called for what any thread builds

    def check(numbers: int) -> None:
        if (numbers > most or made > tensors) and not _elsewhere.value:
            raise KinoiseError(
                f"{settings} describes a policy of more than {max(built, numbers)} numbers in {made} tensors, but {weights} "
                f"holds {held.numbers} in {held.tensors}: they do not belong together. Take both from one checkpoint."
            )

    def count(_module: nn.Module, _name: str, item: Tensor | None) -> None:
        nonlocal built, made
        if _elsewhere.value or threading.get_ident() != own:
            return
        built, made = built + (0 if item is None else item.numel()), made + 1
        check(built)

    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        with Sizes(check):
            yield
    except KinoiseError:
        raise
    except Exception as error:  # whatever torch says of sizes that make no sense
        said = " ".join(str(error).split())[:200]
        raise KinoiseError(f"{settings}: no policy can be built of it ({type(error).__name__}: {said}).") from error
    finally:
        for hook in hooks:
            hook.remove()


class Sizes(TorchDispatchMode):
    """Calls `check` with the numbers of each tensor before it is made: some are filled before their module has them."""

    def __init__(self, check: Any) -> None:
        super().__init__()
        self._check = check

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = {argument.name for argument in func._schema.arguments}
        sizes = [item for item in args[:2] if isinstance(item, (list, tuple)) and all(type(size) is int for size in item)]
        if args and sizes and (sizes[0] is args[0] or func.overloadpacket.__name__.startswith("new_")):
            self._check(math.prod(sizes[0]))
        elif func.overloadpacket.__name__ == "repeat":
            self._check(args[0].numel() * math.prod(args[1]))
        elif "device" in named and not any(isinstance(item, Tensor) for item in args):
            # How many linspace, arange, eye and others like them make is theirs to say, where it takes no memory.
            given = {name: None if name in ("generator", "pin_memory") else item for name, item in (kwargs or {}).items()}
            self._check(func(*args, **{**given, "device": torch.device("meta")}).numel())
        elif torch.Tag.pointwise in func.tags:
            shapes = [item.shape for item in args if isinstance(item, Tensor)]
            numbers = math.prod(torch.broadcast_shapes(*shapes))
            # As many as one of these holds are there already, and may be a model's from elsewhere.
            held = (item.untyped_storage().nbytes() // item.itemsize for item in args if isinstance(item, Tensor))
            if numbers > max(held, default=0):
                self._check(numbers)
        return func(*args, **(kwargs or {}))
