"""Samplers by name: functions of (process, denoise, x, grid, gen). A new one is a function and a line here."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..process.base import Denoise
from ..process.gaussian import Gaussian
from ..random import Gen
from .bridge import ancestral, bridge
from .heun import heun
from .multistep import dpmpp_2m

Sampler = Callable[[Gaussian, Denoise, Tensor, Tensor, Gen], Tensor]
"""`sampler(process, denoise, x, grid, gen)`: from x at time grid[0] to a sample at grid[-1]."""

SAMPLERS: dict[str, Sampler] = {
    "bridge": bridge,
    "ddim": bridge,
    "ddpm": ancestral,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
}

__all__ = ["SAMPLERS", "Sampler", "ancestral", "bridge", "dpmpp_2m", "heun"]
