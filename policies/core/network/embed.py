"""How the noise level enters: as a vector phi, and through the norm and gate of every residual branch."""

from __future__ import annotations

import math
from itertools import zip_longest
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .config import NetworkConfig


def init_(weight: Tensor, gain: float = 1.0) -> Tensor:
    """Normal with standard deviation gain / sqrt(fan in): inputs of size one give outputs of size `gain`."""
    return nn.init.normal_(weight, std=gain * weight.shape[-1] ** -0.5)


def linear(inputs: int, outputs: int, gain: float = 1.0) -> nn.Linear:
    """A linear map without bias; `init_` says how it starts."""
    layer = nn.Linear(inputs, outputs, bias=False)
    init_(layer.weight, gain)
    return layer


def unit(x: Float[Tensor, "*rows width"], scale: Tensor, shift: Tensor | None = None) -> Float[Tensor, "*rows width"]:
    """`x / |x| * scale + shift`: an RMS norm (arXiv 1910.07467) if `scale` holds sqrt(width) times its weight.

    On a CPU it takes half the time of F.rms_norm, and the shift costs nothing.
    """
    factor = scale / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-6)
    return x * factor if shift is None else torch.addcmul(shift, x, factor)


class NoiseEmbedding(nn.Module):
    """phi: a process's noise label (dimensionless, of order one) as a vector.

    `linear` is the MoDE release's: Linear(1 -> width), then a linear map without bias. `sinusoidal` is DDPM's: sines
    and cosines, then a two-layer MLP; their periods, 0.004 to 4 in geometric steps, are those of openpi's pi0.
    """

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.width, self.kind = width, kind
        if kind == "linear":
            self.layers = nn.Sequential(nn.Linear(1, width), linear(width, width))
        else:
            self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, label: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch width"]:
        weight = next(self.parameters())
        features = label.to(weight.device, torch.float32)[..., None]
        if self.kind == "sinusoidal":
            rates = torch.logspace(math.log10(2 * math.pi / 4), math.log10(2 * math.pi / 0.004), self.width // 2)
            angles = features * rates.to(weight.device)
            features = torch.cat([angles.sin(), angles.cos()], -1)
        return self.layers(features.to(weight.dtype))


class Modulation(NamedTuple):
    """One residual branch: x + gate * branch(unit(x, scale, shift)). Vectors, or `[batch, 1, width]` in training."""

    scale: Tensor
    shift: Tensor | None = None
    gate: Tensor | None = None

    def enter(self, x: Tensor) -> Tensor:
        return unit(x, self.scale, self.shift)

    def leave(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + branch if self.gate is None else torch.addcmul(x, self.gate, branch)

    def where(self, tokens: Bool[Tensor, "#batch tokens 1"], other: Modulation) -> Modulation:
        """The other one at these tokens."""
        shift, gate = (
            None if mine is None or theirs is None else torch.where(tokens, theirs, mine)
            for mine, theirs in ((self.shift, other.shift), (self.gate, other.gate))
        )
        return Modulation(torch.where(tokens, other.scale, self.scale), shift, gate)

    def last(self, tokens: int) -> Modulation:
        """Without what is said about each of the tokens before these."""
        shift, gate = (None if item is None else _last(item, tokens) for item in (self.shift, self.gate))
        return Modulation(_last(self.scale, tokens), shift, gate)


def _last(x: Tensor, tokens: int) -> Tensor:
    return x if x.ndim < 2 or x.shape[-2] == 1 else x[..., -tokens:, :]


class Modulations(nn.Module):
    """Every branch's modulation, and last the head's, which has no gate.

    With `adaptive_norm` one linear map of phi gives them all (DiT, arXiv 2212.09748). As there its matrix starts at zero,
    but the gates start at one, so that a fresh network is the one without adaptive norm: behind an output that is zero,
    closed gates make a short training start late. Otherwise each branch has a learned norm weight.
    `noise_attention` adds phi to what self-attention, each block's first branch, sees (MoDE, arXiv 2412.12953).
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config, count = config, config.depth * config.branches + 1
        self.weights = nn.ParameterList([] if config.adaptive_norm else [torch.ones(config.width) for _ in range(count)])
        self.adaptive = nn.Linear(config.width, (3 * count - 1) * config.width) if config.adaptive_norm else None
        if self.adaptive is not None:
            nn.init.zeros_(self.adaptive.weight)
            start = torch.tensor([1.0, 0.0, 1.0]).repeat(count)[:-1]  # scale, shift, gate
            self.adaptive.bias.data.copy_(start.repeat_interleave(config.width))

    def forward(self, phi: Float[Tensor, "*rows width"] | None = None) -> list[Modulation]:
        """`phi` may be None where neither adaptive norms nor the attention see the noise level."""
        root = self.config.width**0.5
        if self.adaptive is None:
            branches = [Modulation(weight * root) for weight in self.weights]
        else:
            assert phi is not None
            vectors = self.adaptive(F.silu(phi)).unflatten(-1, (-1, self.config.width)).unbind(-2)
            triples = zip_longest(vectors[::3], vectors[1::3], vectors[2::3])
            branches = [Modulation(scale * root, shift, gate) for scale, shift, gate in triples]
        if self.config.noise_attention:
            assert phi is not None
            for index in range(0, len(branches) - 1, self.config.branches):
                shift = branches[index].shift
                branches[index] = branches[index]._replace(shift=phi if shift is None else shift + phi)
        return branches
