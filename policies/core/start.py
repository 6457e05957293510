"""Where decoding starts: from noise, or from the plan that is being carried out (real-time iteration, arXiv 2508.05396).

A replan a few steps later has nearly the same answer as the plan before. That one, shifted by the actions that were carried out
in the meantime, is the guess; decoding starts part of the way down from noise, under the new observation.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ...spec import KinoiseError
from .process.base import Belief, Denoise
from .process.gaussian import Gaussian
from .process.masked import Masked, surest
from .random import Gen


def shift(plan: Shaped[Tensor, "batch chunk action"], elapsed: int) -> Shaped[Tensor, "batch chunk action"]:
    """The plan from `elapsed` actions on, as long as before: its last action is repeated where nothing is known yet.

    Raises KinoiseError when nothing of the plan is left, or `elapsed` is negative.
    """
    chunk = plan.shape[1]
    if not 0 <= elapsed < chunk:
        raise KinoiseError(f"elapsed={elapsed}: a plan of {chunk} actions guesses the next from 0 to {chunk - 1} actions later")
    return torch.cat([plan[:, elapsed:], plan[:, -1:].expand(-1, elapsed, -1)], 1)


def warm_noise(
    process: Gaussian, guess: Float[Tensor, "batch chunk action"], level: float, gen: Gen, renoise: bool = True
) -> Float[Tensor, "batch chunk action"]:
    """x at time `level`, as if the guess were clean; at level 1 the guess is forgotten.

    Args:
        guess: normalised actions.
        renoise: add the level's noise. The method's release feeds the guess as it is, at the level's scale.
    """
    _check(level)
    if level == 1:
        return process.prior(guess.shape, gen, guess.device)
    t = torch.tensor(level, dtype=torch.float64)
    return process.corrupt(guess, t, gen) if renoise else process.at(t, guess).alpha * guess


def warm_tokens(
    process: Masked,
    guess: Int[Tensor, "batch chunk action"],
    level: float,
    elapsed: int,
    confidence: Float[Tensor, "batch chunk action"] | None = None,
) -> Int[Tensor, "batch chunk action"]:
    """The guess with as many tokens masked as the process has at time `level`: the unknown tail, then the least sure.

    Args:
        guess: shifted tokens, of which the last `elapsed` actions are repetitions.
        confidence: of the tokens, shifted alike; None: the later an action, the less sure.
    """
    _check(level)
    batch, chunk, _ = guess.shape
    unknown = (torch.arange(chunk, device=guess.device) >= chunk - elapsed)[None, :, None].expand_as(guess)
    if confidence is None:
        confidence = torch.linspace(1, 0, chunk, device=guess.device)[None, :, None].expand(guess.shape)
    masked = process.count(torch.tensor(level, dtype=torch.float64), guess[0].numel())
    doubt = torch.where(unknown, torch.inf, -confidence)
    everything = torch.ones_like(unknown)
    left = torch.full((batch,), guess[0].numel() - masked, device=guess.device)
    return guess.masked_fill(surest(doubt, everything, left) | unknown, process.mask)


def remembering(denoise: Denoise, first: list[Belief]) -> Denoise:
    """`denoise`, which leaves its first belief in `first`."""

    def asked(x: Tensor, t: Tensor) -> Belief:
        belief = denoise(x, t)
        if not first:
            first.append(belief)
        return belief

    return asked


def distance(
    belief: Float[Tensor, "batch chunk action"], guess: Float[Tensor, "batch chunk action"], elapsed: int
) -> tuple[float, ...]:
    """Root mean square difference of each row over the actions that the guess really knew, all but the last `elapsed`."""
    known = guess.shape[1] - elapsed
    return tuple((belief - guess)[:, :known].square().mean((1, 2)).sqrt().tolist())


def _check(level: float) -> None:
    if not 0 < level <= 1:
        raise KinoiseError(f"a warm start at level {level}: expected a time above 0, and at most 1, which is a cold start")
