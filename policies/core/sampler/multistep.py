"""DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2), for every Gaussian process."""

from __future__ import annotations

import math
from itertools import pairwise

from jaxtyping import Float64
from torch import Tensor

from ..process.base import Denoise
from ..process.gaussian import Gaussian
from ..random import Gen


def dpmpp_2m(process: Gaussian, denoise: Denoise, x: Tensor, grid: Float64[Tensor, "times"], gen: Gen) -> Tensor:
    """Second order, one evaluation a step: the bridge to a belief that is extrapolated to the middle of the step.

    The extrapolation is linear in log(alpha / sigma). The first step, and one to sigma = 0 (infinitely far on that scale), go
    to the belief as it is. Draws nothing.
    """
    before, last = None, 0.0
    for t, s in pairwise(grid.unbind()):
        belief = ahead = denoise(x, t)
        step = _log_snr(process, s, x) - _log_snr(process, t, x)
        if before is not None and step < math.inf:
            ahead = belief + step / (2 * last) * (belief - before)
        x = process.bridge(x, ahead, t, s, gen)
        before, last = belief, step
    return x


def _log_snr(process: Gaussian, t: Tensor, x: Tensor) -> float:
    """lambda = log(alpha / sigma), infinite where one of them is zero."""
    at = process.at(t, x)
    if at.alpha == 0:
        return -math.inf
    return math.inf if at.sigma == 0 else math.log(at.alpha / at.sigma)
