"""The two samplers that are a process's bridge and nothing else."""

from __future__ import annotations

from itertools import pairwise

from jaxtyping import Float64
from torch import Tensor

from ..process.base import Denoise, Process
from ..random import Gen


def bridge(process: Process, denoise: Denoise, x: Tensor, grid: Float64[Tensor, "times"], gen: Gen, eta: float = 0.0) -> Tensor:
    """Believe, then step as if that were so: DDIM, and Euler's method for EDM and flow. First order; eta = 0 draws nothing."""
    for t, s in pairwise(grid.unbind()):
        x = process.bridge(x, denoise(x, t), t, s, gen, eta)
    return x


def ancestral(process: Process, denoise: Denoise, x: Tensor, grid: Float64[Tensor, "times"], gen: Gen) -> Tensor:
    """DDPM (Ho et al. 2020, algorithm 2, with the posterior's variance): each step's noise is new where the posterior's is."""
    return bridge(process, denoise, x, grid, gen, eta=1.0)
