"""Guidance: beliefs combined into a belief, before a sampler sees it."""

from __future__ import annotations

import torch
from torch import Tensor

from .process.base import Belief, Denoise


def guided(conditional: Denoise, unconditional: Denoise, scale: float) -> Denoise:
    """Classifier-free guidance (Ho and Salimans 2022): unconditional + scale (conditional - unconditional).

    Scale 1 is the conditional prediction alone and 0 the unconditional one, at one evaluation a call; others take two.
    Beliefs are affine in eps, v, u and F, so this is guidance on whichever of them the network predicts.
    """
    if scale == 1:
        return conditional
    if scale == 0:
        return unconditional

    def denoise(x: Tensor, t: Tensor) -> Belief:
        return torch.lerp(unconditional(x, t), conditional(x, t), scale)

    return denoise
