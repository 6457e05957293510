"""The continuous diffusion policy: a chunk of actions, denoised under the encoded observation.

One class serves DDPM, DDIM, EDM and flow policies: the process, its parametrisation and the sampler are settings
(Diffusion Policy, Chi et al. 2023; flow matching, Lipman et al. 2023; EDM, Karras et al. 2022).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from ..spec import Batch, KinoiseError, Observation, Plan, Spec, Stats
from .base import Policy, PolicyConfig
from .compiled import UNROLLED, Graphs, Leaves
from .core.codec import CODECS, Affine
from .core.guidance import fixed, guided, pulled, softening
from .core.network import Decoder, Denoiser, Films, Given, Level, Memory, ModeTransformer, NetworkConfig, UNet
from .core.process import ProcessConfig, make_process
from .core.process.base import Denoise, Losses, Prediction
from .core.process.gaussian import CLEAN
from .core.process.times import Times
from .core.random import Gen, uniform
from .core.sampler import DRAWING, EVALUATIONS, SAMPLERS
from .core.start import distance, remembering, warm_noise
from .encoders import EncoderConfig, FilmConfig, FilmEncoder, ObservationEncoder, VectorConfig, VectorEncoder
from .replan import Start, timed

Context = Tensor | Memory | Films
"""What the network makes of an observation once a plan."""

LEVELS = 1024
"""Noise levels that are remembered: a budget makes grids of its own."""


@dataclass
class DiffusionConfig(PolicyConfig):
    """A transformer with adaptive norm, on the flow process; or one of Diffusion Policy's own two networks."""

    name: str = "diffusion"
    process: ProcessConfig = field(default_factory=lambda: ProcessConfig(kind="flow", parametrisation="u"))
    network: NetworkConfig = field(default_factory=lambda: NetworkConfig(depth=3, ff=2.0, adaptive_norm=True))
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    vector: VectorConfig = field(default_factory=VectorConfig)
    film: FilmConfig = field(default_factory=FilmConfig)
    past: int = field(
        default=0, metadata={"help": "actions before now that are denoised as well, but not part of a plan: LeRobot's horizon"}
    )
    actions: str = field(default="minmax", metadata={"help": f"scaling of actions: {', '.join(CODECS)}"})
    gripper_size: float = field(
        default=1.0, metadata={"help": "size of the gripper's scaled numbers; at 0.1 a warm start's noise hides them (RTI-DP)"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.actions not in CODECS:
            raise KinoiseError(f"actions={self.actions}: expected one of {', '.join(CODECS)}")
        if not 0 < self.gripper_size < math.inf:
            raise KinoiseError(f"gripper_size={self.gripper_size}: expected more than 0")
        if self.past < 0:
            raise KinoiseError(f"past={self.past}: expected at least 0")
        if self.past and self.simulated_delay:
            raise KinoiseError(f"simulated_delay={self.simulated_delay} with past={self.past}: set one of them to 0")
        told = self.network.kind == "transformer" and (self.network.adaptive_norm or self.network.noise_attention)
        if self.simulated_delay and not told:
            raise KinoiseError(
                f"simulated_delay={self.simulated_delay}: this network isn't told which actions are clean. Set "
                "network.adaptive_norm or network.noise_attention, or leave it 0: prefixes are guided then"
            )
        if self.decode.prefix == "given" and self.simulated_delay == 0:
            raise KinoiseError("decode.prefix=given needs a policy that was trained with simulated_delay above 0: take guided")


class Walk(NamedTuple):
    """A sampler's walk: actions in physical units, a warm start's first belief, network evaluations."""

    actions: Float[Tensor, "batch chunk action"]
    first: Float[Tensor, "batch chunk action"] | None
    nfe: int


class DiffusionPolicy(Policy):
    """Denoises action chunks; see `Policy` for the arguments."""

    config: DiffusionConfig

    def __init__(self, config: DiffusionConfig, spec: Spec, stats: Mapping[str, Stats], texts: tuple[str, ...]) -> None:
        super().__init__(config, spec, stats, texts)
        about = self.spec, self.stats, texts, config.history, config.network.width
        self.codec = Affine.fit(self.stats["action"], config.actions).resized(spec.gripper, config.gripper_size)
        self.length = config.past + config.chunk
        if config.network.kind == "transformer":
            self.observe = ObservationEncoder(config.encoder, *about)
            self.network = Denoiser(config.network, spec.action_dim, self.length)
        elif config.network.kind == "mode":
            self.observe = FilmEncoder(config.film, *about)
            self.network = cast(Any, ModeTransformer(config.network, spec.action_dim, self.length))
        else:
            self.observe = VectorEncoder(config.vector, *about)
            make = {"unet": UNet, "decoder": Decoder}[config.network.kind]
            self.network = make(config.network, spec.action_dim, self.length, config.history, self.observe.features)
        self.process = make_process(config.process)
        self._levels: dict[tuple[float, int], Level | Films] = {}
        self._leaves: dict[tuple[float, int], Leaves] = {}
        self._grids: dict[tuple[int, float], Times] = {}

    def loss(self, batch: Batch, gen: Gen) -> Losses:
        """The process's loss on normalised actions, over valid steps; MoDE's router adds its balance.

        Raises KinoiseError for a network that denoises actions before now as well: batches hold none.
        """
        if self.config.past:
            raise KinoiseError(f"past={self.config.past}: training data hold no actions before now. Set policy.past=0")
        rows = batch.observation.batch
        dropped = uniform((rows,), gen, self.device) < self.config.goal_dropout
        context = self.observe(batch.observation, dropped)
        clean = self.codec.encode(batch.actions.to(self.device))
        known = self.simulated(batch.valid, gen)
        network = partial(self.network, gen=gen, given=None if known is None else Given(known, self._no_noise))
        return self.process.loss(network, clean, context, batch.valid.to(self.device), gen, known)

    def decode(self, obs: Observation, gen: Gen, start: Start) -> Plan:
        """`decode.steps` intervals of `decode.sampler` from noise, or `decode.warm_steps` from the guess's level.

        A prefix is given to a policy that was trained with so long ones; others are pulled towards what is left of the plan
        before.
        """
        decode = self.config.decode
        begin = time.perf_counter()
        guess = None if start.guess is None else self.codec.encode(start.guess.since(self.config.past).to(self.device))
        contexts = self._contexts(obs, start)
        encoded = time.perf_counter()
        most = decode.replan_steps if start.warm else decode.steps
        if start.budget is not None:
            most = start.budget.steps(most, self._calls)
        if start.warm and guess is not None:
            x = warm_noise(self.process, guess, decode.warm, gen, decode.renoise)
        else:
            x = self.process.prior((obs.batch, self.length, self.spec.action_dim), gen, self.device)
        found = self._walked(x, most, contexts, guess, start, gen)
        actions = found.actions.cpu()
        if start.pinned is not None:
            actions[:, : start.prefix] = start.pinned
        return Plan(
            actions=actions,
            dt=1.0 / self.spec.rate,
            nfe=found.nfe,
            surprise=() if found.first is None or guess is None else self._surprise(found.first, guess, start),
            timing=timed(begin, encoded, found.nfe),
        )

    def _walked(
        self,
        x: Float[Tensor, "batch chunk action"],
        steps: int,
        contexts: list[Context],
        guess: Float[Tensor, "batch chunk action"] | None,
        start: Start,
        gen: Gen,
    ) -> Walk:
        """`_walk`, in one graph where that serves other plans too and is not too large.

        A graph knows how long a prefix is, and a budget is looked at between evaluations: then each of those is one.
        """
        decode, graphs = self.config.decode, self._compiler(start)
        level = decode.warm if start.warm else 1.0
        single = start.budget is not None or start.prefix > 0 or decode.sampler in DRAWING or steps * self._calls > UNROLLED
        if graphs is None or single:
            return self._walk(x, self.process.grid(steps, level), contexts, guess, start, gen, graphs)
        if (steps, level) not in self._grids:
            self._grids[steps, level] = Times.of(self.process.grid(steps, level))

        def walk(x: Tensor, contexts: list[Context]) -> Walk:
            return self._walk(x, self._grids[steps, level], contexts, None, start, gen, None)

        return graphs(("plan", steps, level, decode.sampler, decode.guidance), walk, x, contexts, capture=True)

    def _walk(
        self,
        x: Float[Tensor, "batch chunk action"],
        grid: Float64[Tensor, "times"],
        contexts: list[Context],
        guess: Float[Tensor, "batch chunk action"] | None,
        start: Start,
        gen: Gen,
        graphs: Graphs | None,
    ) -> Walk:
        """From x down the grid, its evaluations by `graphs` if there are any."""
        asked: list[Tensor] = []
        first: list[Tensor] = []
        bound = [self._bind(context, asked, start, graphs) for context in contexts]
        denoise = guided(bound[0], bound[-1], self.config.decode.guidance)
        if start.warm:
            denoise = remembering(denoise, first)
        if guess is not None and start.prefix:
            denoise = self._keeping(denoise, guess, start)
        if start.budget is not None:
            denoise = start.budget.keep(denoise)
        x = SAMPLERS[self.config.decode.sampler](self.process, denoise, x, grid, gen)
        return Walk(self.codec.decode(x[:, self.config.past :]).float(), first[0] if first else None, len(asked))

    def differentiates(self, start: Start) -> bool:
        return start.prefix > 0 and not self._gives(start)

    def _gives(self, start: Start) -> bool:
        """Whether the network sees a prefix as one that it was trained with."""
        way = self.config.decode.prefix
        return way == "given" or (way == "auto" and 0 < start.prefix <= self.config.simulated_delay)

    @property
    def evaluations(self) -> int:
        decode = self.config.decode
        return 2 * decode.steps - 1 if decode.sampler == "heun" else decode.steps

    @property
    def _calls(self) -> int:
        """Network evaluations in a step."""
        decode = self.config.decode
        return EVALUATIONS.get(decode.sampler, 1) * (1 if decode.guidance in (0, 1) else 2)

    def _surprise(self, belief: Tensor, guess: Float[Tensor, "batch chunk action"], start: Start) -> tuple[float, ...]:
        """Of what the network itself believes, before anything pulls it to the guess, over what isn't settled."""
        assert start.guess is not None
        belief, guess = belief[:, self.config.past :], guess[:, self.config.past :]
        settled = torch.arange(self.config.chunk, device=guess.device)[None, :, None] < start.prefix
        return distance(belief, guess, start.guess.elapsed, ~settled.expand_as(guess))

    def _keeping(self, denoise: Denoise, guess: Float[Tensor, "batch chunk action"], start: Start) -> Denoise:
        if self._gives(start):
            return fixed(self.process, denoise, guess[:, : start.prefix])
        assert start.guess is not None
        weight = softening(start.prefix, self.config.chunk - start.guess.elapsed, self.config.chunk)
        weight = F.pad(weight, (self.config.past, 0)).to(self.device)
        return pulled(self.process, denoise, guess, weight, self.config.decode.pull)

    def _contexts(self, obs: Observation, start: Start) -> list[Context]:
        """The encoded observation, and with guidance another in which the instruction is hidden."""
        everyone = torch.zeros(obs.batch, dtype=torch.bool, device=self.device)
        return [
            self._context(obs, rows, start) for rows in (everyone, ~everyone)[: 1 if self.config.decode.guidance == 1 else 2]
        ]

    def _context(self, obs: Observation, dropped: Bool[Tensor, "batch"], start: Start) -> Context:
        read, graphs = self.observe.read(obs, dropped), self._compiler(start)

        def encode(*read: Any) -> Context:
            return self.network.remember(self.observe.tokens(*read))

        return encode(*read) if graphs is None else graphs("encode", encode, *read, capture=True)

    def _bind(self, context: Context, asked: list[Tensor], start: Start, graphs: Graphs | None) -> Denoise:
        """The bound prediction. The noise level of every network evaluation that it makes is added to `asked`."""
        cache, prefix = self.cache(start), start.prefix if self._gives(start) else 0

        def network(x: Float[Tensor, "batch chunk action"], noise: Float[Tensor, ""], ctx: Context) -> Prediction:
            asked.append(noise)
            if cache is not None:
                cache.advance()
            if graphs is not None:
                return graphs("evaluation", self.network, x, self._told(noise, prefix), ctx)
            return self.network(x, self._level(noise, prefix), ctx, cache=cache)

        return lambda x, t: self.process.predict(network, x, t, context)

    @property
    def _no_noise(self) -> Float[Tensor, ""]:
        """What the network is told of given actions."""
        return self.process.label(CLEAN)

    def _level(self, noise: Float[Tensor, ""], prefix: int) -> Level | Films:
        """What depends on the noise level, the prefix and the weights alone, computed once per level of the grid."""
        key = float(noise), prefix
        if key not in self._levels:
            given = (torch.arange(self.config.chunk, device=self.device) < prefix)[None]
            # The tensors are kept, and may take part in a gradient later.
            with torch.inference_mode(False):
                if len(self._levels) >= LEVELS:
                    self._levels.clear()
                self._levels[key] = self.network.level(noise, Given(given, self._no_noise) if prefix else None)
        return self._levels[key]

    def _told(self, noise: Float[Tensor, ""], prefix: int) -> Leaves:
        """A level as a graph's input."""
        key = float(noise), prefix
        if key not in self._leaves:
            if len(self._leaves) >= LEVELS:
                self._leaves.clear()
            self._leaves[key] = Leaves(self._level(noise, prefix))
        return self._leaves[key]

    @property
    def compilable(self) -> bool:
        """Not where each token chooses its experts: what these compute depends on values."""
        network = self.network.config
        return network.kind != "transformer" or network.routing != "token" or network.experts == 1

    def forget(self) -> None:
        super().forget()
        for kept in (self._levels, self._leaves):
            kept.clear()
