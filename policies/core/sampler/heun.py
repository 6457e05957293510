"""Heun's method (Karras et al. 2022, algorithm 1), for every Gaussian process."""

from __future__ import annotations

from itertools import pairwise

from jaxtyping import Float64
from torch import Tensor

from ..process.base import Denoise
from ..process.gaussian import Gaussian
from ..random import Gen


def heun(process: Gaussian, denoise: Denoise, x: Tensor, grid: Float64[Tensor, "times"], gen: Gen) -> Tensor:
    """Second order, two evaluations a step: the trapezium rule on dx = x0 dalpha + e dsigma, with e = (x - alpha x0) / sigma.

    In this form nothing is divided by alpha or by a derivative, so it holds where alpha = 0. A step to sigma = 0, where
    e is not defined, is Euler's. Draws nothing.
    """
    for t, s in pairwise(grid.unbind()):
        now, then = process.at(t, x), process.at(s, x)
        belief = denoise(x, t)
        euler = process.bridge(x, belief, t, s, gen)
        if then.sigma == 0:
            x = euler
            continue
        again = denoise(euler, s)
        noise = (x - now.alpha * belief) / now.sigma + (euler - then.alpha * again) / then.sigma
        x = x + (then.alpha - now.alpha) / 2 * (belief + again) + (then.sigma - now.sigma) / 2 * noise
    return x
