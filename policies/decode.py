"""How a plan is decoded: what a checkpoint carries, and what a command may say about it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ..config import UsageError
from .core.sampler import SAMPLERS, TOKEN_SAMPLERS
from .core.sampler.reveal import BOUNDED, CONFIDENCES, NOISES

PREFIXES = ("auto", "given", "guided")
CACHES = ("none", "every", "fitted")


@dataclass
class CacheSchedule:
    """Which evaluations of a full plan compute which residual branch, as `kinoise fit-cache` found it.

    It belongs to the weights that it was fitted to, and to one sampler with so many evaluations.
    """

    method: str = field(default="", metadata={"help": "how it was found"})
    sampler: str = field(default="", metadata={"help": "the sampler that it is for"})
    evaluations: int = field(default=0, metadata={"help": "of the network, in a full plan"})
    weights: str = field(default="", metadata={"help": "sha256 of the network that it is for"})
    refresh: dict[str, list[int]] = field(default_factory=dict, metadata={"help": "by branch: evaluations that compute it"})


@dataclass
class DecodeConfig:
    """How a plan is decoded; a checkpoint carries its own, and every command can override it."""

    sampler: str = field(default="ddim", metadata={"help": f"one of {', '.join(SAMPLERS)}"})
    steps: int = field(default=5, metadata={"help": "grid intervals from noise to a plan"})
    guidance: float = field(default=1.0, metadata={"help": "classifier-free guidance scale; 1 is none"})
    warm: float = field(default=1.0, metadata={"help": "level from which a replan refines the plan before; 1 is noise"})
    warm_steps: int | None = field(default=None, metadata={"help": "its grid intervals; null: warm's share of steps"})
    renoise: bool = field(default=True, metadata={"help": "add that level's noise to the plan before"})
    gate: float | None = field(
        default=None, metadata={"help": "start from noise after all when the first belief is further from it, normalised RMS"}
    )

    prefix: str = field(
        default="auto", metadata={"help": "how a plan keeps what is carried out meanwhile: given, guided or auto"}
    )
    pull: float = field(default=5.0, metadata={"help": "guided: the most that the known actions count"})
    cache: str = field(
        default="none", metadata={"help": f"when residual branches are computed in a full plan, one of {', '.join(CACHES)}"}
    )
    cache_every: int = field(default=2, metadata={"help": "every: in each so-manieth evaluation"})
    cache_order: int = field(default=0, metadata={"help": "0 reuses their last outputs; n extrapolates the last n + 1"})
    schedule: CacheSchedule = field(default_factory=CacheSchedule, metadata={"hidden": True})

    def __post_init__(self) -> None:
        if self.prefix not in PREFIXES:
            raise UsageError(f"decode.prefix={self.prefix}: expected one of {', '.join(PREFIXES)}")
        if self.cache not in CACHES:
            raise UsageError(f"decode.cache={self.cache}: expected one of {', '.join(CACHES)}")
        if self.cache_every < 1 or self.cache_order < 0:
            raise UsageError(
                f"decode.cache_every={self.cache_every}, cache_order={self.cache_order}: expected at least 1, and at least 0"
            )
        if self.cache == "fitted" and not self.schedule.refresh:
            raise UsageError("decode.cache=fitted: this checkpoint has no schedule. Run kinoise fit-cache first")
        if not 0 < self.pull < math.inf:
            raise UsageError(f"decode.pull={self.pull}: expected more than 0")
        if self.sampler not in self.samplers():
            raise UsageError(f"decode.sampler={self.sampler}: the samplers are {', '.join(self.samplers())}")
        if self.steps < 1:
            raise UsageError(f"decode.steps={self.steps}: at least 1 is needed")
        if not 0 <= self.guidance < math.inf:
            raise UsageError(f"decode.guidance={self.guidance}: expected a number of at least 0; 1 is none")
        if not 0 < self.warm <= 1:
            raise UsageError(f"decode.warm={self.warm}: expected a level above 0, and at most 1, which starts from noise")
        if self.warm_steps is not None and self.warm_steps < 1:
            raise UsageError(f"decode.warm_steps={self.warm_steps}: at least 1 is needed, or null")
        if self.gate is not None and not self.gate >= 0:
            raise UsageError(f"decode.gate={self.gate}: expected at least 0, or null for no gate")

    @property
    def replan_steps(self) -> int:
        """Grid intervals of a warm start."""
        return self.warm_steps or max(1, round(self.warm * self.steps))

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
    warm: float | None = _change("level from which a replan refines the plan before; 1 is noise")
    warm_steps: int | None = _change("its grid intervals")
    renoise: bool | None = _change("add that level's noise to the plan before")
    gate: float | None = _change("start from noise after all when the first belief is further from the plan before")
    prefix: str | None = _change("how a plan keeps what is carried out meanwhile: given, guided or auto")
    pull: float | None = _change("guided: the most that the known actions count")
    cache: str | None = _change(f"when residual branches are computed in a full plan, one of {', '.join(CACHES)}")
    cache_every: int | None = _change("every: in each so-manieth evaluation")
    cache_order: int | None = _change("0 reuses their last outputs; n extrapolates the last n + 1")
    confidence: str | None = _change(f"tokens: what is committed first, one of {', '.join(CONFIDENCES)}")
    temperature: float | None = _change("tokens: Gumbel noise in the first round, falling to 0")
    noise: str | None = _change(f"tokens: what that noise is on, one of {', '.join(NOISES)}")
    threshold: float | None = _change("tokens: mask again those less probable than this; 0 never")
    residual: float | None = _change("tokens: mask again those whose probability fell by more; 1 never")
    adaptive: float | None = _change("tokens: end the rounds when every confidence is above this; 1 never")
    adaptive_by: str | None = _change(f"tokens: which confidence that is, one of {', '.join(BOUNDED)}")
    value: str | None = _change("tokens: what they stand for, centre or expectation")

    def given(self) -> dict[str, Any]:
        """Those that were set, as `load_policy` takes them."""
        return {key: value for key, value in vars(self).items() if value is not None}
