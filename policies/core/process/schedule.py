"""Schedules: how much signal alpha(t) and noise sigma(t) there is at time t, x_t = alpha x0 + sigma eps.

All of them run from sigma(0) = 0 to noise at t = 1, in float64 on the CPU. A schedule also knows the times that go
with it: which ones to train on, and the grids to sample along.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from ....spec import KinoiseError

BETAS = ("squaredcos_cap_v2", "linear")
SPACINGS = ("exponential", "karras", "uniform")
LEVELINGS = ("trailing", "leading")


class Schedule(ABC):
    """The contract; what it does not leave open is a continuous schedule's."""

    scaled: ClassVar[bool] = False
    """Whether x_t grows with sigma, so that a network has to see it scaled to unit size."""

    @abstractmethod
    def signal_noise(self, t: Float64[Tensor, "*t"]) -> tuple[Float64[Tensor, "*t"], Float64[Tensor, "*t"]]:
        """alpha(t) and sigma(t)."""

    def label(self, t: Float64[Tensor, "*t"]) -> Float64[Tensor, "*t"]:
        """The noise level as the network is told it."""
        return t

    def quantile(self, u: Float64[Tensor, "*t"]) -> Float64[Tensor, "*t"]:
        """The training times' own distribution, as the times below which a share `u` of them lies."""
        return u

    def snap(self, t: Float64[Tensor, "*t"]) -> Float64[Tensor, "*t"]:
        """The nearest time at or above `t` that is trained on."""
        return t

    def grid(self, steps: int, start: float) -> Float64[Tensor, "{steps}+1"]:
        """See `Process.grid`."""
        return torch.linspace(start, 0, steps + 1, dtype=torch.float64)


@dataclass(frozen=True)
class Flow(Schedule):
    """alpha = 1 - t, sigma = t (flow matching, Lipman et al. 2023, with time as everywhere here: 1 is noise)."""

    def signal_noise(self, t: Float64[Tensor, "*t"]) -> tuple[Float64[Tensor, "*t"], Float64[Tensor, "*t"]]:
        return 1 - t, t


@dataclass(frozen=True)
class VP(Schedule):
    """Variance preserving: alpha^2 + sigma^2 = 1 (DDPM, Ho et al. 2020).

    With `levels`, the table of diffusers' DDPMScheduler: level k = t levels is its timestep k - 1, level 0 is clean, and
    between levels log(alpha) is linear. Training takes the levels alone, and so do grids. With `levels=None`, the continuous
    schedule that the table samples.

    Args:
        betas: "squaredcos_cap_v2" (Nichol and Dhariwal 2021, eq. 17), or "linear", from 0.1 / levels to 20 / levels: the
            usual 1e-4 to 0.02 at 1,000 levels, and scaled like guided-diffusion's elsewhere so that noise is always reached.
        spacing: of a table's grids from noise: diffusers' "trailing", from the last level on, or its "leading", which ends at
            the first level and, with fewer steps than levels, begins below the last one, though what it starts from is noise.
    """

    levels: int | None = 100
    betas: str = "squaredcos_cap_v2"
    spacing: str = "trailing"

    def signal_noise(self, t: Float64[Tensor, "*t"]) -> tuple[Float64[Tensor, "*t"], Float64[Tensor, "*t"]]:
        if self.levels is None and self.betas == "squaredcos_cap_v2":
            return _cosine(t)
        log_alpha = _log_alpha_linear(t) if self.levels is None else self._interpolated(t, self.levels)
        return log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()

    def _interpolated(self, t: Tensor, levels: int) -> Tensor:
        table, k = _log_alpha_table(levels, self.betas), t * levels
        below = k.floor().clamp(0, levels - 1)
        index = below.long()
        return torch.lerp(table[index], table[index + 1], k - below)

    def snap(self, t: Float64[Tensor, "*t"]) -> Float64[Tensor, "*t"]:
        return t if self.levels is None else (t * self.levels).ceil() / self.levels

    def grid(self, steps: int, start: float) -> Float64[Tensor, "{steps}+1"]:
        if self.levels is None:
            return super().grid(steps, start)
        first = round(start * self.levels)
        if steps > first:
            raise KinoiseError(
                f"{steps} steps from level {first} of {self.levels}: take at most {first} steps, or start higher"
            )
        if self.spacing == "leading" and first == self.levels:
            levels = torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (self.levels // steps) + 1
            return torch.cat([levels, torch.zeros(1, dtype=torch.float64)]) / self.levels
        return torch.linspace(first, 0, steps + 1, dtype=torch.float64).round() / self.levels


_OFFSET = 0.008
"""The cosine schedule's s, which keeps the first betas from vanishing."""


def _cosine(t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha = cos(angle) / cos(angle(0)), in forms that lose no digits at either end."""
    quarter = math.pi / 2 / (1 + _OFFSET)
    first, angle = quarter * _OFFSET, quarter * (t + _OFFSET)
    alpha = torch.sin(quarter * (1 - t)) / math.cos(first)
    return alpha, (torch.sin(quarter * t) * torch.sin(angle + first)).sqrt() / math.cos(first)


def _log_alpha_linear(t: Tensor) -> Tensor:
    """Song et al. 2021, eq. 33, with their beta_min = 0.1 and beta_max = 20."""
    return -0.25 * t**2 * (20 - 0.1) - 0.5 * t * 0.1


@lru_cache
def _log_alpha_table(levels: int, betas: str) -> Float64[Tensor, "{levels}+1"]:
    """log alpha at each level."""
    if betas == "linear":
        beta = torch.linspace(0.1, 20, levels, dtype=torch.float64) / levels
    else:
        alpha, _ = _cosine(torch.linspace(0, 1, levels + 1, dtype=torch.float64))
        beta = 1 - (alpha[1:] / alpha[:-1]) ** 2
    log_alpha = 0.5 * torch.log1p(-beta.clamp(max=0.999)).cumsum(0)
    return torch.cat([torch.zeros(1, dtype=torch.float64), log_alpha])


@dataclass(frozen=True)
class EDM(Schedule):
    """alpha = 1, sigma up to `sigma_max` (Karras et al. 2022).

    sigma(t) = sigma_max (r^t - 1) / (r - 1) with r = sigma_max / sigma_min: smooth, zero at 0, geometric above sigma_min.
    The label is ln(sigma) / 4. Training times are MoDE's (arXiv 2412.12953, release): sigma log-logistic around 0.5 with
    scale 0.5, truncated to [sigma_min, sigma_max].

    Args:
        spacing: of the grid's sigmas, which reach sigma_min one interval before 0: "exponential" (geometric, MoDE's),
            "karras" (their eq. 5, rho = 7), or "uniform" in t.
    """

    sigma_min: float = 0.001
    sigma_max: float = 80.0
    spacing: str = "exponential"
    scaled: ClassVar[bool] = True

    def signal_noise(self, t: Float64[Tensor, "*t"]) -> tuple[Float64[Tensor, "*t"], Float64[Tensor, "*t"]]:
        return torch.ones_like(t), self.sigma_max * (torch.expm1(self._log_ratio * t) / math.expm1(self._log_ratio))

    def time(self, sigma: Float64[Tensor, "*t"]) -> Float64[Tensor, "*t"]:
        """The inverse of sigma(t)."""
        return torch.log1p(sigma / self.sigma_max * math.expm1(self._log_ratio)) / self._log_ratio

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def label(self, t: Float64[Tensor, "*t"]) -> Float64[Tensor, "*t"]:
        """Below sigma_min, which no network has seen, sigma_min's."""
        return self.signal_noise(t)[1].clamp(min=self.sigma_min).log() / 4

    def quantile(self, u: Float64[Tensor, "*t"]) -> Float64[Tensor, "*t"]:
        centre, scale = math.log(0.5), 0.5
        low, high = (1 / (1 + math.exp((centre - math.log(edge)) / scale)) for edge in (self.sigma_min, self.sigma_max))
        sigma = torch.exp(centre + scale * torch.logit(low + (high - low) * u))
        return self.time(sigma.clamp(self.sigma_min, self.sigma_max)).clamp(max=1)

    def grid(self, steps: int, start: float) -> Float64[Tensor, "{steps}+1"]:
        times = super().grid(steps, start)
        if self.spacing == "uniform" or steps == 1:
            return times
        high = float(self.signal_noise(times[0])[1])
        if high <= self.sigma_min:
            raise KinoiseError(
                f"{steps} steps from sigma {high:.3g}, not above sigma_min={self.sigma_min}: take one step, or start higher"
            )
        if self.spacing == "karras":
            sigma = torch.linspace(high ** (1 / 7), self.sigma_min ** (1 / 7), steps, dtype=torch.float64) ** 7
        else:
            sigma = torch.linspace(math.log(high), math.log(self.sigma_min), steps, dtype=torch.float64).exp()
        times[1:-1] = self.time(sigma[1:])
        return times
