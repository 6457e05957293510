"""The matrix products of a plan, and how fast this machine computes them alone: what no decoder of the network can beat.

They are read off a plan as it runs, so that they are those of any policy: linear layers, the two products of attention
(q k^T and its share of v), convolutions as products of their unfolded images. Biases, norms, softmax and the sampler are left
out.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..policies.base import Policy
from ..policies.diffusion import DiffusionPolicy
from ..policies.discrete_vla import DiscreteVLAPolicy
from ..policies.example import example
from ..spec import KinoiseError

WARM_UP, FEWEST = 3, 5
"""Rounds over all products: before any is measured, and that are measured at least."""

aten = torch.ops.aten


@dataclass(frozen=True)
class Product:
    """`batch` times `[m, k] @ [k, n]`.

    Args:
        count: how often a plan computes it.
        stage: `encode`, before the first network evaluation; `evaluate`, in one; `decode`, after the first and in none.
    """

    batch: int
    m: int
    k: int
    n: int
    count: int
    stage: str

    @property
    def flops(self) -> int:
        """Multiplications and additions in a plan."""
        return 2 * self.batch * self.m * self.k * self.n * self.count


class Operand(NamedTuple):
    """One side of a product as it lies in memory. `place` tells matrices apart: an expert's are not the next one's."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    place: int

    @classmethod
    def of(cls, x: Tensor) -> Operand:
        return cls(tuple(x.shape), tuple(x.stride()), x.dtype, x.device, x.data_ptr())

    def make(self) -> Tensor:
        """Small random numbers in its place: products of zeros, or of infinities, may take another time."""
        found = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)
        return found.copy_(torch.randn(self.shape) * 0.1)


class Call(NamedTuple):
    """A product as the plan asked for it: both sides with two dimensions, or both with a batch before them."""

    left: Operand
    right: Operand
    stage: str

    @property
    def key(self) -> tuple[int, int, int, int, str]:
        *batch, m, k = self.left.shape
        return (batch[0] if batch else 1), m, k, self.right.shape[-1], self.stage


def products(policy: Policy) -> list[Product]:
    """Those of one plan from noise at batch 1, with the policy's own decode settings, in the order in which they first come.

    Raises KinoiseError for a policy in training mode, or one that computes none.
    """
    return [Product(*key[:4], count, key[4]) for key, count in Counter(call.key for call in _calls(policy)).items()]


def floor(policy: Policy, seconds: float = 0.5) -> float:
    """Median seconds that the products of one plan take, one after another, with as many threads as torch has.

    Shapes, memory layouts and types are the plan's, and so are the matrices that it reads again and those that it doesn't, so
    that caches serve as well as in a plan. Outputs are allocated beforehand.

    Args:
        seconds: to measure for.

    Raises KinoiseError for a policy in training mode, or one that computes none.
    """
    calls = _calls(policy)
    made: dict[Operand, Tensor] = {}
    todo = []
    with torch.inference_mode():
        for call in calls:
            left, right = (made.setdefault(side, side.make()) if side not in made else made[side] for side in call[:2])
            out = torch.empty(*left.shape[:-1], right.shape[-1], dtype=left.dtype, device=left.device)
            todo.append((torch.mm if left.ndim == 2 else torch.bmm, left, right, out))
        for _ in range(WARM_UP):
            _round(todo)
        found, end = [], time.perf_counter() + seconds
        while len(found) < FEWEST or time.perf_counter() < end:
            found.append(_round(todo))
    return median(found)


def _round(todo: list[tuple[Callable[..., Tensor], Tensor, Tensor, Tensor]]) -> float:
    device = todo[0][3].device
    begin = time.perf_counter()
    for multiply, left, right, out in todo:
        multiply(left, right, out=out)
    if device.type == "cuda":  # kernels are only queued by then
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def _calls(policy: Policy) -> list[Call]:
    obs, gen = example(policy), torch.Generator().manual_seed(0)
    with policy.eager():
        policy.plan(obs, gen)  # what is computed once for all plans is there afterwards
        with _staged(policy) as stage, Recording(stage) as recording:
            policy.plan(obs, gen)
    if not recording.calls:
        raise KinoiseError(
            f"a plan of the policy '{policy.config.name}' computes no matrix products: there is no floor to measure"
        )
    return recording.calls


@contextmanager
def _staged(policy: Policy) -> Iterator[Callable[[], str]]:
    """Which stage of a plan is under way."""
    assert isinstance(policy, DiffusionPolicy | DiscreteVLAPolicy)
    network: nn.Module = policy.network if isinstance(policy, DiffusionPolicy) else policy.backbone
    stage = "encode"

    def to(name: str) -> Callable[..., None]:
        def change(*_: Any) -> None:
            nonlocal stage
            stage = name

        return change

    hooks = network.register_forward_pre_hook(to("evaluate")), network.register_forward_hook(to("decode"))
    try:
        yield lambda: stage
    finally:
        for hook in hooks:
            hook.remove()


class Recording(TorchDispatchMode):
    """Notes every matrix product that torch is asked for."""

    def __init__(self, stage: Callable[[], str]) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._stage = stage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet not in SIDES:
            with self:  # composite operators arrive whole in inference mode
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        for left, right in SIDES.get(packet, _none)(args, result):
            self.calls.append(Call(Operand.of(left), Operand.of(right), self._stage()))
        return result


Sides = Callable[[Any, Any], list[tuple[Tensor, Tensor]]]


def _none(args: Any, result: Any) -> list[tuple[Tensor, Tensor]]:
    return []


def _attention(args: Any, result: Any) -> list[tuple[Tensor, Tensor]]:
    q, k, v = (item.flatten(0, 1) for item in args[:3])
    scores = torch.empty(*q.shape[:2], k.shape[1], dtype=q.dtype, device=q.device)
    return [(q, k.transpose(1, 2)), (scores, v)]


def _convolution(args: Any, result: Any) -> list[tuple[Tensor, Tensor]]:
    """One image's unfolded pixels for all of its places, or for those of one group of channels."""
    x, weight, groups = args[0], args[1], args[8]
    places = result[0, 0].numel()
    kernel = weight.view(groups, weight.shape[0] // groups, -1)
    pixels = torch.empty(groups, kernel.shape[2], places, dtype=x.dtype, device=x.device)
    pair = (kernel, pixels) if groups > 1 else (kernel[0], pixels[0])
    return [pair] * len(x)


SIDES: dict[Any, Sides] = {
    aten.mm: lambda args, result: [args[:2]],
    aten.bmm: lambda args, result: [args[:2]],
    aten.addmm: lambda args, result: [args[1:3]],
    aten.baddbmm: lambda args, result: [args[1:3]],
    aten.convolution: _convolution,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention: _attention,
    aten._scaled_dot_product_efficient_attention: _attention,
    aten._scaled_dot_product_cudnn_attention: _attention,
}
