"""The denoiser: a transformer over action tokens that knows the noise level and the context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ....spec import KinoiseError
from ..cache import FeatureCache, site
from ..process.base import Prediction
from ..random import Gen, dropout
from .attention import Attention, KeyValues
from .config import NetworkConfig
from .embed import Modulation, Modulations, NoiseEmbedding, linear, unit
from .moe import Choice, Dispatch, FeedForward, Router, Share, choose, dispatch, imbalance


class Given(NamedTuple):
    """Actions that are clean while the others are noisy, hence at a noise level of their own (arXiv 2512.05964).

    Args:
        actions: which they are.
        noise: the process's label of no noise.
    """

    actions: Bool[Tensor, "#batch chunk"]
    noise: Float[Tensor, ""]


class Level(NamedTuple):
    """Everything in a forward pass that depends on the noise alone. `Denoiser.level` makes one to serve any batch.

    Args:
        token: the noise as a token, `[1 or batch, 1, width]`.
        branches: the modulations of each block's branches, and last the head's.
        experts: each block's: those of all rows (`Denoiser.level`), or each row's; None where noise does not choose. Given
            actions go where their row goes.
        balance: the routing's load-balancing loss, in training.
        given: which actions are clean, and the modulations that they have instead.
        offered: what the noise token offers to cross-attention, in each block; None where that has to be computed.
    """

    token: Tensor
    branches: list[Modulation]
    experts: tuple[tuple[Share, ...] | Dispatch | None, ...]
    balance: Tensor | None = None
    given: tuple[Bool[Tensor, "#batch chunk"], list[Modulation]] | None = None
    offered: tuple[KeyValues, ...] | None = None

    def spread(self, tokens: int) -> list[Modulation]:
        """`branches`, for each of so many tokens where some are given: actions are the last."""
        if self.given is None:
            return self.branches
        given, clean = self.given
        which = F.pad(given, (tokens - given.shape[-1], 0))[..., None]
        return [own.where(which, other) for own, other in zip(self.branches, clean, strict=True)]


class Memory(NamedTuple):
    """A context as cross-attention sees it in each block, the same in every evaluation of a plan (`Denoiser.remember`)."""

    layers: tuple[KeyValues, ...]


class Kept(NamedTuple):
    """A plan's cache, as a block knows it."""

    cache: FeatureCache
    block: int


def _branch(kept: Kept | None, branch: str, compute: Callable[[], Tensor]) -> Tensor:
    return compute() if kept is None else kept.cache.residual(site(kept.block, branch), compute)


class Block(nn.Module):
    """Self-attention, cross-attention if there is a memory, feed-forward: residual branches, each behind its norm."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        # GPT-2's scaling: what writes into the residual stream starts smaller, so that depth does not change its size.
        gain = (config.depth * config.branches) ** -0.5
        self.config = config
        self.attention = Attention(config, gain)
        self.cross = Attention(config, gain, cross=True) if config.context == "cross" else None
        self.router = Router(config.width, 1, config.experts) if config.routing == "token" and config.experts > 1 else None
        self.feedforward = FeedForward(config.width, config.hidden, config.activation, config.experts, gain)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        memory: KeyValues | None,
        branches: list[Modulation],
        experts: tuple[Share, ...] | Dispatch | None,
        gen: Gen | None,
        keep: int | None = None,
        kept: Kept | None = None,
    ) -> tuple[Float[Tensor, "batch kept width"], Tensor | None]:
        """The last `keep` tokens, or all, after this block; and in training a token router's load-balancing loss."""
        attended = _branch(kept, "attention", lambda: self.attention(branches[0].enter(x), keep=keep))
        if keep is None:
            return self._finish(x, attended, memory, branches, experts, gen, kept)
        return self._finish(x[:, -keep:], attended, memory, [item.last(keep) for item in branches], experts, gen, kept)

    def extend(
        self,
        x: Float[Tensor, "batch tokens width"],
        branches: list[Modulation],
        past: KeyValues | None,
        mask: Bool[Tensor, "batch 1 1 keys"] | None,
        gen: Gen | None,
        kept: Kept | None = None,
    ) -> tuple[Float[Tensor, "batch tokens width"], KeyValues | None, Tensor | None]:
        """Tokens after this block that see each other and a `past`; their own keys and values; a token router's loss.

        Where `kept` has what they attend to, there are no keys and values.
        """
        own: KeyValues | None = None

        def attend() -> Tensor:
            nonlocal own
            attended, own = self.attention.extend(branches[0].enter(x), past, mask)
            return attended

        after, balance = self._finish(x, _branch(kept, "attention", attend), None, branches, None, gen, kept)
        return after, own, balance

    def _finish(
        self,
        x: Tensor,
        attended: Tensor,
        memory: KeyValues | None,
        branches: list[Modulation],
        experts: tuple[Share, ...] | Dispatch | None,
        gen: Gen | None,
        kept: Kept | None,
    ) -> tuple[Tensor, Tensor | None]:
        first, *second, last = branches
        x = y = first.leave(x, self._drop(attended, gen))
        if (cross := self.cross) is not None:
            crossed = _branch(kept, "cross", lambda: cross(second[0].enter(y), memory))
            x = second[0].leave(y, self._drop(crossed, gen))
        base = last.enter(x) if self.config.moe_residual == "normalised" else x
        balance: Tensor | None = None

        def feed() -> Tensor:
            nonlocal balance
            h, how = last.enter(x) if base is x else base, experts
            if self.router is not None:
                how, balance = self._route(self.router(h), gen)
            return self.feedforward(h, how)

        return last.leave(base, self._drop(_branch(kept, "feedforward", feed), gen)), balance

    def _route(self, probabilities: Tensor, gen: Gen | None) -> tuple[Dispatch, Tensor | None]:
        choice = Choice(*(part.flatten(0, 1) for part in choose(probabilities, self.config.chosen, gen)))
        balance = imbalance(probabilities.flatten(0, 1), choice) if self.training else None
        return dispatch(choice, self.config.experts)[0], balance

    def _drop(self, x: Tensor, gen: Gen | None) -> Tensor:
        return dropout(x, self.config.dropout, gen)


class Denoiser(nn.Module):
    """The network F of every process: noisy actions, the noise level and a context in, one vector per action out.

    In prefix mode [noise token, context tokens, action tokens] are one sequence. In cross mode the action tokens attend
    to themselves and, like diffusion_policy's transformer (arXiv 2303.04137), to the memory [noise token, context
    tokens]. Actions have learned positions; context tokens bring their identity from their encoders. The last block
    computes action tokens only: nothing reads the others.

    The output matrix starts at zero, so a fresh network returns zero (as EDM's does, arXiv 2206.00364).

    Args:
        action_dim: numbers in an action.
        chunk: actions in a plan.
    """

    def __init__(self, config: NetworkConfig, action_dim: int, chunk: int) -> None:
        super().__init__()
        if not (config.noise_token or config.noise_attention or config.adaptive_norm):
            raise KinoiseError("network: nothing tells it the noise level; set noise_token, noise_attention or adaptive_norm")
        self.config, self.chunk = config, chunk
        self.actions = linear(action_dim, config.width)
        self.position = nn.Parameter(torch.randn(chunk, config.width))
        self.noise = NoiseEmbedding(config.width, config.noise_embedding)
        self.modulations = Modulations(config)
        self.router = Router(config.width, config.depth, config.experts) if config.routed else None
        self.memory_norm = nn.Parameter(torch.ones(config.width)) if config.context == "cross" else None
        self.blocks = cast(Sequence[Block], nn.ModuleList(Block(config) for _ in range(config.depth)))
        self.head = nn.Linear(config.width, action_dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        x: Float[Tensor, "batch chunk action"],
        noise: Float[Tensor, "*rows"] | Level,
        context: Float[Tensor, "batch tokens width"] | Memory,
        gen: Gen | None = None,
        given: Given | None = None,
        cache: FeatureCache | None = None,
    ) -> Prediction:
        """The network's output, `[batch, chunk, action]`; in training also the weighted load-balancing loss.

        Args:
            noise: the process's label, of each row (`[batch]`) or of all (0-d); or the `level` made of the latter.
            context: tokens; in cross mode also what `remember` made of them.
            gen: draws the experts and the dropout of training; not used in eval mode, which takes the likeliest experts.
            given: actions that come clean, whatever the others' noise; a `level` knows its own.
            cache: of the plan that this evaluation is part of.

        Raises:
            KinoiseError: training without `gen` where something has to be drawn.
        """
        gen = drawn(self, self.config, gen)
        level = noise if isinstance(noise, Level) else self._condition(noise.expand(len(x)), gen, given)
        tokens, memory = self.actions(x.to(self.position.dtype)) + self.position, None
        if self.memory_norm is None:
            assert isinstance(context, Tensor)
            seen = [level.token.expand(x.shape[0], -1, -1), context] if self.config.noise_token else [context]
            tokens = torch.cat([*seen, tokens], 1)
        else:
            memory = context.layers if isinstance(context, Memory) else self._offer(context)
            if self.config.noise_token:
                first = level.offered or self._offer(level.token)
                memory = tuple(own.before(others) for own, others in zip(first, memory, strict=True))
        balances, modulations = [level.balance], level.spread(tokens.shape[1])
        for index, block in enumerate(self.blocks):
            start = index * self.config.branches
            branches = modulations[start : start + self.config.branches]
            keep = self.chunk if index == len(self.blocks) - 1 else None
            kept = None if cache is None else Kept(cache, index)
            seen = None if memory is None else memory[index]
            tokens, balance = block(tokens, seen, branches, level.experts[index], gen, keep, kept)
            balances.append(balance)
        value = self.head(modulations[-1].last(self.chunk).enter(tokens)).to(x.dtype)
        parts = [balance for balance in balances if balance is not None]
        return Prediction(value, self.config.balance * torch.stack(parts).mean() if parts else None)

    def remember(self, context: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"] | Memory:
        """The context as every evaluation of a plan can share it: in cross mode its keys and values, otherwise itself."""
        return context if self.memory_norm is None else Memory(self._offer(context))

    @torch.no_grad()
    def level(self, noise: Float[Tensor, ""], given: Given | None = None) -> Level:
        """What all rows at one noise level share, to be computed once: phi, norms and gates, and the likeliest experts.

        It goes stale when the weights change.
        """
        phi = self.noise(noise)
        experts = (None,) * self.config.depth
        if self.router is not None:
            choices = (part.tolist() for part in choose(self.router(phi), self.config.chosen, None))
            experts = tuple(block.feedforward.shares(*one) for block, *one in zip(self.blocks, *choices, strict=True))
        token = phi[None, None]
        offered = self._offer(token) if self.config.noise_token and self.memory_norm is not None else None
        return Level(token, self.modulations(phi), experts, given=self._clean(given), offered=offered)

    @torch.no_grad()
    def expert_use(self, noise: Float[Tensor, "levels"]) -> Float[Tensor, "levels depth experts"] | None:
        """Each expert's probability at each noise label; rows sum to one. None where noise does not choose experts."""
        return None if self.router is None else self.router(self.noise(noise))

    def _offer(self, tokens: Float[Tensor, "batch tokens width"]) -> tuple[KeyValues, ...]:
        assert self.memory_norm is not None
        memory = unit(tokens, self.memory_norm * self.config.width**0.5)
        return tuple(block.cross.offer(memory) for block in self.blocks if block.cross is not None)

    def _clean(self, given: Given | None) -> tuple[Bool[Tensor, "#batch chunk"], list[Modulation]] | None:
        return None if given is None else (given.actions, self.modulations(self.noise(given.noise)))

    def _condition(self, noise: Float[Tensor, "batch"], gen: Gen | None, given: Given | None) -> Level:
        phi = self.noise(noise)
        experts, balance = (None,) * self.config.depth, None
        if self.router is not None:
            probabilities = self.router(phi)
            choice = choose(probabilities, self.config.chosen, gen)
            experts = dispatch(choice, self.config.experts)
            balance = imbalance(probabilities, choice) if self.training and self.config.routing == "noise" else None
        return Level(phi[:, None], self.modulations(phi[:, None]), experts, balance, self._clean(given))


def drawn(network: nn.Module, config: NetworkConfig, gen: Gen | None) -> Gen | None:
    """`gen` in training, None otherwise. Raises KinoiseError where training has to draw and there is none."""
    if not network.training:
        return None
    if gen is None and (config.dropout or config.chosen < config.experts):
        raise KinoiseError("a network in training draws experts or dropout: pass gen=, or call eval() first")
    return gen
