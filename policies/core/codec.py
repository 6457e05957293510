"""Codecs: physical units to the model's space and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from ...spec import KinoiseError, Stats

RESOLUTION = 1e-6
"""A dimension whose range is below this, in units of its own size or of 1, is constant: what varies there is rounding."""


class Affine(nn.Module):
    """z = (x - centre) / scale in each dimension of the last axis; where `scale` is 0, z = 0 and x = centre.

    The numbers are buffers outside the state dict: statistics are part of a checkpoint already, and a codec is fitted to them.

    Args:
        centre, scale: physical units, float64 so that they are rounded once.
    """

    centre: Tensor
    scale: Tensor
    inverse: Tensor

    def __init__(self, centre: Float64[Tensor, "d"], scale: Float64[Tensor, "d"]) -> None:
        super().__init__()
        inverse = torch.where(scale > 0, 1 / scale, 0)
        for name, value in (("centre", centre), ("scale", scale), ("inverse", inverse)):
            self.register_buffer(name, value.float(), persistent=False)

    @classmethod
    def fit(
        cls, stats: Stats, mode: str = "minmax", low: Sequence[float] | None = None, high: Sequence[float] | None = None
    ) -> Affine:
        """The codec of one feature.

        Args:
            mode: one of CODECS.
            low, high: take the place of the data's extremes, where physical bounds are known.

        Raises:
            KinoiseError: an unknown mode, or bounds of another length than the feature.
        """
        if mode not in CODECS:
            raise KinoiseError(f"scaling '{mode}': the modes are {', '.join(CODECS)}")
        least, most = _vector(stats.min if low is None else low), _vector(stats.max if high is None else high)
        if not len(least) == len(most) == len(stats.mean):
            raise KinoiseError(f"bounds of {len(least)} and {len(most)} dimensions for a feature of {len(stats.mean)}")
        centre, scale = CODECS[mode](stats, least, most)
        size = torch.maximum(least.abs(), most.abs()).clamp(min=1)
        constant = (most - least <= RESOLUTION * size) & (mode != "none")
        return cls(torch.where(constant, least, centre), torch.where(constant, 0, scale))

    def resized(self, dims: Sequence[int], factor: float) -> Affine:
        """The codec under which the numbers of these dimensions are `factor` times as large."""
        if factor == 1:
            return self
        scale = self.scale.double()
        scale[list(dims)] /= factor
        return Affine(self.centre.double(), scale)

    def encode(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """Physical to model space. Nothing is clamped: what lies outside the data stays outside their range."""
        return (x - self.centre) * self.inverse

    def decode(self, z: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """Model space to physical."""
        return z * self.scale + self.centre


def minmax(stats: Stats, least: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
    """The extremes to [-1, 1]."""
    return (least + most) / 2, (most - least) / 2


def quantile(stats: Stats, least: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
    """The 1st and 99th percentiles to [-1, 1]; the extremes where these coincide (a gripper that is rarely closed)."""
    low, high = _vector(stats.q01), _vector(stats.q99)
    flat = coincide(low, high, least, most)
    return minmax(stats, torch.where(flat, least, low), torch.where(flat, most, high))


def coincide(low: Tensor, high: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """Where percentiles are too close to scale by, next to the extremes."""
    return high - low <= RESOLUTION * (most - least)


def meanstd(stats: Stats, least: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
    """Mean 0, standard deviation 1."""
    return _vector(stats.mean), _vector(stats.std)


def none(stats: Stats, least: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers as they are."""
    return torch.zeros_like(least), torch.ones_like(least)


CODECS: dict[str, Callable[[Stats, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "minmax": minmax,
    "quantile": quantile,
    "meanstd": meanstd,
    "none": none,
}


def _vector(values: Sequence[float]) -> Float64[Tensor, "d"]:
    return torch.tensor(values, dtype=torch.float64)
