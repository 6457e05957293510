"""An observation that every policy can plan on, for where there is none yet: warm-ups, and what a plan costs."""

from __future__ import annotations

import torch

from ..spec import Observation
from .base import Policy


def example(policy: Policy, rows: int = 1) -> Observation:
    """The middle of the training data in every row, and its first instruction; on the CPU, as sensors' are."""
    values = {}
    for key, feature in policy.spec.observations.items():
        mean = torch.tensor(policy.stats[key].mean).expand(rows, policy.config.history, *feature.shape)
        values[key] = mean.to(torch.uint8 if feature.kind == "image" else torch.float32).contiguous()
    if not policy.spec.language:
        return Observation(values, (), None)
    return Observation(values, policy.texts[:1], torch.zeros(rows, dtype=torch.int64))
