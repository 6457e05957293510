"""Samplers by name: functions of (process, denoise, x, grid, gen). A new one is a function and a line here."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..process.base import Denoise
from ..process.gaussian import Gaussian
from ..process.masked import Masked
from ..random import Gen
from .bridge import ancestral, bridge
from .heun import heun
from .multistep import dpmpp_2m
from .reveal import Reveal, autoregressive, reveal

Sampler = Callable[[Gaussian, Denoise, Tensor, Tensor, Gen], Tensor]
"""`sampler(process, denoise, x, grid, gen)`: from x at time grid[0] to a sample at grid[-1]."""

SAMPLERS: dict[str, Sampler] = {
    "bridge": bridge,
    "ddim": bridge,
    "ddpm": ancestral,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
}

EVALUATIONS = {"heun": 2}
"""Of a step, by sampler, where it isn't one."""

DRAWING = ("ddpm",)
"""Those that draw noise on their way."""

TokenSampler = Callable[[Masked, Denoise, Tensor, Tensor, Gen, Reveal], Tensor]
"""The same over tokens, told how to reveal them."""

TOKEN_SAMPLERS: dict[str, TokenSampler] = {
    "reveal": reveal,
    "autoregressive": autoregressive,
    "ancestral": lambda process, denoise, x, grid, gen, how: ancestral(process, denoise, x, grid, gen),
}

__all__ = [
    "DRAWING",
    "EVALUATIONS",
    "SAMPLERS",
    "TOKEN_SAMPLERS",
    "Reveal",
    "Sampler",
    "TokenSampler",
    "ancestral",
    "autoregressive",
    "bridge",
    "dpmpp_2m",
    "heun",
    "reveal",
]
