"""Where decoding starts: from noise, or from the plan that is being carried out (real-time iteration, arXiv 2508.05396).

A replan a few steps later has nearly the same answer as the plan before. That one, shifted by the actions that were carried out
in the meantime, is the guess; decoding starts part of the way down from noise, under the new observation.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, Shaped
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
    prefix: int = 0,
) -> Int[Tensor, "batch chunk action"]:
    """The guess with its unknown tail masked and, of what is open, the least sure: as large a share as is masked at `level`.

    Open is what is known and not in the prefix. At least one of these tokens is masked, if there are any, so that the first
    belief always says something about the guess.

    Args:
        guess: shifted tokens, of which the last `elapsed` actions are repetitions.
        confidence: of the tokens, shifted alike; None: the later an action, the less sure.
        prefix: first actions that stay as they are.
    """
    _check(level)
    batch, chunk, _ = guess.shape
    place = torch.arange(chunk, device=guess.device)[None, :, None].expand_as(guess)
    unknown, settled = place >= chunk - elapsed, place < prefix
    if confidence is None:
        confidence = torch.linspace(1, 0, chunk, device=guess.device)[None, :, None].expand(guess.shape)
    asked = ~unknown & ~settled
    count = int(asked[0].sum())
    left = torch.full((batch,), count - process.count(torch.tensor(level, dtype=torch.float64), count), device=guess.device)
    return guess.masked_fill((surest(-confidence, asked, left) | unknown) & ~settled, process.mask)


def remembering(denoise: Denoise, first: list[Belief]) -> Denoise:
    """`denoise`, which leaves its first belief in `first`."""

    def asked(x: Tensor, t: Tensor) -> Belief:
        belief = denoise(x, t)
        if not first:
            first.append(belief.detach())
        return belief

    return asked


def distance(
    belief: Float[Tensor, "batch chunk action"],
    guess: Float[Tensor, "batch chunk action"],
    elapsed: int,
    asked: Bool[Tensor, "batch chunk action"] | None = None,
) -> tuple[float, ...]:
    """Root mean square difference of each row over the actions that the guess really knew, all but the last `elapsed`.

    Args:
        asked: the numbers that the belief is about; None for all.
    """
    known = guess.shape[1] - elapsed
    gaps = (belief - guess)[:, :known].square().flatten(1)
    about = torch.ones_like(gaps) if asked is None else asked[:, :known].flatten(1).to(gaps)
    return tuple(((gaps * about).sum(1) / about.sum(1).clamp(min=1)).sqrt().tolist())


def _check(level: float) -> None:
    if not 0 < level <= 1:
        raise KinoiseError(f"a warm start at level {level}: expected a time above 0, and at most 1, which is a cold start")
