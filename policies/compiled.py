"""Plans as compiled graphs: what a network evaluation spends on launching small operators, paid once.

A function is traced with make_fx and compiled by torch's inductor, once for all that it depends on besides tensors. Weights are
part of a graph, so graphs are dropped when weights change. On a GPU a whole plan is a CUDA graph as well: one launch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from ..spec import KinoiseError

UNROLLED = 12
"""Evaluations in one graph, at most: compilation takes long where a graph is large. Longer plans are compiled by evaluation."""

MOST = 64
"""Graphs that are kept; all are dropped for one more."""

OPTIONS = {"size_asserts": False}
"""Of inductor: `Graphs` gives a graph the inputs that it was compiled for, and assertions cost a tenth of a small plan."""

WARM_UP = 3
"""Calls before a CUDA graph is captured, in which libraries choose and allocate."""

SIGNATURES: dict[Hashable, int] = {}
"""Of all values that became `Leaves`, numbered: structure, shapes, memory layouts, types."""

Function = Callable[..., Any]


class Leaves:
    """The tensors of a nested value, and all else about it: what a graph's inputs and outputs are made of.

    Python floats become tensors, so that values which differ in nothing else share a graph.
    """

    def __init__(self, value: Any) -> None:
        found, self._tree = pytree.tree_flatten(value)
        found = [torch.tensor(item) if isinstance(item, float) else item for item in found]
        self.tensors: list[Tensor] = [item for item in found if isinstance(item, Tensor)]
        self._others = tuple(None if isinstance(item, Tensor) else (item,) for item in found)
        like = tuple((tuple(item.shape), _layout(item), item.dtype) for item in self.tensors)
        # A number, since a large tree takes long to hash, and is looked up in every evaluation.
        self.signature = SIGNATURES.setdefault((self._tree, self._others, like), len(SIGNATURES))

    def nest(self, tensors: Iterator[Tensor]) -> Any:
        """The value with the next of these in place of its own."""
        found = [next(tensors) if item is None else item[0] for item in self._others]
        return pytree.tree_unflatten(found, self._tree)


def _layout(x: Tensor) -> tuple[int, ...]:
    """Strides, where there is more than one place to go to."""
    return tuple(stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1)


class Graphs:
    """Compiled functions, for the shapes and memory layouts that they are called with."""

    def __init__(self) -> None:
        """Raises KinoiseError where there is no C++ compiler, which plans on the CPU need."""
        from torch._inductor import cpp_builder, exc  # takes a second to import

        try:
            cpp_builder.get_cpp_compiler()
        except exc.InvalidCxxCompiler as error:
            raise KinoiseError("compiled plans need a C++ compiler: install g++, or leave out compile=true.") from error
        self._made: dict[Hashable, tuple[Function, Leaves]] = {}

    def __len__(self) -> int:
        return len(self._made)

    def clear(self) -> None:
        """Drops all of them: they hold weights that have changed, or moved."""
        self._made.clear()

    def __call__(self, key: Hashable, function: Function, *values: Any, capture: bool = False) -> Any:
        """`function(*values)`, compiled the first time.

        Args:
            key: all that the function depends on besides weights and `values`.
            values: tensors, nested in tuples and lists, or `Leaves` made of such before. Gradients end here.
            capture: as a CUDA graph too, on a GPU. Inputs are copied for each call, so not for large ones.
        """
        leaves = [item if isinstance(item, Leaves) else Leaves(item) for item in values]
        known = key, tuple(item.signature for item in leaves)
        tensors = [tensor for item in leaves for tensor in item.tensors]
        if known not in self._made:
            if len(self._made) >= MOST:
                self.clear()
            self._made[known] = _compiled(function, leaves, capture)
        run, found = self._made[known]
        return found.nest(iter(run(*tensors)))


def _compiled(function: Function, values: Sequence[Leaves], capture: bool) -> tuple[Function, Leaves]:
    def flat(*tensors: Tensor) -> list[Tensor]:
        given = iter(tensors)
        return Leaves(function(*(item.nest(given) for item in values))).tensors

    # A tracer sees through normal tensors only, and no gradient passes a graph.
    with torch.inference_mode(False), torch.no_grad():
        example = [_normal(tensor) for item in values for tensor in item.tensors]
        given = iter(example)
        # What the function remembers from call to call is there afterwards, when it is traced.
        found = Leaves(function(*(item.nest(given) for item in values)))
        run: Function = cast(Any, torch._inductor.compile)(make_fx(flat)(*example), example, options=OPTIONS)
        if capture and any(tensor.is_cuda for tensor in example):
            run = _captured(run, example)
    return run, found


def _normal(x: Tensor) -> Tensor:
    """`x`, or what lies in memory as it does."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x) if x.is_inference() else x


def _captured(run: Function, example: Sequence[Tensor]) -> Function:
    """`run` as a CUDA graph, between copies of its inputs and of its outputs."""
    inputs = [item.clone() for item in example]
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            run(*inputs)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run(*inputs)

    def replay(*tensors: Tensor) -> list[Tensor]:
        for mine, given in zip(inputs, tensors, strict=True):
            mine.copy_(given, non_blocking=True)
        graph.replay()
        return [item.clone() for item in outputs]

    return replay
