"""Lists of objects as tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...spec import OBJECT, Feature, KinoiseError
from ..core.codec import Affine

FAR, NEAR = 0.3, 0.03
"""Metres that count as one: across a table, and between fingers."""


def object_scaling(feature: Feature) -> Affine:
    """Metres in units of FAR; all else as it is. A fixed scale, since what stands in a row changes from scene to scene."""
    columns = [FAR if unit == "m" else 1.0 for unit in OBJECT.values()]
    scale = torch.tensor(columns * (feature.shape[0] // len(OBJECT)), dtype=torch.float64)
    return Affine(torch.zeros_like(scale), scale)


class ObjectsEncoder(nn.Module):
    """A token for each row and step: a learned vector for its category, and an MLP of its pose.

    No vector says which row it is, so that their order means nothing. Positions relative to the gripper come at two scales,
    the finer one saturating, because millimetres count where the gripper is about to close.

    Args:
        feature: a list of objects.
        history: steps, the last of them now.
        width: of the tokens.

    Raises KinoiseError for a feature whose length isn't that of whole rows.
    """

    def __init__(self, feature: Feature, history: int, width: int) -> None:
        super().__init__()
        self.rows, rest = divmod(feature.shape[0], len(OBJECT))
        if rest or not self.rows:
            raise KinoiseError(f"{feature.shape[0]} numbers aren't whole rows of {len(OBJECT)}: {', '.join(OBJECT)}")
        self.category = nn.Embedding(1 + len(feature.categories), width)  # the first: an empty row
        self.layers = nn.Sequential(nn.Linear(len(OBJECT) - 1 + 3, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.step = nn.Parameter(torch.randn(history, 1, width))

    def forward(self, state: Float[Tensor, "batch history dim"]) -> Float[Tensor, "batch tokens width"]:
        """`state` as `object_scaling` has scaled it."""
        rows = state.unflatten(-1, (self.rows, len(OBJECT)))
        category = rows[..., 0].round().long() + 1
        pose = rows[..., 1:].to(self.step.dtype)
        near = torch.tanh(pose[..., :3] * (FAR / NEAR))
        there = (category > 0).unsqueeze(-1).to(pose.dtype)
        tokens = self.layers(torch.cat([pose, near], -1)) * there + self.category(category) + self.step
        return tokens.flatten(1, 2)
