"""MoDE's transformer as released (arXiv 2412.12953, section 3; github.com/intuitive-robots/MoDE_Diffusion_Policy).

`Denoiser` with MoDE's settings is that design without biases; this is the network itself, so that its weights can be used.

Shape suffixes of weights: E experts, H hidden (of which each expert has two: values, then gates), D width, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..cache import FeatureCache, Keep, keeping
from ..process.base import Prediction
from ..random import Gen, dropout
from .config import NetworkConfig
from .embed import NoiseEmbedding, init_, linear, unit
from .moe import Dispatch, Share, choose, dispatch, grouped, imbalance
from .transformer import Given, Level, drawn


class Heads(nn.Module):
    """Causal self-attention; queries, keys and values have biases, queries and keys RMS norms with weights of their own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, size = heads, width // heads
        self.into, self.out = nn.Linear(width, 3 * width), linear(width, width)
        self.query_norm, self.key_norm = nn.Parameter(torch.ones(size)), nn.Parameter(torch.ones(size))

    def forward(self, x: Float[Tensor, "batch tokens width"], keep: int) -> Float[Tensor, "batch kept width"]:
        """What the last `keep` tokens attend to."""
        q, k, v = self.into(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # unit() leaves out the RMS norm's root of the size, once in the queries and once in the keys.
        q, k, scale = unit(q, self.query_norm), unit(k, self.key_norm), q.shape[-1] ** 0.5
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        return self.out(found[:, :, -keep:].transpose(1, 2).flatten(2))


class Routers(nn.Module):
    """Probabilities of the experts in every layer: width -> 2 width -> GELU -> experts, with biases."""

    def __init__(self, width: int, layers: int, experts: int) -> None:
        super().__init__()
        self.w_in_LHD = nn.Parameter(init_(torch.empty(layers, 2 * width, width)))
        self.b_in_LH = nn.Parameter(torch.zeros(layers, 2 * width))
        self.w_out_LEH = nn.Parameter(init_(torch.empty(layers, experts, 2 * width), gain=0.1))
        self.b_out_LE = nn.Parameter(torch.zeros(layers, experts))

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows layers experts"]:
        hidden = F.gelu(torch.einsum("...d,lhd->...lh", x, self.w_in_LHD) + self.b_in_LH)
        return (torch.einsum("...lh,leh->...le", hidden, self.w_out_LEH) + self.b_out_LE).float().softmax(-1)


class Experts(nn.Module):
    """Gated feed-forwards (arXiv 2002.05202) whose first layer has a bias."""

    def __init__(self, width: int, hidden: int, experts: int) -> None:
        super().__init__()
        self.w_in_EHD = nn.Parameter(init_(torch.empty(experts, 2 * hidden, width)))
        self.b_in_EH = nn.Parameter(torch.zeros(experts, 2 * hidden))
        self.w_out_EDH = nn.Parameter(init_(torch.empty(experts, width, hidden)))

    def shares(self, experts: Sequence[int], weights: Sequence[float]) -> tuple[Share, ...]:
        """What these experts contribute to every row: views. `Share.into` holds the first layer's matrix and bias."""
        parts = zip(experts, weights, strict=True)
        return tuple(Share((self.w_in_EHD[e], self.b_in_EH[e]), self.w_out_EDH[e], weight) for e, weight in parts)

    def forward(
        self, x: Float[Tensor, "batch tokens width"], how: tuple[Share, ...] | Dispatch
    ) -> Float[Tensor, "batch tokens width"]:
        """`how`: the experts of all rows, or each row's own."""
        if not isinstance(how, Dispatch):
            return sum((F.linear(_hidden(x, *into) * weight, out) for into, out, weight in how), x.new_zeros(()))
        parts = zip(*(item.unbind() for item in (self.w_in_EHD, self.b_in_EH, self.w_out_EDH)), strict=True)
        return grouped(x, how, [partial(_expert, into=into, bias=bias, out=out) for into, bias, out in parts])


def _expert(x: Tensor, into: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    return F.linear(_hidden(x, into, bias), out)


def _hidden(x: Tensor, into: Tensor, bias: Tensor) -> Tensor:
    value, gate = F.linear(x, into, bias).chunk(2, -1)
    return value * F.silu(gate)


class Layer(nn.Module):
    """x + Attn(RMS(x) + phi), then RMS(x) + its experts: the second branch is added to what the norm gives."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.rate = config.dropout
        self.norms = nn.ParameterList(torch.ones(config.width) for _ in range(2))
        self.attention = Heads(config.width, config.heads)
        self.experts = Experts(config.width, config.hidden, config.experts)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        phi: Float[Tensor, "#batch 1 width"],
        how: tuple[Share, ...] | Dispatch,
        keep: int,
        gen: Gen | None,
        kept: Keep,
    ) -> Float[Tensor, "batch kept width"]:
        """The last `keep` tokens after this layer."""
        first, second = (weight * x.shape[-1] ** 0.5 for weight in self.norms)
        attended = kept("attention", lambda: self.attention(unit(x, first, phi), keep))
        h = unit(x[:, -keep:] + self._drop(attended, gen), second)
        return h + self._drop(kept("feedforward", lambda: self.experts(h, how)), gen)

    def _drop(self, x: Tensor, gen: Gen | None) -> Tensor:
        return dropout(x, self.rate, gen)


class ModeTransformer(nn.Module):
    """The network F of every process, as `Denoiser` is: [noise, context, actions], causal, experts chosen by the noise alone.

    Of `NetworkConfig` it has width, depth, heads, ff, noise_token, dropout (on branches, as `Denoiser` has it), experts, top_k
    and balance. Context tokens bring their places; actions have learned ones.

    Args:
        action_dim: numbers in an action.
        chunk: actions that are denoised.
    """

    def __init__(self, config: NetworkConfig, action_dim: int, chunk: int) -> None:
        super().__init__()
        self.config, self.chunk, width = config, chunk, config.width
        self.actions, self.noise = linear(action_dim, width), NoiseEmbedding(width, "linear")
        self.position = nn.Parameter(0.02 * torch.randn(chunk, width))
        self.routers = Routers(width, config.depth, config.experts)
        self.blocks = cast(Sequence[Layer], nn.ModuleList(Layer(config) for _ in range(config.depth)))
        self.norm, self.head = nn.Parameter(torch.ones(width)), nn.Linear(width, action_dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        x: Float[Tensor, "batch chunk action"],
        noise: Float[Tensor, "*rows"] | Level,
        context: Float[Tensor, "batch tokens width"],
        gen: Gen | None = None,
        given: None = None,
        cache: FeatureCache | None = None,
    ) -> Prediction:
        """See `Denoiser.forward`. No action can be told to be clean, so `given` is None."""
        gen = drawn(self, self.config, gen)
        level = noise if isinstance(noise, Level) else self._condition(noise.expand(len(x)), gen)
        before = [level.token.expand(len(x), -1, -1)] if self.config.noise_token else []
        h = torch.cat([*before, context, self.actions(x.to(self.position.dtype)) + self.position], 1)
        for index, (block, how) in enumerate(zip(self.blocks, level.experts, strict=True)):
            assert how is not None
            keep = self.chunk if index == len(self.blocks) - 1 else h.shape[1]
            h = block(h, level.token, how, keep, gen, keeping(cache, index))
        value = self.head(unit(h, self.norm * self.config.width**0.5)).to(x.dtype)
        return Prediction(value, None if level.balance is None else self.config.balance * level.balance)

    def remember(self, context: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        """Itself: the noise token comes before it, so that nothing of it is the same at two noise levels."""
        return context

    @torch.no_grad()
    def level(self, noise: Float[Tensor, ""], given: Given | None = None) -> Level:
        """What all rows at one noise level share: phi and the likeliest experts. It goes stale when the weights change."""
        phi = self.noise(noise)
        choices = (part.tolist() for part in choose(self.routers(phi), self.config.top_k, None))
        experts = tuple(block.experts.shares(*one) for block, *one in zip(self.blocks, *choices, strict=True))
        return Level(phi[None, None], [], experts)

    @torch.no_grad()
    def expert_use(self, noise: Float[Tensor, "levels"]) -> Float[Tensor, "levels depth experts"]:
        """Each expert's probability at each noise label; rows sum to one."""
        return self.routers(self.noise(noise))

    def _condition(self, noise: Float[Tensor, "batch"], gen: Gen | None) -> Level:
        phi = self.noise(noise)
        probabilities = self.routers(phi)
        choice = choose(probabilities, self.config.top_k, gen)
        balance = imbalance(probabilities, choice) if self.training else None
        return Level(phi[:, None], [], dispatch(choice, self.config.experts), balance)
