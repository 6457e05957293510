"""Randomness from explicit generators: the same seed gives the same numbers on any device, in any batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...spec import KinoiseError

Gen = torch.Generator | Sequence[torch.Generator]
"""CPU generators: one for a whole batch, or one for each of its rows."""


def normal(shape: Sequence[int], gen: Gen, device: torch.device | str = "cpu") -> Float[Tensor, "..."]:
    """Standard normal float32 numbers of `shape`, whose first dimension is the batch.

    With a sequence of generators row i depends on `gen[i]` alone, so what else is in the batch does not change it.
    Drawn on the CPU, then moved. Raises KinoiseError when there is not one generator per row.
    """
    return move(_draw(torch.randn, shape, gen), device)


def uniform(shape: Sequence[int], gen: Gen, device: torch.device | str = "cpu") -> Float[Tensor, "..."]:
    """As `normal`, uniform in [0, 1)."""
    return move(_draw(torch.rand, shape, gen), device)


def branched(gen: Gen) -> Gen:
    """New generators in place of these, which move on by one draw each however much the new ones draw."""
    if not isinstance(gen, torch.Generator):
        return [_branch(item) for item in gen]
    return _branch(gen)


def derived(*numbers: int) -> torch.Generator:
    """A generator that is a function of these numbers, which need not be far from others'."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def _branch(gen: torch.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=gen)))


def _draw(draw: Callable[..., Tensor], shape: Sequence[int], gen: Gen) -> Tensor:
    if isinstance(gen, torch.Generator):
        return draw(tuple(shape), generator=gen)
    if len(gen) != shape[0]:
        raise KinoiseError(f"{len(gen)} generators for a batch of {shape[0]}: give one per row, or a single one for all")
    return torch.stack([draw(tuple(shape[1:]), generator=item) for item in gen])


def move(x: Tensor, device: torch.device | str) -> Tensor:
    """`x` on `device`; a GPU gets it from pinned memory, which queues the copy where pageable memory would wait for it."""
    device = torch.device(device)
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)
