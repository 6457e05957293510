"""The policy types' settings: LeRobot's names for what its own policies have too, kinoise's for the rest."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from kinoise.config import UsageError
from kinoise.policies import POLICIES, PolicyConfig
from kinoise.policies.diffusion import DiffusionConfig
from kinoise.policies.discrete_vla import DiscreteVLAConfig
from kinoise.policies.imports.plugin_config import LEFT_OUT, PREFIX, THEIRS
from kinoise.policies.mode import ModeConfig
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, NormalizationMode
from lerobot.optim.optimizers import AdamWConfig
from lerobot.optim.schedulers import DiffuserSchedulerConfig
from lerobot.utils.constants import ACTION

from .settings import with_settings

OBSERVED = (FeatureType.STATE, FeatureType.ENV, FeatureType.VISUAL)


def _identity() -> dict[str, NormalizationMode]:
    return {kind.value: NormalizationMode.IDENTITY for kind in (*OBSERVED, FeatureType.ACTION)}


@dataclass
class KinoiseConfig(PreTrainedConfig):
    """What the three types share; each has all of its kinoise policy's settings beside these, under their own names.

    Args:
        n_obs_steps: observations that the policy sees, the last of them now (kinoise's `history`).
        chunk_size: actions in a plan, the first of them now (`chunk`).
        n_action_steps: actions that `select_action` carries out before the next plan (`execute`).
        observations: LeRobot's names of the observations to use; all of the data set's if None.
        resize_shape: height and width to which every image is brought; None leaves them.
        language: whether the task's text conditions the policy, where the data set has one for every episode.
        normalization_mapping: IDENTITY throughout: kinoise's codecs normalise, by statistics that are part of the policy.
        optimizer_*, scheduler_*: AdamW and a cosine with a linear warm-up, kinoise's own defaults.
        ema: keep averaged weights, which plan; decay after n updates: min(1 - (1 + n)^-ema_power, ema_max).
        data: what the policy learnt from, written by the first training: kinoise's spec, statistics and instructions, and
            LeRobot's name of each feature. With it a checkpoint is whole.

    Raises:
        UsageError: values out of range or that don't fit together; a normalisation by LeRobot.
    """

    n_obs_steps: int = 1
    chunk_size: int = 12
    n_action_steps: int = 6
    observations: list[str] | None = None
    resize_shape: tuple[int, int] | None = None
    language: bool = True
    normalization_mapping: dict[str, NormalizationMode] = field(default_factory=_identity)
    optimizer_lr: float = 1e-3
    optimizer_betas: tuple[float, float] = (0.9, 0.95)
    optimizer_eps: float = 1e-8
    optimizer_weight_decay: float = 0.05
    optimizer_grad_clip_norm: float = 1.0
    scheduler_name: str = "cosine"
    scheduler_warmup_steps: int = 300
    ema: bool = True
    ema_power: float = 0.75
    ema_max: float = 0.9999
    data: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.n_obs_steps, self.chunk_size) < 1 or not 1 <= self.n_action_steps <= self.chunk_size:
            raise UsageError(
                f"n_obs_steps={self.n_obs_steps}, chunk_size={self.chunk_size}, n_action_steps={self.n_action_steps}: expected "
                "at least 1, and no more n_action_steps than chunk_size"
            )
        self.settings()
        others = {key: mode.value for key, mode in self.normalization_mapping.items() if mode != NormalizationMode.IDENTITY}
        if others:
            raise UsageError(
                f"normalization_mapping={others}: kinoise's policies normalise themselves and need IDENTITY. "
                "Leave it out, and choose with encoder.state and actions instead"
            )
        if self.resize_shape is not None and min(self.resize_shape) < 1:
            raise UsageError(f"resize_shape={self.resize_shape}: expected height and width, at least 1")
        if self.ema_power <= 0 or not 0 <= self.ema_max < 1:
            raise UsageError(f"ema_power={self.ema_power}, ema_max={self.ema_max}: expected above 0, and from 0 to below 1")

    def settings(self) -> PolicyConfig:
        """As kinoise's own policy has them. Raises UsageError or KinoiseError for those that it refuses."""
        name = self.type.removeprefix(PREFIX)
        kind = POLICIES[name].config
        given = {item.name: THEIRS.get(item.name, item.name) for item in fields(kind) if item.name not in LEFT_OUT}
        return kind(name=name, **{ours: getattr(self, theirs) for ours, theirs in given.items()})

    @property
    def observation_delta_indices(self) -> list[int]:
        return list(range(1 - self.n_obs_steps, 1))

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(
            lr=self.optimizer_lr,
            betas=self.optimizer_betas,
            eps=self.optimizer_eps,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> DiffuserSchedulerConfig:
        return DiffuserSchedulerConfig(name=self.scheduler_name, num_warmup_steps=self.scheduler_warmup_steps)

    def validate_features(self) -> None:
        """Restricts `input_features` to `observations`.

        Raises UsageError for an observation that isn't there or of a kind that can't be used, for none, and for no `action`.
        """
        found = dict(self.input_features or {})
        absent = [name for name in self.observations or () if name not in found]
        if absent:
            raise UsageError(f"observations={self.observations}: {absent} are none of the data set's, which are {list(found)}")
        self.input_features = {name: item for name, item in found.items() if name in (self.observations or found)}
        odd = {name: item.type.value for name, item in self.input_features.items() if item.type not in OBSERVED}
        if odd or not self.input_features:
            raise UsageError(
                f"input_features hold {odd or 'nothing'}: expected states and images, at least one. "
                "Name those to use: --policy.observations='[\"observation.state\"]'"
            )
        if self.action_feature is None:
            raise UsageError(f"output_features={list(self.output_features or {})}: expected '{ACTION}'")


@PreTrainedConfig.register_subclass("kinoise_diffusion")
@dataclass
@with_settings(DiffusionConfig())
class KinoiseDiffusionConfig(KinoiseConfig):
    """kinoise's continuous diffusion policy (DDPM, DDIM, EDM, flow); see `kinoise.policies.diffusion.DiffusionConfig`."""


@PreTrainedConfig.register_subclass("kinoise_mode")
@dataclass
@with_settings(ModeConfig())
class KinoiseModeConfig(KinoiseConfig):
    """MoDE, mixture of denoising experts (Reuss et al. 2024); see `kinoise.policies.mode.ModeConfig`."""


@PreTrainedConfig.register_subclass("kinoise_discrete_vla")
@dataclass
@with_settings(DiscreteVLAConfig())
class KinoiseDiscreteVlaConfig(KinoiseConfig):
    """Masked action tokens beside vision and language (Liang et al. 2025); see `discrete_vla.DiscreteVLAConfig`."""
