"""Decoding masked tokens in rounds: believe all, commit the surest, look again (MaskGIT, Discrete Diffusion VLA)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from torch import Tensor

from ....spec import KinoiseError
from ..process.base import Belief, Denoise
from ..process.masked import Masked, gumbel, sample, surest
from ..random import Gen, branched, uniform

CONFIDENCES = ("max", "gap", "mass", "spread", "random")
BOUNDED = CONFIDENCES[:-1]
NOISES = ("tokens", "ranks")

NEAR = 0.02
"""How far neighbouring bins reach to both sides of the one that their mass is about, as a share of the vocabulary."""


@dataclass(frozen=True)
class Reveal:
    """How rounds go.

    Args:
        confidence: by which tokens are committed: `max`, the highest probability; `gap`, between the two highest; `mass`, of a
            few neighbouring bins at best, which says more where bins are fine; `spread`, one less the standard deviation, in
            halves of the range; `random`, none.
        temperature: of the Gumbel noise in the first round; it falls linearly to 0 in the last.
        noise: `tokens`: tokens are drawn from softmax(log p / temperature) in effect (the paper's, read so that temperature 0
            is greedy, as its ablation has it); `ranks`: the likeliest are taken, and the noise is on which are committed,
            log(confidence) + temperature * Gumbel (the released code's).
        threshold: a committed token is masked again when its probability is below this times the share of rounds done; 0 never.
        residual: so is one whose probability has fallen by more than this since it was committed; 1 never.
        adaptive: a row is committed whole when all its tokens' confidence is above this; 1 never.
        adaptive_by: which confidence that is about.
    """

    confidence: str = "max"
    temperature: float = 0.0
    noise: str = "tokens"
    threshold: float = 0.0
    residual: float = 1.0
    adaptive: float = 1.0
    adaptive_by: str = "spread"

    def __post_init__(self) -> None:
        for name, known in {"confidence": CONFIDENCES, "noise": NOISES, "adaptive_by": BOUNDED}.items():
            if getattr(self, name) not in known:
                raise KinoiseError(f"decode.{name}={getattr(self, name)}: expected one of {', '.join(known)}")
        if not 0 <= self.temperature < math.inf:
            raise KinoiseError(f"decode.temperature={self.temperature}: expected a number of at least 0")
        for name in ("threshold", "residual", "adaptive"):
            if not 0 <= getattr(self, name) <= 1:
                raise KinoiseError(f"decode.{name}={getattr(self, name)}: expected a probability, from 0 to 1")

    @property
    def remasks(self) -> bool:
        return self.threshold > 0 or self.residual < 1


def reveal(
    process: Masked,
    denoise: Denoise,
    x: Int[Tensor, "batch chunk action"],
    grid: Float64[Tensor, "times"],
    gen: Gen,
    how: Reveal | None = None,
) -> Int[Tensor, "batch chunk action"]:
    """One round for each interval of `grid`, after which `process.count` tokens are left masked.

    Tokens of `x` that are not masked are never touched. Rounds in which nothing is due, because so many are there from the
    beginning, are left out. With `adaptive`, rounds end when every row is whole.

    Two things the published algorithm leaves open: a token that is masked again is not eligible in the same round, since that
    round's belief has seen it; and in the last round nothing is masked again.
    """
    how = how or Reveal()
    if how.adaptive < 1:  # how often a row draws must not depend on when the others are whole
        gen = branched(gen)
    pinned = x != process.mask
    committed_at = torch.zeros(x.shape, device=x.device)
    rounds, left = len(grid) - 1, int((~pinned).flatten(1).sum(-1).max())
    for index, (t, s) in enumerate(pairwise(grid.unbind())):
        target = process.count(s, x[0].numel())
        if left <= target:
            continue
        masked = x == process.mask
        if how.adaptive < 1 and not masked.any():
            break
        belief = denoise(x, t)
        temperature = how.temperature * (1 - (index + 1) / rounds)
        tokens = sample(belief, gen, temperature if how.noise == "tokens" else 0.0)
        sure = confidence(belief, how.confidence, gen, process.sizes)
        score = sure.clamp(min=1e-20).log() if how.noise == "ranks" else sure
        if how.noise == "ranks" and temperature > 0:
            score = score + temperature * gumbel(score.shape, gen, x.device)
        remaining = torch.full((len(x),), target, device=x.device)
        if how.adaptive < 1:
            bound = confidence(belief, how.adaptive_by, gen, process.sizes)
            remaining = remaining.where(~((bound > how.adaptive) | ~masked).flatten(1).all(-1), 0)
        now = belief.gather(-1, tokens.where(masked, x)[..., None])[..., 0].exp()
        again = _doubted(how, now, committed_at, (index + 1) / rounds) & ~masked & ~pinned & (remaining > 0)[:, None, None]
        chosen = surest(score, masked, remaining)
        committed_at = now.where(chosen, committed_at)
        x = tokens.where(chosen, x).masked_fill(again, process.mask)
        left = target if not how.remasks else x[0].numel()
    return x


def confidence(belief: Belief, kind: str, gen: Gen, sizes: Sequence[int]) -> Float[Tensor, "batch chunk action"]:
    """How sure the belief is of each token, from 0 to 1; see `Reveal`. `sizes`: tokens of each dimension's vocabulary."""
    if kind == "random":
        return uniform(belief.shape[:-1], gen, belief.device)
    p = belief.exp()
    if kind == "max":
        return p.amax(-1)
    if kind == "gap":
        first, second = F.pad(p, (0, 1)).topk(2, -1).values.unbind(-1)  # a vocabulary of one has no second
        return first - second
    place = torch.arange(p.shape[-1], device=p.device)
    if kind == "spread":
        across = 2 * place / torch.tensor([max(size - 1, 1) for size in sizes], device=p.device)[:, None] - 1
        mean = (p * across).sum(-1, keepdim=True)
        return 1 - (p * (across - mean).square()).sum(-1).sqrt()
    reach = torch.tensor([int(NEAR * size) for size in sizes], device=p.device)[:, None]
    above, below = ((place + reach + 1).clamp(max=len(place)), (place - reach).clamp(min=0))
    summed = F.pad(p.cumsum(-1), (1, 0))
    return (summed.gather(-1, above.expand_as(p)) - summed.gather(-1, below.expand_as(p))).amax(-1).clamp(0, 1)


def _doubted(how: Reveal, now: Tensor, before: Tensor, progress: float) -> Tensor:
    """Which tokens the two checks would mask again: threshold and residual drop (Discrete Diffusion VLA, section 3)."""
    return (now < how.threshold * progress) | (before - now > how.residual)


def autoregressive(
    process: Masked,
    denoise: Denoise,
    x: Int[Tensor, "batch chunk action"],
    grid: Float64[Tensor, "times"],
    gen: Gen,
    how: Reveal | None = None,
) -> Int[Tensor, "batch chunk action"]:
    """One token after another, the first action's first dimension first: an evaluation a token, whatever the grid.

    The baseline that language models set. `how.temperature` is the same for every token.
    """
    temperature = 0.0 if how is None else how.temperature
    for place in range(x[0].numel()):
        step, dimension = divmod(place, x.shape[2])
        masked = x[:, step, dimension] == process.mask
        # Drawn for every place, so that what a row draws doesn't depend on which places the others know.
        noise = gumbel((len(x), max(process.sizes)), gen, x.device) if temperature else 0.0
        if not masked.any():
            continue
        tokens = (denoise(x, grid[0])[:, step, dimension] + temperature * noise).argmax(-1)
        x = x.clone()
        x[:, step, dimension] = tokens.where(masked, x[:, step, dimension])
    return x
