"""Low-dimensional observations as tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...spec import Feature, Stats
from ..core.codec import Affine
from .objects import ObjectsEncoder, object_scaling


class StateEncoder(nn.Module):
    """One token for each step of one observation's history: a two-layer MLP, plus a learned vector for the step's age.

    Args:
        dim: numbers in the observation, which come normalised to order one (see core/codec.py).
        history: steps, the last of them now.
        width: of the tokens.
    """

    def __init__(self, dim: int, history: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.step = nn.Parameter(torch.randn(history, width))

    def forward(self, state: Float[Tensor, "batch history dim"]) -> Float[Tensor, "batch history width"]:
        return self.layers(state.to(self.step.dtype)) + self.step


def state_encoder(feature: Feature, history: int, width: int) -> nn.Module:
    """Tokens of a state: one a step, or for a list of objects one for each of its rows."""
    if feature.categories:
        return ObjectsEncoder(feature, history, width)
    return StateEncoder(feature.shape[0], history, width)


def state_scaling(feature: Feature, stats: Stats, mode: str) -> Affine:
    """How a state's numbers come to order one: by the data's statistics (see core/codec.py), or a list of objects' own way."""
    return object_scaling(feature) if feature.categories else Affine.fit(stats, mode)
