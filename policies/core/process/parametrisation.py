"""Parametrisations: what the network is asked for, F = clean x0 + noise eps, with two numbers per noise level.

Solved together with x = alpha x0 + sigma eps this gives the belief, so the pair says both what to train on and how to
use the answer (architecture: every standard loss is plain MSE on F):

    x0 = c_skip x + c_out F,    c_skip = noise / (alpha noise - sigma clean),    c_out = -sigma / (alpha noise - sigma clean)

Each pair is finite from t = 0 to t = 1 on every schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor


class Target(NamedTuple):
    """F = clean x0 + noise eps."""

    clean: Float64[Tensor, "*t"]
    noise: Float64[Tensor, "*t"]


def eps(alpha: Tensor, sigma: Tensor, sigma_data: float, floor: float) -> Target:
    """The noise (DDPM, Ho et al. 2020). Where alpha < floor, eps less at most floor x0.

    No estimate of the noise alone tells x0 where alpha is zero; with the floor c_skip stays below about 1 / floor.
    """
    return Target(-(floor - alpha).clamp(min=0), torch.ones_like(sigma))


def x0(alpha: Tensor, sigma: Tensor, sigma_data: float, floor: float) -> Target:
    """The clean sample itself."""
    return Target(torch.ones_like(alpha), torch.zeros_like(sigma))


def v(alpha: Tensor, sigma: Tensor, sigma_data: float, floor: float) -> Target:
    """The velocity alpha eps - sigma x0 (Salimans and Ho 2022), divided by sqrt(alpha^2 + sigma^2), which is 1 for VP."""
    size = (alpha**2 + sigma**2).sqrt()
    return Target(-sigma / size, alpha / size)


def u(alpha: Tensor, sigma: Tensor, sigma_data: float, floor: float) -> Target:
    """The flow's velocity eps - x0 (Lipman et al. 2023)."""
    return Target(-torch.ones_like(alpha), torch.ones_like(sigma))


def F(alpha: Tensor, sigma: Tensor, sigma_data: float, floor: float) -> Target:
    """EDM's preconditioning (Karras et al. 2022, table 1), for any alpha: unit size if x0 has deviation `sigma_data`.

    c_skip = alpha sd^2 / (sigma^2 + alpha^2 sd^2), c_out = sigma sd / sqrt(sigma^2 + alpha^2 sd^2).
    """
    size = (sigma**2 + (alpha * sigma_data) ** 2).sqrt()
    return Target(sigma / (sigma_data * size), -alpha * sigma_data / size)


PARAMETRISATIONS: dict[str, Callable[[Tensor, Tensor, float, float], Target]] = {"eps": eps, "x0": x0, "v": v, "u": u, "F": F}
