"""The network over masked action tokens: a context that is looked at once, and action tokens that see it and each other.

The same blocks as `Denoiser`'s. Attention is block-causal: the context never looks at action tokens, so what it offers, its
keys and values in every block, is a function of the observation alone and serves all rounds of a plan. No noise level enters:
how much is masked can be seen.

Shape suffixes of weights: D dimensions of an action, V tokens of the largest vocabulary, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ....spec import KinoiseError
from ..cache import FeatureCache
from ..process.base import Prediction
from ..random import Gen
from .attention import KeyValues
from .config import NetworkConfig
from .embed import Modulation, Modulations
from .transformer import Block, Kept, drawn

NOTHING = -1e4
"""The logit of a token outside a dimension's own vocabulary: finite, so that guidance can subtract it from itself."""

WAVES = 16


class Prefix(NamedTuple):
    """A context as every round of a plan sees it.

    Args:
        layers: its keys and values in each block.
        mask: which of its tokens are there; None for all.
        norms, w_out_DVW: of all branches and the head, and the output matrices: no business of the context's, but the same in
            every round.
        balance: the routers' load-balancing losses, in training.
    """

    layers: tuple[KeyValues, ...]
    mask: Bool[Tensor, "batch context"] | None
    norms: list[Modulation]
    w_out_DVW: Tensor
    balance: tuple[Tensor, ...] = ()


class TokenDenoiser(nn.Module):
    """Action tokens and a context in, logits over each dimension's own vocabulary out.

    Neighbouring bins start out with similar embeddings: random sums of the first cosines of a bin's place in its range. The
    output matrix starts at zero, so a fresh network believes that all tokens are equally likely.

    Args:
        sizes: tokens of each dimension's vocabulary. The mask is token `max(sizes)`, for all dimensions.
        chunk: actions in a plan.

    Raises KinoiseError for settings that would bring a noise level in, or cross-attention, or causal attention.
    """

    mask_offset: Tensor
    cosines_DVC: Tensor

    def __init__(self, config: NetworkConfig, sizes: Sequence[int], chunk: int) -> None:
        super().__init__()
        noise = config.noise_token or config.noise_attention or config.adaptive_norm or config.routed
        if noise or config.kind != "transformer" or config.context != "prefix" or config.causal:
            raise KinoiseError(
                "a network over masked tokens is a transformer with one prefix, and no noise level or order: set "
                "network.noise_token, noise_attention, adaptive_norm and causal to false, network.context=prefix and, with "
                "experts, network.routing=token"
            )
        self.config, self.sizes, self.size = config, tuple(sizes), max(sizes)
        self.embedding_DVW = nn.Parameter(torch.stack([_ordered(size, self.size + 1, config.width) for size in sizes]))
        self.step = nn.Parameter(torch.randn(chunk, 1, config.width))
        self.dimension = nn.Parameter(torch.randn(len(sizes), config.width))
        self.modulations = Modulations(config)
        self.blocks = cast(Sequence[Block], nn.ModuleList(Block(config) for _ in range(config.depth)))
        self.w_out_DVW = nn.Parameter(torch.zeros(len(sizes), self.size, config.width))
        self.w_smooth_DCW = nn.Parameter(torch.zeros(len(sizes), WAVES, config.width))
        self.bias_DV = nn.Parameter(torch.zeros(len(sizes), self.size))
        absent = torch.arange(self.size) >= torch.tensor(self.sizes)[:, None]
        self.register_buffer("mask_offset", absent * NOTHING, persistent=False)
        self.register_buffer("cosines_DVC", torch.stack([_cosines(size, self.size) for size in sizes]), persistent=False)

    def prefix(
        self,
        context: Float[Tensor, "batch context width"],
        mask: Bool[Tensor, "batch context"] | None = None,
        gen: Gen | None = None,
    ) -> Prefix:
        """What the context offers to action tokens. `mask` says which context tokens are there; all if None."""
        gen = drawn(self, self.config, gen)
        seen = None if mask is None else mask[:, None, None]
        layers, balances, x = [], [], context
        norms = self.modulations()
        for index, block in enumerate(self.blocks):
            branches = norms[index * self.config.branches : (index + 1) * self.config.branches]
            if index == len(self.blocks) - 1:  # nothing reads what the context becomes after the last block
                layers.append(block.attention.project(branches[0].enter(x))[1])
            else:
                x, own, balance = block.extend(x, branches, None, seen, gen)
                assert own is not None
                layers.append(own)
                balances.append(balance)
        w_out_DVW = torch.baddbmm(self.w_out_DVW, self.cosines_DVC, self.w_smooth_DCW)
        return Prefix(tuple(layers), mask, norms, w_out_DVW, tuple(item for item in balances if item is not None))

    def forward(
        self, x: Int[Tensor, "batch chunk action"], prefix: Prefix, gen: Gen | None = None, cache: FeatureCache | None = None
    ) -> Prediction:
        """Logits `[batch, chunk, action, size]`; in training also the weighted load-balancing loss.

        Args:
            gen: draws the dropout and the experts of training.
            cache: of the plan that this evaluation is part of.
        """
        gen = drawn(self, self.config, gen)
        tokens = (self._embed(x) + self.step + self.dimension).flatten(1, 2)
        seen = None if prefix.mask is None else F.pad(prefix.mask, (0, tokens.shape[1]), value=True)[:, None, None]
        balances = list(prefix.balance)
        norms = prefix.norms
        for index, (block, past) in enumerate(zip(self.blocks, prefix.layers, strict=True)):
            branches = norms[index * self.config.branches : (index + 1) * self.config.branches]
            kept = None if cache is None else Kept(cache, index)
            tokens, _, balance = block.extend(tokens, branches, past, seen, gen, kept)
            balances += [] if balance is None else [balance]
        hidden = norms[-1].enter(tokens).unflatten(1, x.shape[1:])
        logits = torch.einsum("bhdw,dvw->bhdv", hidden, prefix.w_out_DVW) + self.bias_DV
        return Prediction(logits + self.mask_offset, self.config.balance * torch.stack(balances).mean() if balances else None)

    def _embed(self, x: Int[Tensor, "batch chunk action"]) -> Float[Tensor, "batch chunk action width"]:
        places = x + (self.size + 1) * torch.arange(len(self.sizes), device=x.device)
        return F.embedding(places, self.embedding_DVW.flatten(0, 1))


def _ordered(size: int, rows: int, width: int) -> Float[Tensor, "rows width"]:
    """Vectors of unit size, of which the first `size` change smoothly from each to the next and the others are random."""
    ordered = _cosines(size, size) @ torch.randn(WAVES, width) * (2 / WAVES) ** 0.5
    return torch.cat([ordered, torch.randn(rows - size, width)])


def _cosines(size: int, rows: int) -> Float[Tensor, "rows waves"]:
    """The first cosines over a vocabulary's places."""
    return ((torch.arange(rows)[:, None] + 0.5) / size * torch.arange(WAVES) * torch.pi).cos()
