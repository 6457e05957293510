"""The discrete-diffusion VLA: masked action tokens beside vision, language and state (Liang et al. 2025, arXiv 2508.20072).

One transformer over [vision | language | state | action] tokens, block-causal: the observation prefix never looks at action
tokens, so it is computed once a plan, where the published system computes it in every round.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..spec import Batch, KinoiseError, Observation, Plan, Spec, Stats
from .base import Policy, PolicyConfig
from .compiled import Graphs, Leaves
from .core.bins import Bins, BinsConfig
from .core.cache import FeatureCache
from .core.guidance import guided
from .core.network import NetworkConfig, Prefix, TokenDenoiser
from .core.process.base import Belief, Denoise, Losses, Prediction
from .core.process.gaussian import CLEAN
from .core.process.masked import Masked, MaskedConfig
from .core.random import Gen, uniform
from .core.sampler import TOKEN_SAMPLERS, Reveal
from .core.sampler.reveal import BOUNDED
from .core.start import distance, warm_tokens
from .decode import DecodeConfig
from .encoders.prefix import PrefixConfig, PrefixEncoder
from .encoders.vlm import VlmBackbone, VlmConfig
from .replan import Guess, Start, timed

VALUES = ("centre", "expectation")


@dataclass
class TokenDecodeConfig(DecodeConfig):
    """How masked tokens become a plan; see `Reveal` for the settings of the rounds. One-shot decoding is steps=1."""

    sampler: str = field(default="reveal", metadata={"help": f"one of {', '.join(TOKEN_SAMPLERS)}"})
    steps: int = field(default=12, metadata={"help": "rounds"})
    confidence: str = field(default="max", metadata={"help": "what is committed first: max, gap, mass, spread or random"})
    temperature: float = field(default=0.0, metadata={"help": "of the noise in the first round, falling to 0; 0 is greedy"})
    noise: str = field(default="tokens", metadata={"help": "what the noise is on: tokens, or ranks (the released code)"})
    threshold: float = field(default=0.0, metadata={"help": "mask again tokens less probable than this, rising; 0 never"})
    residual: float = field(default=1.0, metadata={"help": "mask again tokens whose probability fell by more; 1 never"})
    adaptive: float = field(default=1.0, metadata={"help": "end the rounds when every confidence is above this; 1 never"})
    adaptive_by: str = field(default="spread", metadata={"help": f"which confidence: one of {', '.join(BOUNDED)}"})
    value: str = field(default="expectation", metadata={"help": "what a token stands for: centre of its bin, or expectation"})

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.reveal
        if self.prefix == "guided":
            raise KinoiseError("decode.prefix=guided: tokens are not pulled, a prefix of them is given. Take auto.")
        if self.value not in VALUES:
            raise KinoiseError(f"decode.value={self.value}: expected one of {', '.join(VALUES)}")
        if self.value == "expectation" and (self.sampler == "ancestral" or (self.temperature > 0 and self.noise == "tokens")):
            raise KinoiseError("decode.value=expectation averages over the tokens that would be drawn: set decode.value=centre")

    @classmethod
    def samplers(cls) -> tuple[str, ...]:
        return tuple(TOKEN_SAMPLERS)

    @property
    def reveal(self) -> Reveal:
        return Reveal(**{item.name: getattr(self, item.name) for item in fields(Reveal)})


@dataclass
class DiscreteVLAConfig(PolicyConfig):
    """The paper's design at a size that trains on a laptop."""

    name: str = "discrete_vla"
    chunk: int = field(default=8, metadata={"help": "actions in a plan"})
    execute: int = field(default=4, metadata={"help": "actions carried out before the next plan"})
    bins: BinsConfig = field(default_factory=BinsConfig)
    process: MaskedConfig = field(default_factory=MaskedConfig)
    network: NetworkConfig = field(default_factory=lambda: NetworkConfig(depth=3, ff=2.0, adaptive_norm=False))
    encoder: PrefixConfig = field(default_factory=PrefixConfig)
    decode: TokenDecodeConfig = field(default_factory=TokenDecodeConfig)  # pyright: ignore[reportIncompatibleVariableOverride]
    vlm: VlmConfig = field(default_factory=VlmConfig)


class Embedded(nn.Module):
    """The default backbone, trained from scratch: patches, words, state, and the core's transformer."""

    def __init__(
        self,
        config: DiscreteVLAConfig,
        spec: Spec,
        stats: Mapping[str, Stats],
        texts: tuple[str, ...],
        sizes: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.encoder = PrefixEncoder(config.encoder, spec, stats, texts, config.history, config.network.width)
        self.network = TokenDenoiser(config.network, sizes, config.chunk)

    def prefix(self, obs: Observation, dropped: Bool[Tensor, "batch"] | None, gen: Gen | None = None) -> Prefix:
        """What the observation offers to action tokens, the same in every round."""
        tokens, mask = self.encoder(obs, dropped, gen)
        return self.network.prefix(tokens, mask, gen)

    def forward(
        self, x: Int[Tensor, "batch chunk action"], prefix: Prefix, gen: Gen | None = None, cache: FeatureCache | None = None
    ) -> Prediction:
        """Logits of every token, `[batch, chunk, action, size]`."""
        return self.network(x, prefix, gen, cache)


class Round(NamedTuple):
    """What a network evaluation saw, and what it believed."""

    masked: Bool[Tensor, "batch chunk action"]
    belief: Tensor


class DiscreteVLAPolicy(Policy):
    """Reveals action tokens in rounds; see `Policy` for the arguments."""

    config: DiscreteVLAConfig

    def __init__(self, config: DiscreteVLAConfig, spec: Spec, stats: Mapping[str, Stats], texts: tuple[str, ...]) -> None:
        super().__init__(config, spec, stats, texts)
        self.bins = Bins.fit(self.stats["action"], config.bins, spec.gripper)
        self.backbone = self._backbone(texts)
        self.process = Masked(config.process, self.bins.sizes)

    def _backbone(self, texts: tuple[str, ...]) -> Embedded | VlmBackbone:
        config, sizes = self.config, self.bins.sizes
        if config.vlm.path is None:
            return Embedded(config, self.spec, self.stats, texts, sizes)
        scaling = config.encoder.state
        return VlmBackbone(config.vlm, self.spec, self.stats, texts, config.history, config.chunk, sizes, scaling)

    def loss(self, batch: Batch, gen: Gen) -> Losses:
        """Cross-entropy on masked tokens over valid steps. `shown["clipped"]`: the share of action numbers beyond the bins."""
        rows = batch.observation.batch
        dropped = uniform((rows,), gen, self.device) < self.config.goal_dropout
        actions = batch.actions.to(self.device)
        prefix = self.backbone.prefix(batch.observation, dropped, gen)
        clean, valid = self.bins.encode(actions), batch.valid.to(self.device)
        losses = self.process.loss(self._network(gen), clean, prefix, valid, gen, self.simulated(batch.valid, gen))
        return Losses(losses.per_sample, losses.auxiliary, {"clipped": self.bins.outside(actions)})

    def remarks(self, actions: Float[Tensor, "steps action"]) -> list[str]:
        """How many numbers lie beyond their bins."""
        share = self.bins.outside(actions.to(self.device)).item()
        count = round(share * actions.numel())
        if not count:
            return []
        clipped = f"{count} of {actions.numel()} action numbers ({share:.2%}) lie beyond the bins and are clipped to them"
        return [f"{clipped}: look at the data's extremes, or take policy.bins.range=full"]

    def decode(self, obs: Observation, gen: Gen, start: Start) -> Plan:
        """`decode.steps` rounds from masked tokens; fewer where actions are pinned or `decode.adaptive` is met.

        From a guess, `decode.warm_steps` rounds with its tail and its least sure tokens masked.
        """
        decode, guess = self.config.decode, start.guess if start.warm else None
        begin = time.perf_counter()
        rounds: list[Round] = []
        denoise = self.believe(obs, rounds, start)
        encoded = time.perf_counter()
        most = decode.steps if guess is None else decode.replan_steps
        if start.budget is not None:
            most, denoise = start.budget.steps(most, self._calls), start.budget.keep(denoise)
        if guess is None:
            shape = (obs.batch, self.config.chunk, self.spec.action_dim)
            x, grid = self.process.prior(shape, gen, self.device), self.process.grid(most)
        else:
            x, grid = self._warm(guess, start.prefix), self.process.grid(most, decode.warm)
        if start.pinned is not None:
            x[:, : start.prefix] = self.bins.encode(start.pinned.to(self.device))
        known = x != self.process.mask
        x = TOKEN_SAMPLERS[decode.sampler](self.process, denoise, x, grid, gen, decode.reveal)
        actions, confidence = (item.cpu() for item in self.read(x, known, rounds, guess))
        if start.pinned is not None:
            actions[:, : start.prefix] = start.pinned
        each = self._evaluations(rounds, obs.batch)
        return Plan(
            actions=actions,
            dt=1.0 / self.spec.rate,
            nfe=len(rounds) * self._calls,
            nfe_rows=tuple(count * self._calls for count in each),
            confidence=confidence,
            surprise=() if guess is None else self._surprise(guess, rounds),
            timing=timed(begin, encoded, len(rounds) * self._calls),
        )

    def _warm(self, guess: Guess, prefix: int) -> Int[Tensor, "batch chunk action"]:
        confidence = None if guess.confidence is None else guess.confidence.to(self.device)
        tokens = self.bins.encode(guess.actions.to(self.device))
        return warm_tokens(self.process, tokens, self.config.decode.warm, guess.elapsed, confidence, prefix)

    def _surprise(self, guess: Guess, rounds: list[Round]) -> tuple[float, ...]:
        """In units of half a dimension's range, as a continuous policy's, over the known tokens that were masked again."""
        if not rounds:
            return (0.0,) * len(guess.actions)
        first, actions = rounds[0], guess.actions.to(self.device)
        believed = self.bins.expect(first.belief, first.belief.argmax(-1))
        scale = 2 / (self.bins.ends[:, 1] - self.bins.ends[:, 0])
        return distance(believed * scale, actions * scale, guess.elapsed, first.masked)

    def believe(self, obs: Observation, rounds: list[Round], start: Start) -> Denoise:
        """The bound prediction, which adds what it saw and said to `rounds`."""
        everyone = torch.zeros(obs.batch, dtype=torch.bool, device=self.device)
        scale = self.config.decode.guidance
        given = self._bind(obs, None, start) if scale != 0 else None
        free = self._bind(obs, ~everyone, start) if scale != 1 else None
        both = guided(given, free, scale) if given and free else given or free
        assert both is not None

        def denoise(x: Tensor, t: Tensor) -> Belief:
            belief = both(x, t)
            belief = belief if scale in (0, 1) else belief.log_softmax(-1)
            rounds.append(Round(x == self.process.mask, belief))
            return belief

        return denoise

    def _bind(self, obs: Observation, dropped: Bool[Tensor, "batch"] | None, start: Start) -> Denoise:
        graphs, backbone = self._compiler(start), self.backbone
        if graphs is not None and isinstance(backbone, Embedded):
            return self._compiled(graphs, backbone, obs, dropped)
        prefix, cache = backbone.prefix(obs, dropped), self.cache(start)

        def network(x: Tensor, noise: Tensor, ctx: Any) -> Prediction:
            if cache is None:
                return backbone(x, ctx)
            cache.advance()
            return backbone(x, ctx, cache=cache)

        return lambda x, t: self.process.predict(network, x, t, prefix)

    def _compiled(self, graphs: Graphs, backbone: Embedded, obs: Observation, dropped: Bool[Tensor, "batch"] | None) -> Denoise:
        """By round: which tokens a round commits, and whether there is another, is known when its belief is."""
        encoded = backbone.encoder(obs, dropped)
        prefix = Leaves(graphs("prefix", backbone.network.prefix, *encoded, capture=True))

        def believe(x: Tensor, prefix: Prefix) -> Belief:
            return self.process.predict(lambda x, noise, ctx: backbone(x, ctx), x, CLEAN, prefix)  # no noise level enters

        return lambda x, t: graphs("round", believe, x, prefix)

    @property
    def compilable(self) -> bool:
        """Not a vision-language model, nor where each token chooses its experts: what these compute depends on values."""
        network = self.config.network
        return isinstance(self.backbone, Embedded) and (network.routing != "token" or network.experts == 1)

    def cache(self, start: Start) -> FeatureCache | None:
        """See `Policy`. Raises KinoiseError where the network is a vision-language model's own."""
        found = super().cache(start)
        if found is not None and isinstance(self.backbone, VlmBackbone):
            raise KinoiseError("decode.cache: a vision-language model's own layers aren't cached. Set decode.cache=none")
        return found

    @property
    def evaluations(self) -> int:
        decode = self.config.decode
        return self.config.chunk * self.spec.action_dim if decode.sampler == "autoregressive" else decode.steps

    def _network(self, gen: Gen) -> Any:
        return lambda x, noise, prefix: self.backbone(x, prefix, gen)

    @property
    def _calls(self) -> int:
        """Network evaluations in a round."""
        return 1 if self.config.decode.guidance in (0, 1) else 2

    def read(
        self, x: Int[Tensor, "batch chunk action"], known: Tensor, rounds: list[Round], guess: Guess | None
    ) -> tuple[Float[Tensor, "batch chunk action"], Float[Tensor, "batch chunk action"]]:
        """Tokens in physical units, and how probable each was, by the belief of the round that committed it for good.

        Tokens that were known from the start are what they were, with the confidence that they had.
        """
        actions, confidence = self.bins.decode(x), torch.ones(x.shape, device=x.device)
        if guess is not None:
            actions = torch.where(known, guess.actions.to(x.device), actions)
            if guess.confidence is not None:
                confidence = torch.where(known, guess.confidence.to(x.device), confidence)
        if not rounds:
            return actions, confidence
        belief = rounds[0].belief
        for item in rounds[1:]:
            belief = torch.where(item.masked[..., None], item.belief, belief)
        sure = belief.gather(-1, x[..., None])[..., 0].exp()
        meant = self.bins.decode(x) if self.config.decode.value == "centre" else self.bins.expect(belief, x)
        return torch.where(known, actions, meant), torch.where(known, confidence, sure)

    def _evaluations(self, rounds: list[Round], rows: int) -> list[int]:
        """Rounds that each row took part in: those in which some of its tokens were masked."""
        if not rounds:
            return [0] * rows
        return torch.stack([item.masked.flatten(1).any(-1) for item in rounds]).sum(0).tolist()
