"""Diffusion Policy's transformer as released (arXiv 2303.04137, section 3.2; DP-T): a decoder over actions, with layer norms.

`Denoiser` with `context=cross` is that design with the field's later habits (RMS norms, no biases); this is the network itself,
so that its weights can be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..cache import COMPUTED, FeatureCache, Keep, keeping
from ..process.base import Prediction
from ..random import Gen, dropout
from .attention import KeyValues
from .config import NetworkConfig
from .transformer import Level, Memory, drawn
from .unet import sines


class Heads(nn.Module):
    """Multi-head attention with biases, of tokens to themselves or to a memory (arXiv 1706.03762)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.memory, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def offer(self, memory: Float[Tensor, "batch context width"]) -> KeyValues:
        """What a memory offers: a function of each of its tokens alone."""
        return KeyValues(*self.memory(memory).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4))

    def forward(
        self, x: Float[Tensor, "batch tokens width"], memory: KeyValues, mask: Bool[Tensor, "tokens context"] | None
    ) -> Float[Tensor, "batch tokens width"]:
        """`mask`: what each token sees; everything if None."""
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        found = F.scaled_dot_product_attention(q, memory.keys, memory.values, attn_mask=mask)
        return self.out(found.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Self-attention, cross-attention if there is a memory, feed-forward: residual branches, each behind a layer norm."""

    def __init__(self, config: NetworkConfig, cross: bool) -> None:
        super().__init__()
        self.rate, width = config.dropout, config.width
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3 if cross else 2))
        self.attention = Heads(width, config.heads)
        self.cross = Heads(width, config.heads) if cross else None
        self.into, self.out = nn.Linear(width, config.hidden), nn.Linear(config.hidden, width)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        causal: Bool[Tensor, "tokens tokens"] | None = None,
        memory: KeyValues | None = None,
        seen: Bool[Tensor, "tokens context"] | None = None,
        gen: Gen | None = None,
        kept: Keep = COMPUTED,
    ) -> Float[Tensor, "batch tokens width"]:
        def attend() -> Tensor:
            h = self.norms[0](x)
            return self.attention(h, self.attention.offer(h), causal)

        x = x + self._drop(kept("attention", attend), gen)
        if (cross := self.cross) is not None:
            assert memory is not None
            y, known = x, memory
            x = y + self._drop(kept("cross", lambda: cross(self.norms[1](y), known, seen)), gen)
        z = x
        return z + self._drop(kept("feedforward", lambda: self.out(self._drop(F.gelu(self.into(self.norms[-1](z))), gen))), gen)

    def _drop(self, x: Tensor, gen: Gen | None) -> Tensor:
        return dropout(x, self.rate, gen)


class Decoder(nn.Module):
    """The network F of every process, as `Denoiser` is; the context has a token a step, behind one of the noise level.

    Of `NetworkConfig` it has width, depth, heads, ff, causal, dropout, positions and encoder_depth. Causal, an action sees
    those before it and, of the context, the noise level and the steps up to its own place in the chunk. Dropout is on branches
    and in feed-forwards, not on attention's weights.

    Args:
        action_dim: numbers in an action.
        chunk: actions that are denoised.
        steps, features: of the context, and numbers in each of them.
    """

    causal: Tensor
    seen: Tensor

    def __init__(self, config: NetworkConfig, action_dim: int, chunk: int, steps: int, features: int) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.actions, self.context = nn.Linear(action_dim, width), nn.Linear(features, width)
        self.position = nn.Parameter(0.02 * torch.randn(chunk, width))
        self.place = nn.Parameter(0.02 * torch.randn(1 + steps, width))
        mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
        layers = nn.ModuleList(Layer(config, cross=False) for _ in range(config.encoder_depth))
        self.encoder = layers if config.encoder_depth else mlp
        self.blocks = cast(Sequence[Layer], nn.ModuleList(Layer(config, cross=True) for _ in range(config.depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, action_dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        place = torch.arange(chunk)[:, None]
        self.register_buffer("causal", place >= torch.arange(chunk), persistent=False)
        self.register_buffer("seen", place >= torch.arange(1 + steps) - 1, persistent=False)

    def forward(
        self,
        x: Float[Tensor, "batch chunk action"],
        noise: Float[Tensor, "*rows"] | Level,
        context: Float[Tensor, "batch steps features"] | Memory,
        gen: Gen | None = None,
        given: None = None,
        cache: FeatureCache | None = None,
    ) -> Prediction:
        """See `Denoiser.forward`. No action can be told to be clean, so `given` is None."""
        gen = drawn(self, self.config, gen)
        level = noise if isinstance(noise, Level) else Level(self._told(noise.expand(len(x))), [], ())
        memory = self._memory(level, context, len(x), gen)
        causal, seen = (self.causal, self.seen) if self.config.causal else (None, None)
        h = self.actions(x.to(self.position.dtype)) + self.position
        for index, (block, known) in enumerate(zip(self.blocks, memory, strict=True)):
            h = block(h, causal, known, seen, gen, keeping(cache, index))
        return Prediction(self.head(self.norm(h)).to(x.dtype))

    def remember(self, context: Float[Tensor, "batch steps features"]) -> Float[Tensor, "batch steps features"] | Memory:
        """What every evaluation of a plan can share: without encoder layers, in which the noise level and the context meet, its
        keys and values; otherwise itself."""
        return context if self.config.encoder_depth else Memory(self._offer(self.encoder(self._tokens(context))))

    @torch.no_grad()
    def level(self, noise: Float[Tensor, ""], given: None = None) -> Level:
        """The noise level's token, the same for all rows. It goes stale when the weights change."""
        token = self._told(noise[None])
        return Level(token, [], (), offered=None if self.config.encoder_depth else self._offer(self.encoder(token)))

    def expert_use(self, noise: Float[Tensor, "levels"]) -> Any:
        """None: there are no experts."""
        return None

    def _memory(self, level: Level, context: Tensor | Memory, rows: int, gen: Gen | None) -> tuple[KeyValues, ...]:
        if not self.config.encoder_depth:
            first = level.offered or self._offer(self.encoder(level.token))
            others = context.layers if isinstance(context, Memory) else self._offer(self.encoder(self._tokens(context)))
            return tuple(own.before(other) for own, other in zip(first, others, strict=True))
        assert isinstance(context, Tensor)
        h = torch.cat([level.token.expand(rows, -1, -1), self._tokens(context)], 1)
        for layer in cast(Sequence[Layer], self.encoder):
            h = layer(h, gen=gen)
        return self._offer(h)

    def _told(self, noise: Float[Tensor, "batch"]) -> Float[Tensor, "batch 1 width"]:
        steps = (noise * self.config.positions - 1).to(self.place.device, torch.float32)
        return (sines(steps, self.config.width).to(self.place.dtype) + self.place[0])[:, None]

    def _tokens(self, context: Float[Tensor, "batch steps features"]) -> Float[Tensor, "batch steps width"]:
        return self.context(context.to(self.place.dtype)) + self.place[1:]

    def _offer(self, memory: Float[Tensor, "batch tokens width"]) -> tuple[KeyValues, ...]:
        return tuple(block.cross.offer(memory) for block in self.blocks if block.cross is not None)
