"""Randomness from explicit generators: the same seed gives the same numbers on any device, in any batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...spec import KinoiseError


@dataclass(frozen=True)
class Stretch:
    """Some rows of a batch whose noise comes from one generator: those rows of what is drawn for the whole of it.

    Args:
        gen: moves on as if the whole batch were drawn, wherever the rest of it is computed.
        rows: which of the batch's.
        batch: how many it has.
    """

    gen: torch.Generator
    rows: range
    batch: int


Gen = torch.Generator | Sequence[torch.Generator] | Stretch
"""CPU generators: one for a whole batch, one for each of its rows, or one for a batch of which these are some rows."""


def normal(shape: Sequence[int], gen: Gen, device: torch.device | str = "cpu") -> Float[Tensor, "..."]:
    """Standard normal float32 numbers of `shape`, whose first dimension is the batch.

    With a sequence of generators row i depends on `gen[i]` alone, so what else is in the batch does not change it.
    Drawn on the CPU, then moved. Raises KinoiseError when there is not one generator per row.
    """
    return move(_draw(torch.randn, shape, gen), device)


def uniform(shape: Sequence[int], gen: Gen, device: torch.device | str = "cpu") -> Float[Tensor, "..."]:
    """As `normal`, uniform in [0, 1)."""
    return move(_draw(torch.rand, shape, gen), device)


def dropout(x: Tensor, rate: float, gen: Gen | None) -> Tensor:
    """`x` with a share `rate` of it zero and the rest larger for it; `x` itself without a generator."""
    if gen is None or rate == 0:
        return x
    return x * ((uniform(x.shape, gen, x.device) >= rate).to(x.dtype) / (1 - rate))


def branched(gen: Gen) -> Gen:
    """New generators in place of these, which move on by one draw each however much the new ones draw."""
    if isinstance(gen, Stretch):
        return Stretch(_branch(gen.gen), gen.rows, gen.batch)
    return _branch(gen) if isinstance(gen, torch.Generator) else [_branch(item) for item in gen]


def derived(*numbers: int) -> torch.Generator:
    """A generator that is a function of these numbers, which need not be far from others'."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def _branch(gen: torch.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=gen)))


def _draw(draw: Callable[..., Tensor], shape: Sequence[int], gen: Gen) -> Tensor:
    if isinstance(gen, torch.Generator):
        return draw(tuple(shape), generator=gen)
    if isinstance(gen, Stretch):
        if len(gen.rows) != shape[0]:
            raise KinoiseError(f"noise for {len(gen.rows)} rows of a batch, where {shape[0]} are asked for")
        return draw((gen.batch, *shape[1:]), generator=gen.gen)[gen.rows.start : gen.rows.stop]
    if len(gen) != shape[0]:
        raise KinoiseError(f"{len(gen)} generators for a batch of {shape[0]}: give one per row, or a single one for all")
    return torch.stack([draw(tuple(shape[1:]), generator=item) for item in gen])


def move(x: Tensor, device: torch.device | str) -> Tensor:
    """`x` on `device`; a GPU gets it from pinned memory, which queues the copy where pageable memory would wait for it."""
    device = torch.device(device)
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)
