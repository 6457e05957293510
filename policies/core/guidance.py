"""Guidance: beliefs combined into a belief, or pulled towards what is known, before a sampler sees it."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from .process.base import Belief, Denoise
from .process.gaussian import CLEAN, Gaussian


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


def fixed(process: Gaussian, denoise: Denoise, actions: Float[Tensor, "batch prefix action"]) -> Denoise:
    """For a network that was trained with clean first actions: it sees these, and they are what it believes of them."""
    count = actions.shape[1]

    def seeing(x: Tensor, t: Tensor) -> Belief:
        scale = process.at(CLEAN, x).into / process.at(t, x).into
        belief = denoise(torch.cat([scale * actions, x[:, count:]], 1), t)
        return torch.cat([actions, belief[:, count:]], 1)

    return seeing


def pulled(
    process: Gaussian,
    denoise: Denoise,
    towards: Float[Tensor, "batch chunk action"],
    weight: Float[Tensor, "chunk"],
    most: float,
) -> Denoise:
    """For any network: the belief, pulled towards known actions by a gradient through the network.

    Real-time chunking (arXiv 2506.07339, eq. 2 to 4): it adds to flow's velocity min((1 - t) / t * (t^2 + (1 - t)^2) /
    (1 - t)^2, `most`) J^T W (y - x1), with t = 0 for noise. x / (alpha + sigma) is flow's x, so that in terms of beliefs, for
    any alpha and sigma, the factor is min((alpha^2 + sigma^2) / (alpha sigma), `most`) sigma, and J the belief's derivative.

    Besides the evaluation a call costs a backward pass.
    """
    weights = weight[:, None]

    def pull(x: Tensor, t: Tensor) -> Belief:
        at = process.at(t, x)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            belief = denoise(x, t)
            (gradient,) = torch.autograd.grad(belief, x, (weights * (towards - belief)).detach())
        strength = (at.alpha**2 + at.sigma**2) / (at.alpha * at.sigma) if at.alpha > 0 else math.inf
        return process.bounded(belief.detach() + min(strength, most) * at.sigma * gradient)

    return pull


def softening(prefix: int, known: int, chunk: int) -> Float[Tensor, "chunk"]:
    """How much each action of the plan before counts: 1 for the first `prefix`, then less and less, 0 from `known` on.

    Real-time chunking's soft mask (arXiv 2506.07339, eq. 5).
    """
    c = ((known - torch.arange(chunk)) / (known - prefix + 1)).clamp(0, 1)
    return torch.where(torch.arange(chunk) < prefix, 1.0, c * torch.expm1(c) / math.expm1(1.0))
