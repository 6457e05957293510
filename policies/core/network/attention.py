"""Attention, over one sequence or from one to another."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .config import NetworkConfig
from .embed import linear, unit


class KeyValues(NamedTuple):
    """What tokens offer to those that attend to them, in one layer."""

    keys: Float[Tensor, "batch heads tokens head_width"]
    values: Float[Tensor, "batch heads tokens head_width"]

    def before(self, others: KeyValues) -> KeyValues:
        """With those of further tokens behind them, in as many rows."""
        rows = others.keys.shape[0]
        mine = self if self.keys.shape[0] == rows else (item.expand(rows, -1, -1, -1) for item in self)
        return KeyValues(*(torch.cat(pair, 2) for pair in zip(mine, others, strict=True)))


class Attention(nn.Module):
    """Self-attention, causal or not; or cross-attention to a memory, without a mask.

    With `qk_norm` queries and keys are RMS-normalised (arXiv 2302.05442). Only the product of the two norms' weights
    enters the scores, so one vector serves both.
    """

    def __init__(self, config: NetworkConfig, gain: float, cross: bool = False) -> None:
        super().__init__()
        width, head_width = config.width, config.width // config.heads
        self.heads, self.causal = config.heads, config.causal and not cross
        self.into = linear(width, width if cross else 3 * width)
        self.memory = linear(width, 2 * width) if cross else None
        self.out = linear(width, width, gain)
        self.qk_norm = nn.Parameter(torch.ones(head_width)) if config.qk_norm else None
        # unit() leaves out the RMS norm's sqrt(head_width), once in the queries and once in the keys.
        self.scale = head_width ** (0.5 if config.qk_norm else -0.5)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        memory: KeyValues | None = None,
        keep: int | None = None,
    ) -> Float[Tensor, "batch kept width"]:
        """What the last `keep` tokens, or all, attend to: each other, or in cross-attention a memory that was `offer`ed."""
        if memory is None:
            q, (k, v) = self.project(x)
        else:
            (q,), (k, v) = self._split(self.into(x), 1), memory
            q = q if self.qk_norm is None else unit(q, self.qk_norm)
        heads = _attend(q, k, v, is_causal=self.causal, scale=self.scale).transpose(1, 2)
        return self.out((heads if keep is None else heads[:, -keep:]).flatten(2))

    def project(self, x: Float[Tensor, "batch tokens width"]) -> tuple[Tensor, KeyValues]:
        """The tokens' queries, and what they offer, in self-attention."""
        # Split and unbound, not indexed: the gradient of an index is zeros of the whole, with a part filled in.
        qk, v = self.into(x).unflatten(-1, (3, self.heads, -1)).split([2, 1], 2)
        q, k = (qk if self.qk_norm is None else unit(qk, self.qk_norm)).unbind(2)
        return q.transpose(1, 2), KeyValues(k.transpose(1, 2), v.squeeze(2).transpose(1, 2))

    def offer(self, memory: Float[Tensor, "batch context width"]) -> KeyValues:
        """What a memory offers to those that cross-attend to it: a function of each of its tokens alone."""
        assert self.memory is not None
        k, v = self._split(self.memory(memory), 2)
        return KeyValues(k if self.qk_norm is None else unit(k, self.qk_norm), v)

    def extend(
        self,
        x: Float[Tensor, "batch tokens width"],
        past: KeyValues | None = None,
        mask: Bool[Tensor, "batch 1 1 keys"] | None = None,
    ) -> tuple[Float[Tensor, "batch tokens width"], KeyValues]:
        """What tokens attend to among themselves, both ways, and to a `past` that does not attend to them.

        Args:
            mask: keys that are there, those of `past` first.

        Returns:
            Also the tokens' own keys and values, the `past` of those that come after them.
        """
        q, own = self.project(x)
        k, v = own if past is None else past.before(own)
        heads = _attend(q, k, v, attn_mask=mask, scale=self.scale)
        return self.out(heads.transpose(1, 2).flatten(2)), own

    def _split(self, x: Tensor, parts: int) -> Tensor:
        """`[parts, batch, heads, tokens, head width]`, without a copy."""
        return x.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4)


def _attend(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
    """Training under autocast on a CPU, in float32: in bfloat16 the gradient takes six times as long there (torch 2.13)."""
    if q.device.type == "cpu" and q.requires_grad and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), **how)
    return F.scaled_dot_product_attention(q, k, v, **how)
