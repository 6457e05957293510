"""What every policy is: trained from batches, asked for plans, restored from a checkpoint."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..config import UsageError
from ..spec import Batch, KinoiseError, Observation, Plan, Spec, Stats
from .core.process.base import Losses
from .core.random import Gen
from .core.sampler import SAMPLERS, TOKEN_SAMPLERS
from .core.sampler.reveal import CONFIDENCES, NOISES


@dataclass
class DecodeConfig:
    """How a plan is decoded; a checkpoint carries its own, and every command can override it."""

    sampler: str = field(default="ddim", metadata={"help": f"one of {', '.join(SAMPLERS)}"})
    steps: int = field(default=5, metadata={"help": "grid intervals from noise to a plan"})
    guidance: float = field(default=1.0, metadata={"help": "classifier-free guidance scale; 1 is none"})

    def __post_init__(self) -> None:
        if self.sampler not in self.samplers():
            raise UsageError(f"decode.sampler={self.sampler}: the samplers are {', '.join(self.samplers())}")
        if self.steps < 1:
            raise UsageError(f"decode.steps={self.steps}: at least 1 is needed")
        if not 0 <= self.guidance < math.inf:
            raise UsageError(f"decode.guidance={self.guidance}: expected a number of at least 0; 1 is none")

    @classmethod
    def samplers(cls) -> tuple[str, ...]:
        """What `sampler` may name."""
        return tuple(SAMPLERS)


def _change(about: str) -> Any:
    return field(default=None, metadata={"help": about})


@dataclass
class DecodeChanges:
    """What a command may say about decoding; null keeps the checkpoint's own setting. "tokens": for masked ones only."""

    sampler: str | None = _change(f"one of {', '.join(SAMPLERS)}; tokens: {', '.join(TOKEN_SAMPLERS)}")
    steps: int | None = _change("grid intervals from noise to a plan; tokens: rounds")
    guidance: float | None = _change("classifier-free guidance scale; 1 is none")
    confidence: str | None = _change(f"tokens: what is committed first, one of {', '.join(CONFIDENCES)}")
    temperature: float | None = _change("tokens: Gumbel noise in the first round, falling to 0")
    noise: str | None = _change(f"tokens: what that noise is on, one of {', '.join(NOISES)}")
    threshold: float | None = _change("tokens: mask again those less probable than this; 0 never")
    residual: float | None = _change("tokens: mask again those whose probability fell by more; 1 never")
    adaptive: float | None = _change("tokens: end the rounds when every confidence is above this; 1 never")
    value: str | None = _change("tokens: what they stand for, centre or expectation")

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
    def plan(self, obs: Observation, gen: Gen, *, previous: Plan | None = None, elapsed: int = 0, prefix: int = 0) -> Plan:
        """One plan per row of `obs`, on the CPU in physical units.

        With a sequence of generators, row i draws from `gen[i]` alone, so what else is in the batch doesn't change its noise.

        Args:
            previous: the plans that are being carried out, a row each.
            elapsed: actions of `previous` that were carried out by the time of `obs`.
            prefix: how many of those that follow are carried out whatever this plan says; they come back as its first ones.
        """

    def committed(
        self, obs: Observation, previous: Plan | None, elapsed: int, prefix: int
    ) -> Float[Tensor, "batch prefix action"] | None:
        """The actions that `plan` is told to keep, checked; None for none.

        Raises KinoiseError when there are not so many, in the previous plan or in a chunk, or not one plan per row.
        """
        if prefix < 0 or elapsed < 0:
            raise KinoiseError(f"prefix={prefix}, elapsed={elapsed}: expected at least 0")
        if prefix == 0:
            return None
        if prefix > self.config.chunk:
            raise KinoiseError(f"prefix={prefix} is longer than the policy's chunk of {self.config.chunk} actions")
        if previous is None:
            raise KinoiseError(f"prefix={prefix} pins actions of the previous plan: give previous=")
        rows, length, dims = previous.actions.shape
        if (rows, dims) != (obs.batch, self.spec.action_dim):
            raise KinoiseError(
                f"the previous plan holds {rows} rows of {dims} numbers; expected {obs.batch} of {self.spec.action_dim}"
            )
        if elapsed + prefix > length:
            raise KinoiseError(
                f"prefix={prefix} after elapsed={elapsed} needs {elapsed + prefix} actions; the previous plan has {length}"
            )
        return previous.actions[:, elapsed : elapsed + prefix]

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
