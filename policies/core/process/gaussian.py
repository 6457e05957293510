"""Gaussian processes, x_t = alpha(t) x0 + sigma(t) eps: a schedule, a parametrisation, and the algebra they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from ....spec import KinoiseError
from ..random import Gen, move, normal, uniform
from .base import Belief, Losses, Network
from .parametrisation import PARAMETRISATIONS
from .schedule import Schedule

ALPHA_FLOOR = 0.01
"""The least signal through which "eps" looks at x0, on schedules that have none at t = 1 (flow, the continuous cosine).

Tables always keep some, and there "eps" is the noise exactly, as in DDPM.
"""

CLIPS = ("belief", "signal")

CLEAN = torch.zeros((), dtype=torch.float64)
"""The time without noise."""


class Coefficients(NamedTuple):
    """All that a time decides: Python floats for one time, tensors that broadcast over x for a time per row.

    Args:
        alpha, sigma: x = alpha x0 + sigma eps.
        skip, out: x0 = skip x + out F.
        into: the network sees `into x` (Karras' c_in).
        clean, noise: F = clean x0 + noise eps.
        label: what the network is told.
    """

    alpha: Any
    sigma: Any
    skip: Any
    out: Any
    into: Any
    clean: Any
    noise: Any
    label: Any


class Gaussian:
    """A `Process` (see there), for any schedule with any parametrisation.

    Args:
        sigma_data: the deviation of clean samples that "F" assumes.
        clip: clamp to [-clip, clip], as diffusers' clip_sample does; None for no clamp.
        clips: what is clamped: "belief", from which the noise that a step keeps then follows (its DDPM, and its DDIM with
            use_clipped_model_output); or "signal", the belief's part in a step, which keeps the noise that was believed (its
            DDIM as it comes).
        quantile: maps uniform numbers in (0, 1] to training times; None for the schedule's own.
    """

    def __init__(
        self,
        schedule: Schedule,
        parametrisation: str,
        *,
        sigma_data: float = 0.5,
        clip: float | None = None,
        clips: str = "belief",
        quantile: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.schedule, self.sigma_data = schedule, sigma_data
        self._clip = {name: clip if name == clips else None for name in CLIPS}
        self._quantile = quantile or schedule.quantile
        self._target = PARAMETRISATIONS[parametrisation]
        self._scaled = schedule.scaled or parametrisation == "F"
        alpha, _ = schedule.signal_noise(torch.ones((), dtype=torch.float64))
        self._floor = 0.0 if alpha > 0 else ALPHA_FLOOR

    def grid(self, steps: int, start: float = 1.0) -> Float64[Tensor, "{steps}+1"]:
        """See `Process`. A VP table takes the level nearest to `start`."""
        if steps < 1 or not 0 < start <= 1:
            raise KinoiseError(f"a grid of {steps} steps from {start}: expected at least 1 step, and a start in (0, 1]")
        return self.schedule.grid(steps, start)

    def prior(self, shape: Sequence[int], gen: Gen, device: torch.device | str = "cpu") -> Tensor:
        """Normal with deviation sigma(1)."""
        return _at(self, 1.0).sigma * normal(shape, gen, device)

    def corrupt(self, clean: Float[Tensor, "batch ..."], t: Float[Tensor, "..."], gen: Gen) -> Tensor:
        """alpha(t) clean + sigma(t) eps."""
        at = self.at(t, clean)
        return at.alpha * clean + at.sigma * _noise_like(clean, gen)

    def predict(self, net: Network, x: Tensor, t: Float[Tensor, "..."], ctx: Any) -> Belief:
        """E[x0 | x] = c_skip x + c_out F(c_in x, label, ctx), in the precision of x."""
        at = self.at(t, x)
        return self.bounded(at.skip * x + at.out * net(at.into * x, _told(at), ctx).value.to(x.dtype))

    def bounded(self, belief: Belief) -> Belief:
        """The belief as samplers may see it: clamped, where beliefs are."""
        clip = self._clip["belief"]
        return belief if clip is None else belief.clamp(-clip, clip)

    def bridge(
        self, x: Tensor, belief: Belief, t: Float[Tensor, "..."], s: Float[Tensor, "..."], gen: Gen, eta: float = 0.0
    ) -> Tensor:
        """x_s = alpha_s x0 + sigma_s e, with the noise e = (x - alpha_t x0) / sigma_t kept or, by eta, renewed (s < t).

        With eta = 0 this is DDIM, EDM's Euler step and flow's Euler step; with eta = 1 it is DDPM's ancestral step. The
        posterior q(x_s | x_t, x0) keeps the share rho = (alpha_t / sigma_t) / (alpha_s / sigma_s) of e, and the rest of
        the variance is new (DDIM, Song et al. 2021, eq. 12 and 16, freed from alpha^2 + sigma^2 = 1).
        """
        now, then = self.at(t, x), self.at(s, x)
        rho = now.alpha * then.sigma / (then.alpha * now.sigma)
        renewed = eta**2 * abs(1 - rho**2)
        kept = then.sigma * (1 - renewed) ** 0.5 / now.sigma
        clip = self._clip["signal"]
        if clip is None:
            mean = (then.alpha - kept * now.alpha) * belief + kept * x
        else:
            mean = then.alpha * belief.clamp(-clip, clip) + kept * (x - now.alpha * belief)
        return mean + then.sigma * renewed**0.5 * _noise_like(x, gen) if eta else mean

    def label(self, t: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """See `Process`: ln(sigma) / 4 for EDM, otherwise t."""
        return self.schedule.label(t.double())

    def times(self, rows: int, gen: Gen) -> Float64[Tensor, "rows"]:
        """Training times; the cleanest possible, t = 0, is never among them."""
        return self.schedule.snap(self._quantile(1 - uniform((rows,), gen).double()))

    def loss(
        self,
        net: Network,
        clean: Float[Tensor, "batch chunk action"],
        ctx: Any,
        valid: Bool[Tensor, "batch chunk"],
        gen: Gen,
        given: Bool[Tensor, "batch chunk"] | None = None,
    ) -> Losses:
        """`loss_at` random times and noise."""
        return self.loss_at(net, clean, ctx, valid, self.times(len(clean), gen), _noise_like(clean, gen), given)

    def loss_at(
        self,
        net: Network,
        clean: Float[Tensor, "batch chunk action"],
        ctx: Any,
        valid: Bool[Tensor, "batch chunk"],
        t: Float[Tensor, "batch"],
        eps: Float[Tensor, "batch chunk action"],
        given: Bool[Tensor, "batch chunk"] | None = None,
    ) -> Losses:
        """Mean squared error on F over the valid steps of each row that aren't given; a row without any has loss 0."""
        at = self.at(t, clean)
        x = at.into * (at.alpha * clean + at.sigma * eps)
        if given is not None:
            x, valid = torch.where(given[..., None], self.at(CLEAN, clean).into * clean, x), valid & ~given
        value, balance = net(x, _told(at), ctx)
        error = (value - (at.clean * clean + at.noise * eps)).square().mean(-1)
        per_sample = error.where(valid, 0).sum(-1) / valid.sum(-1).clamp(min=1)
        return Losses(per_sample, {} if balance is None else {"balance": balance})

    def at(self, t: Float[Tensor, "*t"], x: Tensor) -> Coefficients:
        """The coefficients at `t`, ready to multiply x: looked up for a 0-d t, computed for one t per row."""
        if t.ndim == 0:
            return _at(self, float(t))
        values = move(torch.stack(self.coefficients(t.double())).to(x.dtype), x.device)
        return Coefficients(*values.view(len(values), -1, *[1] * (x.ndim - 1)))

    def coefficients(self, t: Float64[Tensor, "*t"]) -> Coefficients:
        """As float64 tensors. At sigma = 0 the belief is x / alpha, whatever the network says."""
        alpha, sigma = self.schedule.signal_noise(t)
        clean, noise = self._target(alpha, sigma, self.sigma_data, self._floor)
        determinant = alpha * noise - sigma * clean
        skip = torch.where(sigma > 0, noise / determinant, 1 / alpha)
        out = torch.where(sigma > 0, -sigma / determinant, 0)
        into = (sigma**2 + (alpha * self.sigma_data) ** 2).rsqrt() if self._scaled else torch.ones_like(alpha)
        return Coefficients(alpha, sigma, skip, out, into, clean, noise, self.schedule.label(t))


@lru_cache(maxsize=4096)
def _at(process: Gaussian, t: float) -> Coefficients:
    return Coefficients(*(float(item) for item in process.coefficients(torch.tensor(t, dtype=torch.float64))))


def _told(at: Coefficients) -> Tensor:
    """The label as a network takes it: 0-d on the CPU, or `[batch]` where x is."""
    return torch.tensor(at.label, dtype=torch.float64) if isinstance(at.label, float) else at.label.flatten()


def _noise_like(x: Tensor, gen: Gen) -> Tensor:
    return normal(x.shape, gen, x.device).to(x.dtype)
