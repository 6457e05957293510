"""Masked (absorbing) diffusion over action tokens: noise is a token that says nothing.

D3PM's absorbing process (arXiv 2107.03006), trained as in MaskGIT (arXiv 2202.04200) and Discrete Diffusion VLA (2508.20072).
At time t the share gamma(t) of the tokens is masked: gamma(0) = 0, gamma(1) = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from ....spec import KinoiseError
from ..random import Gen, move, uniform
from .base import Belief, Losses, Network

WEIGHTS = ("masked", "bound")


class Schedule(NamedTuple):
    """The masked share, and its derivative, as functions of time."""

    gamma: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


SCHEDULES: dict[str, Schedule] = {
    # MaskGIT's, cos(pi r / 2) with r = 1 - t.
    "cosine": Schedule(lambda t: (t * math.pi / 2).sin(), lambda t: (t * math.pi / 2).cos() * math.pi / 2),
    "linear": Schedule(torch.clone, torch.ones_like),
}


@dataclass
class MaskedConfig:
    """The process's settings; the published ones have `full` and `smooth` 0.

    Neighbouring actions are much alike, so a few visible tokens give the rest away and the observation need not be looked at:
    samples with everything masked (`full`) put its weight back. `smooth` tells the network that bins have neighbours.

    Raises KinoiseError for a name it does not know or a number out of range.
    """

    schedule: str = field(default="cosine", metadata={"help": "masked share over time: cosine or linear"})
    weight: str = field(
        default="masked",
        metadata={"help": "masked: mean over masked tokens; bound: the likelihood's bound, 1/t for linear"},
    )
    full: float = field(default=0.25, metadata={"help": "share of the samples that are trained with everything masked"})
    smooth: float = field(
        default=2.0, metadata={"help": "deviation, in bins, over which the target is spread; 0 is the bin alone"}
    )

    def __post_init__(self) -> None:
        for name, known in {"schedule": SCHEDULES, "weight": WEIGHTS}.items():
            if getattr(self, name) not in known:
                raise KinoiseError(f"process.{name}={getattr(self, name)}: expected one of {', '.join(known)}")
        if not 0 <= self.smooth < math.inf:
            raise KinoiseError(f"process.smooth={self.smooth}: expected at least 0")
        if self.weight == "bound" and (self.full or self.smooth):
            raise KinoiseError(
                "process.weight=bound is the likelihood's bound with process.full=0 and process.smooth=0 only: set both"
            )
        if not 0 <= self.full < 1:
            raise KinoiseError(f"process.full={self.full}: expected at least 0 and below 1")


class Masked:
    """A `Process` (see there) whose samples are tokens `[batch, chunk, action]` and whose beliefs are log p(x0) of each.

    Args:
        sizes: tokens of each dimension's vocabulary. The mask is token `max(sizes)`, for all dimensions.
    """

    def __init__(self, config: MaskedConfig, sizes: Sequence[int]) -> None:
        self.config, self.sizes, self.mask = config, tuple(sizes), max(sizes)
        self.schedule = SCHEDULES[config.schedule]
        self._targets = _targets(self.sizes, config.smooth) if config.smooth else None

    def grid(self, steps: int, start: float = 1.0) -> Float64[Tensor, "{steps}+1"]:
        """See `Process`: equal steps of time."""
        if steps < 1 or not 0 < start <= 1:
            raise KinoiseError(f"a grid of {steps} steps from {start}: expected at least 1 step, and a start in (0, 1]")
        return torch.linspace(start, 0, steps + 1, dtype=torch.float64)

    def prior(self, shape: Sequence[int], gen: Gen, device: torch.device | str = "cpu") -> Int[Tensor, "..."]:
        """All masked."""
        return torch.full(tuple(shape), self.mask, dtype=torch.int64, device=device)

    def share(self, t: Float[Tensor, "*t"]) -> Float64[Tensor, "*t"]:
        """gamma(t)."""
        return self.schedule.gamma(t.double())

    def count(self, t: Float[Tensor, ""], tokens: int) -> int:
        """How many of `tokens` a decoder leaves masked at time t: MaskGIT's floor(gamma L), from 1 to L - 1 within (0, 1)."""
        if t <= 0 or t >= 1:
            return tokens if t >= 1 else 0
        return min(max(math.floor(float(self.share(t)) * tokens + 1e-9), 1), max(tokens - 1, 1))

    def corrupt(
        self,
        clean: Int[Tensor, "batch ..."],
        t: Float[Tensor, "..."],
        gen: Gen,
        given: Bool[Tensor, "batch chunk"] | None = None,
    ) -> Int[Tensor, "batch ..."]:
        """max(1, round(gamma(t) L)) of each row's L tokens masked, at random places; none at t = 0.

        Actions in `given` are never masked, and L counts the others' tokens.
        """
        rows = clean.flatten(1)
        order = uniform(rows.shape, gen)
        tokens = torch.full((len(rows),), rows.shape[1])
        if given is not None:
            kept = given[:, :, None].expand_as(clean).flatten(1).to(order.device)
            order, tokens = order.masked_fill(kept, 2.0), (~kept).sum(-1)
        wanted = (self.share(t) * tokens).round().clamp(min=1).where(t.double() > 0, 0).minimum(tokens)
        hidden = move(order.argsort(-1).argsort(-1) < wanted[:, None], clean.device)
        return rows.masked_fill(hidden, self.mask).view_as(clean)

    def predict(self, net: Network, x: Int[Tensor, "batch chunk action"], t: Float[Tensor, "..."], ctx: Any) -> Belief:
        """log p(x0 | x), `[batch, chunk, action, size]`, of every token, masked or not."""
        return net(x, self.label(t), ctx).value.float().log_softmax(-1)

    def bridge(
        self, x: Tensor, belief: Belief, t: Float[Tensor, "..."], s: Float[Tensor, "..."], gen: Gen, eta: float = 0.0
    ) -> Tensor:
        """With eta = 1 each masked token appears with probability 1 - gamma(s) / gamma(t), drawn from the belief.

        That is q(x_s | x_t, x0) with x0 drawn from the belief (MDLM, arXiv 2406.07524, eq. 7). With eta = 0 the likeliest
        tokens appear, those believed most, and `count` stay masked. Raises KinoiseError for another eta.
        """
        masked = x == self.mask
        if eta == 0:
            log_p, tokens = belief.max(-1)
            return torch.where(surest(log_p, masked, self.count(s, x[0].numel())), tokens, x)
        if eta != 1:
            raise KinoiseError(f"eta={eta}: a masked process has new noise (1) or none (0)")
        appears = uniform(x.shape, gen, x.device) < 1 - float(self.share(s) / self.share(t))
        return torch.where(masked & appears, sample(belief, gen), x)

    def label(self, t: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """The masked share; networks need not look, since they see what is masked."""
        return self.share(t)

    def loss(
        self,
        net: Network,
        clean: Int[Tensor, "batch chunk action"],
        ctx: Any,
        valid: Bool[Tensor, "batch chunk"],
        gen: Gen,
        given: Bool[Tensor, "batch chunk"] | None = None,
    ) -> Losses:
        """`loss_at` random masks and times: uniform in (0, 1], and 1 for the share `full`, where an observation says all."""
        t = 1 - ((uniform((len(clean),), gen).double() - self.config.full) / (1 - self.config.full)).clamp(min=0)
        asked = valid if given is None else valid & ~given
        return self.loss_at(net, clean, ctx, asked, t, self.corrupt(clean, t, gen, given))

    def loss_at(
        self,
        net: Network,
        clean: Int[Tensor, "batch chunk action"],
        ctx: Any,
        valid: Bool[Tensor, "batch chunk"],
        t: Float[Tensor, "batch"],
        x: Int[Tensor, "batch chunk action"],
    ) -> Losses:
        """Cross-entropy on the masked tokens of valid steps; a row without any has loss 0.

        "masked" is their mean, as in MaskGIT and Discrete Diffusion VLA. "bound" is the negative evidence lower bound for each
        token, gamma'(t) / gamma(t) times their sum over the number of tokens (MDLM, eq. 10); 1/t for the linear schedule. At
        least one token is always masked, so gamma counts as no less than its share: else the rarest times would outweigh all.
        """
        value, balance = net(x, self.label(t), ctx)
        log_p = value.float().log_softmax(-1)
        if self._targets is None:
            error = -log_p.gather(-1, clean[..., None])[..., 0]
        else:
            dims = torch.arange(len(self.sizes), device=clean.device)
            error = -(self._targets.to(log_p.device)[dims, clean] * log_p).sum(-1)
        counted = (x == self.mask) & valid[..., None]
        total = error.where(counted, 0).flatten(1).sum(-1)
        if self.config.weight == "masked":
            per_sample = total / counted.flatten(1).sum(-1).clamp(min=1)
        else:
            tokens = (valid.sum(-1) * clean.shape[-1]).clamp(min=1)
            weight = self.schedule.slope(t.double()) / self.share(t).clamp(min=1 / clean[0].numel())
            per_sample = total * move(weight.float(), total.device) / tokens
        return Losses(per_sample, {} if balance is None else {"balance": balance})


def surest(score: Float[Tensor, "batch chunk action"], masked: Tensor, left: int | Tensor) -> Tensor:
    """Which masked tokens to commit so that `left` (one number, or one a row) stay masked: those with the highest score."""
    score = score.masked_fill(~masked, -math.inf).flatten(1)
    rank = score.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    commit = (masked.flatten(1).sum(-1) - left).clamp(min=0)
    return (rank < commit[:, None]).view_as(masked) & masked


def sample(log_p: Float[Tensor, "*tokens size"], gen: Gen, temperature: float = 1.0) -> Int[Tensor, "*tokens"]:
    """argmax(log p + temperature * Gumbel): a draw from p at 1, the likeliest token at 0, where nothing is drawn from `gen`."""
    if temperature == 0:
        return log_p.argmax(-1)
    return (log_p + temperature * gumbel(log_p.shape, gen, log_p.device)).argmax(-1)


def gumbel(shape: Sequence[int], gen: Gen, device: torch.device | str) -> Float[Tensor, "..."]:
    """Standard Gumbel noise, -log(-log u)."""
    u = uniform(shape, gen, device).clamp(min=1e-20)
    return -(-u.log()).clamp(min=1e-20).log()


def _targets(sizes: Sequence[int], deviation: float) -> Float[Tensor, "action size size"]:
    """What training aims at for each token: a Gaussian over its neighbours, cut off at the vocabulary's ends."""
    size = max(sizes)
    place = torch.arange(size, dtype=torch.float64)
    logits = -0.5 * ((place[:, None] - place) / deviation).square()
    tables = []
    for own in sizes:
        table = logits.masked_fill(place >= own, -math.inf).softmax(-1) if own > 2 else torch.eye(size, dtype=torch.float64)
        tables.append(table)
    return torch.stack(tables).float()
