"""Feed-forwards: one, or a mixture of experts that the noise level chooses between (MoDE, arXiv 2412.12953).

Shape suffixes of weights: E experts, P parts of the first layer (2 with a gate), H hidden, D width, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..random import Gen, uniform
from .embed import init_


class Share(NamedTuple):
    """One expert's matrices, and how much it counts: a tensor where a compiled network serves several weights."""

    into: tuple[Tensor, ...]
    out: Float[Tensor, "hidden width"]
    weight: float | Float[Tensor, ""]


class Choice(NamedTuple):
    """The experts that each row goes to in each layer, and what each of them counts; a row's weights sum to one."""

    experts: Int[Tensor, "*rows layers top_k"]
    weights: Float[Tensor, "*rows layers top_k"]


class Dispatch(NamedTuple):
    """One layer's rows, lined up by expert: place i holds row `source[i]`, and expert e has the next `sizes[e]` places.

    `back` holds the places of each row, `weights` what each of them counts.
    """

    source: Int[Tensor, "places"]
    sizes: list[int]
    back: Int[Tensor, "rows top_k"]
    weights: Float[Tensor, "rows top_k"]


class Router(nn.Module):
    """Probabilities of the experts: an MLP width -> 2 width -> GELU -> experts, for `layers` layers in one go.

    Starts close to uniform.
    """

    def __init__(self, width: int, layers: int, experts: int) -> None:
        super().__init__()
        self.w_in_LHD = nn.Parameter(init_(torch.empty(layers, 2 * width, width)))
        self.w_out_LEH = nn.Parameter(init_(torch.empty(layers, experts, 2 * width), gain=0.1))

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows layers experts"]:
        hidden = F.gelu(torch.einsum("...d,lhd->...lh", x, self.w_in_LHD))
        return torch.einsum("...lh,leh->...le", hidden, self.w_out_LEH).float().softmax(-1)


def choose(probabilities: Float[Tensor, "*rows layers experts"], top_k: int, gen: Gen | None) -> Choice:
    """The `top_k` likeliest experts or, with `gen`, as many drawn without replacement; probabilities renormalised.

    The draw is an exponential race: each probability over an exponential variate, the largest win. With one expert a row
    the weight is always one, so that its router learns from the load-balancing loss alone.
    """
    scores = probabilities
    if gen is not None:
        scores = probabilities / -torch.log1p(-uniform(probabilities.shape, gen, probabilities.device))
    experts = scores.topk(top_k, -1).indices
    weights = probabilities.gather(-1, experts)
    return Choice(experts, weights / weights.sum(-1, keepdim=True))


def dispatch(choice: Choice, experts: int) -> tuple[Dispatch, ...]:
    """Rows grouped by expert, for each layer of a choice over `[rows, layers]`.

    The sizes of all layers' groups are read at once, so that a GPU is waited for once and not once per layer.
    """
    top_k = choice.experts.shape[-1]
    places = choice.experts.transpose(0, 1).flatten(1)
    order = places.argsort(dim=-1, stable=True)
    back = order.argsort(dim=-1).unflatten(-1, (-1, top_k))
    sizes = F.one_hot(places, experts).sum(1).tolist()
    return tuple(map(Dispatch, order // top_k, sizes, back, choice.weights.unbind(1)))


def grouped(
    x: Float[Tensor, "batch tokens width"], how: Dispatch, experts: Sequence[Callable[[Tensor], Tensor]]
) -> Float[Tensor, "batch tokens width"]:
    """What each row's own experts make of it, weighed. A row is a sample or a token; an expert maps `[places, width]`."""
    rows = x.reshape(len(how.back), -1, x.shape[-1])
    tokens = rows.shape[1]
    groups = rows.index_select(0, how.source).flatten(0, 1).split([size * tokens for size in how.sizes])
    places = torch.cat([expert(group) for group, expert in zip(groups, experts, strict=True)])
    chosen = places.unflatten(0, (-1, tokens)).index_select(0, how.back.flatten()).unflatten(0, how.back.shape)
    return torch.einsum("rk,rktd->rtd", how.weights.to(chosen.dtype), chosen).view_as(x)


def imbalance(probabilities: Float[Tensor, "rows layers experts"], choice: Choice) -> Float[Tensor, ""]:
    """E sum_e f_e p_e, the mean over layers (Switch Transformer, arXiv 2101.03961, eq. 4).

    f_e is the share of places that expert e got and p_e its mean probability, which alone carries gradient. One when
    all experts are used alike, E when one takes everything.
    """
    experts = probabilities.shape[-1]
    share = F.one_hot(choice.experts, experts).float().mean((0, 2))
    return experts * (share * probabilities.mean(0)).sum(-1).mean()


class FeedForward(nn.Module):
    """width -> hidden -> width without biases, `experts` times over; a plain feed-forward is the case of one.

    Args:
        activation: `swiglu` (arXiv 2002.05202; the first layer's two parts are gate and value) or `gelu`.
        gain: of the output matrices at the start.
    """

    def __init__(self, width: int, hidden: int, activation: str, experts: int = 1, gain: float = 1.0) -> None:
        super().__init__()
        parts = {"swiglu": 2, "gelu": 1}[activation]
        self.w_in_EPHD = nn.Parameter(init_(torch.empty(experts, parts, hidden, width)))
        self.w_out_EDH = nn.Parameter(init_(torch.empty(experts, width, hidden), gain))

    def shares(self, experts: Sequence[int], weights: Sequence[float]) -> tuple[Share, ...]:
        """What these experts contribute to every row: views, so that all noise levels read the same memory.

        Fusing them into one wide feed-forward per level would save no multiplication but make a copy per level: at five
        levels those leave a CPU's cache, and a network evaluation takes a sixth longer (measured, width 128, 4 blocks).
        """
        return tuple(Share(self.w_in_EPHD[e].unbind(), self.w_out_EDH[e].T, w) for e, w in zip(experts, weights, strict=True))

    def forward(
        self, x: Float[Tensor, "batch tokens width"], how: tuple[Share, ...] | Dispatch | None = None
    ) -> Float[Tensor, "batch tokens width"]:
        """`how`: the experts of all rows; each row's own (a row is a sample or a token); None where there is but one."""
        if isinstance(how, Dispatch):
            # unbind, not indexing: its gradient is one stack, where each index would fill a tensor of all experts' size.
            parts = zip(self.w_in_EPHD.unbind(), self.w_out_EDH.unbind(), strict=True)
            return grouped(x, how, [partial(_expert, into=into.unbind(), out=out) for into, out in parts])
        if how is None:
            return F.linear(_hidden(x, self.w_in_EPHD[0].unbind()), self.w_out_EDH[0])
        y = rows = x.flatten(0, 1)  # addmm adds to y, which counts nothing (beta 0) where it is still x
        for index, (into, out, weight) in enumerate(how):
            hidden, alpha = (_hidden(rows, into) * weight, 1.0) if isinstance(weight, Tensor) else (_hidden(rows, into), weight)
            y = torch.addmm(y, hidden, out, beta=min(index, 1), alpha=alpha)
        return y.view_as(x)


def _expert(x: Tensor, into: Sequence[Tensor], out: Tensor) -> Tensor:
    return F.linear(_hidden(x, into), out)


def _hidden(x: Tensor, into: Sequence[Tensor]) -> Tensor:
    if len(into) == 1:
        return F.gelu(F.linear(x, into[0]))
    gate, value = into
    return F.silu(F.linear(x, gate)) * F.linear(x, value)
