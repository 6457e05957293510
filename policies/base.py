"""What every policy is: trained from batches, asked for plans, restored from a checkpoint."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..config import UsageError
from ..spec import Batch, KinoiseError, Observation, Plan, Spec, Stats
from .core.process.base import Losses
from .core.random import Gen
from .core.sampler import SAMPLERS


@dataclass
class DecodeConfig:
    """How a plan is decoded; a checkpoint carries its own, and every command can override it."""

    sampler: str = field(default="ddim", metadata={"help": f"one of {', '.join(SAMPLERS)}"})
    steps: int = field(default=5, metadata={"help": "grid intervals from noise to a plan"})
    guidance: float = field(default=1.0, metadata={"help": "classifier-free guidance scale; 1 is none"})

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise UsageError(f"decode.sampler={self.sampler}: the samplers are {', '.join(SAMPLERS)}")
        if self.steps < 1:
            raise UsageError(f"decode.steps={self.steps}: at least 1 is needed")
        if not 0 <= self.guidance < math.inf:
            raise UsageError(f"decode.guidance={self.guidance}: expected a number of at least 0; 1 is none")


@dataclass
class DecodeChanges:
    """What a command may say about decoding; null keeps the checkpoint's own setting."""

    sampler: str | None = field(default=None, metadata={"help": f"one of {', '.join(SAMPLERS)}; null: as the checkpoint says"})
    steps: int | None = field(default=None, metadata={"help": "grid intervals from noise to a plan"})
    guidance: float | None = field(default=None, metadata={"help": "classifier-free guidance scale; 1 is none"})

    def given(self) -> dict[str, Any]:
        """Those that were set, as `load_policy` takes them."""
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass
class PolicyConfig:
    """What all policies' settings share."""

    name: str = ""
    observations: list[str] | None = field(
        default=None, metadata={"help": "observation keys to use; all of the data's if null"}
    )
    history: int = field(default=1, metadata={"help": "observation steps that the policy sees"})
    chunk: int = field(default=12, metadata={"help": "actions in a plan"})
    execute: int = field(default=6, metadata={"help": "actions carried out before the next plan"})
    decode: DecodeConfig = field(default_factory=DecodeConfig)

    def __post_init__(self) -> None:
        if self.history < 1 or self.chunk < 1:
            raise UsageError(f"history={self.history}, chunk={self.chunk}: both have to be at least 1")
        check_execute(self.execute, self.chunk)


def check_execute(execute: int, chunk: int) -> None:
    if not 1 <= execute <= chunk:
        raise UsageError(f"execute={execute}: expected between 1 and the plan's {chunk} actions")


class Policy(nn.Module, ABC):
    """A map from observations to plans, without episode state: nothing to reset, nothing that can leak.

    Args:
        spec: what the policy observes and commands, restricted to `config.observations`.
        stats: of each observation in `spec` and of `action`; the normalisation that goes with the weights.
        texts: the instructions of the training data.

    Raises:
        KinoiseError: an observation that the data lack, or statistics that are missing.
    """

    def __init__(self, config: PolicyConfig, spec: Spec, stats: Mapping[str, Stats], texts: tuple[str, ...]) -> None:
        super().__init__()
        wanted = list(spec.observations) if config.observations is None else config.observations
        unknown = [key for key in wanted if key not in spec.observations]
        if unknown or not wanted:
            raise KinoiseError(f"policy.observations={wanted}: the data hold {list(spec.observations)}")
        self.config, self.spec, self.texts = config, spec.select(wanted), texts
        absent = [key for key in [*wanted, "action"] if key not in stats]
        if absent:
            raise KinoiseError(f"statistics of {absent} are missing: compute them from the data, or take a whole checkpoint")
        self.stats = {key: stats[key] for key in [*wanted, "action"]}

    @abstractmethod
    def loss(self, batch: Batch, gen: Gen) -> Losses:
        """The training loss of each window. All randomness comes from `gen`."""

    @abstractmethod
    def plan(self, obs: Observation, gen: Gen) -> Plan:
        """One plan per row of `obs`, on the CPU in physical units.

        With a sequence of generators, row i draws from `gen[i]` alone, so what else is in the batch doesn't change its noise.
        """

    def expert_use(self) -> dict[str, Any] | None:
        """Which experts serve which noise level, for a report; None where no noise level chooses any.

        `noise` holds levels from noise to clean, by their `measure` (`sigma` or `t`); `use` the probabilities, by level, layer
        and expert; `chosen` how many experts serve a level; `visited` the levels that a plan goes through.
        """
        return None

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def parameter_count(self) -> int:
        """Trained parameters; frozen encoders are not part of a policy."""
        return sum(item.numel() for item in self.parameters() if item.requires_grad)
