"""What every policy is: trained from batches, asked for plans, restored from a checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..config import UsageError
from ..spec import Batch, KinoiseError, Observation, Plan, Spec, Stats
from .core.process.base import Losses
from .core.random import Gen, move, uniform
from .core.start import shift
from .decode import DecodeConfig

SIMULATED = 0.5
"""The share of training samples without a simulated delay, where it is simulated at all: a first plan has nothing to go on."""


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
    goal_dropout: float = field(default=0.1, metadata={"help": "share of samples trained without their instruction"})
    simulated_delay: int = field(
        default=0, metadata={"help": "training: give up to this many first actions, like those carried out during planning"}
    )

    def __post_init__(self) -> None:
        if self.history < 1 or self.chunk < 1:
            raise UsageError(f"history={self.history}, chunk={self.chunk}: both have to be at least 1")
        check_execute(self.execute, self.chunk)
        if not 0 <= self.simulated_delay < self.chunk:
            raise UsageError(
                f"simulated_delay={self.simulated_delay}: expected at least 0 and below the chunk's {self.chunk} actions"
            )
        if not 0 <= self.goal_dropout < 1:
            raise KinoiseError(f"goal_dropout={self.goal_dropout}: expected at least 0 and below 1")
        if self.decode.guidance != 1.0 and self.goal_dropout == 0:
            raise KinoiseError("decode.guidance needs a policy that was trained with goal_dropout above 0")


def check_execute(execute: int, chunk: int) -> None:
    if not 1 <= execute <= chunk:
        raise UsageError(f"execute={execute}: expected between 1 and the plan's {chunk} actions")


class Guess(NamedTuple):
    """The plan before, as it looks from now on, in physical units.

    Args:
        actions: shifted by what was carried out; the last is repeated.
        elapsed: how many were, hence how many at the end are repetitions.
        confidence: that the plan before had in them, where it knew.
    """

    actions: Float[Tensor, "batch chunk action"]
    elapsed: int
    confidence: Float[Tensor, "batch chunk action"] | None


def replaced(plan: Plan, rows: list[int], other: Plan) -> Plan:
    """`plan`, with the plans of `other` in these rows, and what both cost."""
    actions, confidence = plan.actions.clone(), None if plan.confidence is None else plan.confidence.clone()
    actions[rows] = other.actions
    if confidence is not None and other.confidence is not None:
        confidence[rows] = other.confidence
    each = list(plan.nfe_rows or (plan.nfe,) * len(actions))
    for row, more in zip(rows, other.nfe_rows or (other.nfe,) * len(rows), strict=True):
        each[row] += more
    return replace(
        plan,
        actions=actions,
        confidence=confidence,
        nfe=plan.nfe + other.nfe,
        nfe_rows=tuple(each),
        cold=tuple(row in rows for row in range(len(actions))),
        timing={key: seconds + other.timing.get(key, 0.0) for key, seconds in plan.timing.items()},
    )


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

    pins: ClassVar[bool] = False
    """Whether `plan` can keep a prefix of the previous plan."""

    @abstractmethod
    def loss(self, batch: Batch, gen: Gen) -> Losses:
        """The training loss of each window. All randomness comes from `gen`."""

    @abstractmethod
    def decode(
        self, obs: Observation, gen: Gen, pinned: Float[Tensor, "batch prefix action"] | None, guess: Guess | None
    ) -> Plan:
        """A plan that begins with `pinned`, from noise or from `guess`; in the latter case with its `surprise`."""

    def simulated(self, rows: int, gen: Gen) -> Bool[Tensor, "batch chunk"] | None:
        """Which first actions training gives away in each row: none in half of the rows, 1 to `simulated_delay` in the others.

        None where the policy isn't trained so.
        """
        most = self.config.simulated_delay
        if most == 0:
            return None
        draw = uniform((rows,), gen)
        count = ((draw - SIMULATED) / (1 - SIMULATED)).clamp(min=0).mul(most).ceil()
        return move(torch.arange(self.config.chunk) < count[:, None], self.device)

    @torch.inference_mode()
    def plan(self, obs: Observation, gen: Gen, *, previous: Plan | None = None, elapsed: int = 0, prefix: int = 0) -> Plan:
        """One plan per row of `obs`, on the CPU in physical units.

        With a sequence of generators, row i draws from `gen[i]` alone, so what else is in the batch doesn't change its noise.

        Args:
            previous: the plans that are being carried out, a row each. With `decode.warm` below 1 decoding starts from them,
                unless nothing of them is left.
            elapsed: actions of `previous` that were carried out by the time of `obs`.
            prefix: how many of those that follow are carried out whatever this plan says; they come back as its first ones.

        Raises:
            KinoiseError: a policy in training mode; a previous plan of another shape; a prefix that it, the chunk or this kind
                of policy can't hold.
        """
        if self.training:
            raise KinoiseError("a policy in training mode can't plan: call policy.eval() first")
        decode = self.config.decode
        if previous is not None:
            self._check_previous(obs, previous)
        pinned, guess = self.committed(previous, elapsed, prefix), None
        if previous is not None and decode.warm < 1 and elapsed < self.config.chunk:
            if previous.actions.shape[1] != self.config.chunk:
                raise KinoiseError(
                    f"a warm start needs a previous plan of {self.config.chunk} actions, came {previous.actions.shape[1]}"
                )
            confidence = None if previous.confidence is None else shift(previous.confidence, elapsed)
            guess = Guess(shift(previous.actions, elapsed), elapsed, confidence)
        plan = self.decode(obs, gen, pinned, guess)
        if guess is None or decode.gate is None:
            return plan
        cold = [row for row, surprise in enumerate(plan.surprise) if surprise > decode.gate]
        if not cold:
            return replace(plan, cold=(False,) * obs.batch)
        own = gen if isinstance(gen, torch.Generator) else [gen[row] for row in cold]
        return replaced(plan, cold, self.decode(obs.rows(cold), own, None if pinned is None else pinned[cold], None))

    def committed(self, previous: Plan | None, elapsed: int, prefix: int) -> Float[Tensor, "batch prefix action"] | None:
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
        length = previous.actions.shape[1]
        if elapsed + prefix > length:
            raise KinoiseError(
                f"prefix={prefix} after elapsed={elapsed} needs {elapsed + prefix} actions; the previous plan has {length}"
            )
        return previous.actions[:, elapsed : elapsed + prefix]

    def _check_previous(self, obs: Observation, previous: Plan) -> None:
        found = tuple(previous.actions.shape)
        if len(found) != 3 or found[::2] != (obs.batch, self.spec.action_dim):
            raise KinoiseError(
                f"the previous plan has the shape {found}: expected {obs.batch} rows, a chunk, {self.spec.action_dim} numbers"
            )
        if previous.confidence is not None and previous.confidence.shape != previous.actions.shape:
            raise KinoiseError(
                f"the previous plan's confidence has the shape {tuple(previous.confidence.shape)}: expected {found}"
            )
        if not previous.actions.isfinite().all():
            raise KinoiseError("the previous plan holds NaN or infinity: plan without it")

    def remarks(self, actions: Float[Tensor, "steps action"]) -> list[str]:
        """What a user should know before this policy is trained on these actions, a line each."""
        return []

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


def check_pin(policy: Policy, pin: bool) -> None:
    if pin and not policy.pins:
        raise UsageError(
            f"pin=true: the policy '{policy.config.name}' can't keep a prefix of the previous plan; discrete_vla can"
        )
