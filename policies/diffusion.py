"""The continuous diffusion policy: a chunk of actions, denoised under the encoded observation.

One class serves DDPM, DDIM, EDM and flow policies: the process, its parametrisation and the sampler are settings
(Diffusion Policy, Chi et al. 2023; flow matching, Lipman et al. 2023; EDM, Karras et al. 2022).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..spec import Batch, KinoiseError, Observation, Plan, Spec, Stats
from .base import Guess, Policy, PolicyConfig
from .core.codec import CODECS, Affine
from .core.guidance import guided
from .core.network import Denoiser, Level, NetworkConfig
from .core.process import ProcessConfig, make_process
from .core.process.base import Denoise, Losses, Prediction
from .core.random import Gen, uniform
from .core.sampler import SAMPLERS
from .core.start import distance, remembering, warm_noise
from .encoders import EncoderConfig, ObservationEncoder


@dataclass
class DiffusionConfig(PolicyConfig):
    """A transformer with adaptive norm, on the flow process."""

    name: str = "diffusion"
    process: ProcessConfig = field(default_factory=lambda: ProcessConfig(kind="flow", parametrisation="u"))
    network: NetworkConfig = field(default_factory=lambda: NetworkConfig(depth=3, ff=2.0, adaptive_norm=True))
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    actions: str = field(default="minmax", metadata={"help": "scaling of actions: minmax, quantile or meanstd"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.actions not in CODECS:
            raise KinoiseError(f"actions={self.actions}: expected one of {', '.join(CODECS)}")


class DiffusionPolicy(Policy):
    """Denoises action chunks; see `Policy` for the arguments."""

    config: DiffusionConfig

    def __init__(self, config: DiffusionConfig, spec: Spec, stats: Mapping[str, Stats], texts: tuple[str, ...]) -> None:
        super().__init__(config, spec, stats, texts)
        self.observe = ObservationEncoder(config.encoder, self.spec, self.stats, texts, config.history, config.network.width)
        self.codec = Affine.fit(self.stats["action"], config.actions)
        self.network = Denoiser(config.network, spec.action_dim, config.chunk)
        self.process = make_process(config.process)
        self._levels: dict[float, Level] = {}

    def loss(self, batch: Batch, gen: Gen) -> Losses:
        """The process's loss on normalised actions, over valid steps; MoDE's router adds its balance."""
        rows = batch.observation.batch
        dropped = uniform((rows,), gen, self.device) < self.config.goal_dropout
        context = self.observe(batch.observation, dropped)
        clean = self.codec.encode(batch.actions.to(self.device))
        network = partial(self.network, gen=gen)
        return self.process.loss(network, clean, context, batch.valid.to(self.device), gen)

    def decode(
        self, obs: Observation, gen: Gen, pinned: Float[Tensor, "batch prefix action"] | None, guess: Guess | None
    ) -> Plan:
        """`decode.steps` intervals of `decode.sampler` from noise, or `decode.warm_steps` from the guess's level."""
        if pinned is not None:
            raise KinoiseError(f"prefix={pinned.shape[1]}: the policy '{self.config.name}' can't pin actions; discrete_vla can")
        decode = self.config.decode
        started = time.perf_counter()
        asked: list[Tensor] = []
        denoise = self._denoise(obs, asked)
        encoded = time.perf_counter()
        shape = (obs.batch, self.config.chunk, self.spec.action_dim)
        sampler, first, clean = SAMPLERS[decode.sampler], [], None
        if guess is None:
            x, grid = self.process.prior(shape, gen, self.device), self.process.grid(decode.steps)
        else:
            clean = self.codec.encode(guess.actions.to(self.device))
            x = warm_noise(self.process, clean, decode.warm, gen, decode.renoise)
            grid, denoise = self.process.grid(decode.replan_steps, decode.warm), remembering(denoise, first)
        actions = self.codec.decode(sampler(self.process, denoise, x, grid, gen)).float().cpu()
        surprise = () if clean is None or guess is None else distance(first[0], clean, guess.elapsed)
        return Plan(
            actions=actions,
            dt=1.0 / self.spec.rate,
            nfe=len(asked),
            surprise=surprise,
            timing={"encode": encoded - started, "denoise": time.perf_counter() - encoded},
        )

    def _denoise(self, obs: Observation, asked: list[Tensor]) -> Denoise:
        """The bound prediction. The noise level of every network evaluation that it makes is added to `asked`."""
        everyone = torch.zeros(obs.batch, dtype=torch.bool, device=self.device)
        given = self._bind(obs, everyone, asked)
        if self.config.decode.guidance == 1.0:
            return given
        return guided(given, self._bind(obs, ~everyone, asked), self.config.decode.guidance)

    def _bind(self, obs: Observation, dropped: Bool[Tensor, "batch"], asked: list[Tensor]) -> Denoise:
        context = self.observe(obs, dropped)

        def network(
            x: Float[Tensor, "batch chunk action"], noise: Float[Tensor, ""], ctx: Float[Tensor, "b n d"]
        ) -> Prediction:
            asked.append(noise)
            return self.network(x, self._level(noise), ctx)

        return lambda x, t: self.process.predict(network, x, t, context)

    def _level(self, noise: Float[Tensor, ""]) -> Level:
        """What depends on the noise level and the weights alone, computed once per level of the grid."""
        key = float(noise)
        if key not in self._levels:
            self._levels[key] = self.network.level(noise)
        return self._levels[key]

    def train(self, mode: bool = True) -> DiffusionPolicy:
        self._levels.clear()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> DiffusionPolicy:
        self._levels.clear()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._levels.clear()
        super()._load_from_state_dict(*args, **kwargs)
