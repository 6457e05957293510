"""What every policy is: trained from batches, asked for plans, restored from a checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..config import UsageError
from ..spec import Batch, KinoiseError, Observation, Plan, Spec, Stats
from .caching import make_cache
from .compiled import Graphs
from .core.budget import Budget
from .core.cache import FeatureCache, Recorder
from .core.process.base import Losses
from .core.random import Gen, move, uniform
from .decode import DecodeConfig
from .replan import Start, check_prefix, left_of, replaced

SIMULATED = 0.5
"""The share of training samples without a simulated delay, where it is simulated at all: a first plan has nothing to go on."""


Frame = tuple[Spec, Mapping[str, Stats]]
"""Another robot that a policy learnt from: what it observes and commands, and the policy's statistics in its numbers."""


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


class Policy(nn.Module, ABC):
    """A map from observations to plans, without episode state: nothing to reset, nothing that can leak.

    Args:
        spec: what the policy observes and commands, restricted to `config.observations`.
        stats: of each observation in `spec` and of `action`; the normalisation that goes with the weights.
        texts: the instructions of the training data.

    Attributes:
        frames: by name, the robots whose numbers were laid over each other in training; {} where all have the same.
        frame: the one whose numbers `spec` and `stats` are in; None: the first's, or everyone's.
        recorded: the environment that the demonstrations say they are of (robomimic's `env_args`); {} where they say nothing.

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
        self.frames: Mapping[str, Frame] = {}
        self.recorded: Mapping[str, Any] = {}
        self.frame: str | None = None
        self._recorder: Recorder | None = None
        self._graphs: Graphs | None = None
        self.bf16 = False

    @abstractmethod
    def loss(self, batch: Batch, gen: Gen) -> Losses:
        """The training loss of each window. All randomness comes from `gen`."""

    @abstractmethod
    def decode(self, obs: Observation, gen: Gen, start: Start) -> Plan:
        """A plan from where `start` says, which begins with its `pinned`; from a guess, with its `surprise`."""

    @property
    def evaluations(self) -> int:
        """Beliefs that a full plan asks for, at most; with guidance each takes two network evaluations."""
        return self.config.decode.steps

    @property
    def compilable(self) -> bool:
        """Whether there is anything to compile in the policy."""
        return True

    def compiled(self) -> Policy:
        """This policy, whose plans are compiled from now on (`Graphs`); one that is not `compilable` stays as it is.

        The first plan of its kind (number of rows, steps, cold or warm, with a prefix or a budget) takes seconds. Results are
        those of other plans but for rounding. Not compiled are plans with a cache, and those that a gradient goes through.
        """
        self._graphs = Graphs() if self.compilable else None
        return self

    def reduced(self) -> Policy:
        """This policy, whose plans multiply in bfloat16 from now on; for planning alone: weights are rounded for good.

        Matrices are stored in bfloat16, what is added up between them stays float32, as in mixed-precision training. It pays
        where the products take the time and the machine has bfloat16 (AVX512-BF16, AMX, GPUs).
        """
        for module in self.modules():
            for item in module.parameters(recurse=False):
                if item.ndim > 1 and item.dtype == torch.float32:
                    item.data = item.data.to(torch.bfloat16)
        self.forget()
        self.bf16 = True
        return self

    def _precision(self) -> AbstractContextManager[object]:
        """In which plans are made."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Its plans aren't compiled in this block: for those who watch its layers."""
        graphs, self._graphs = self._graphs, None
        try:
            yield
        finally:
            self._graphs = graphs

    def forget(self) -> None:
        """Drops what is kept from plan to plan and depends on the weights: they have changed, or moved."""
        if self._graphs is not None:
            self._graphs.clear()

    def train(self, mode: bool = True) -> Policy:
        self.forget()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Policy:
        self.forget()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.forget()
        super()._load_from_state_dict(*args, **kwargs)

    def _compiler(self, start: Start) -> Graphs | None:
        """What compiles a plan from there; None where nothing does."""
        plain = self._recorder is None and self.config.decode.cache == "none"
        return self._graphs if plain and not self.differentiates(start) else None

    def record(self) -> Recorder:
        """Gets every residual branch's output in the next plan; with guidance, of the evaluations that know the instruction."""
        self._recorder = Recorder()
        return self._recorder

    def cache(self, start: Start) -> FeatureCache | None:
        """A new cache for the evaluations that make one kind of belief in a plan from there."""
        if self._recorder is not None:
            found, self._recorder = self._recorder, None
            return found
        return make_cache(self.config.decode, self.evaluations, start)

    def simulated(self, valid: Bool[Tensor, "batch chunk"], gen: Gen) -> Bool[Tensor, "batch chunk"] | None:
        """Which first actions training gives away in each row: none in half of the rows, 1 to `simulated_delay` in the others.

        One valid step at least is left to ask for. None where the policy isn't trained so.
        """
        most = self.config.simulated_delay
        if most == 0:
            return None
        draw = uniform((len(valid),), gen)
        count = ((draw - SIMULATED) / (1 - SIMULATED)).clamp(min=0).mul(most).ceil()
        count = count.minimum(valid.sum(-1).cpu() - 1)
        return move(torch.arange(self.config.chunk) < count[:, None], self.device)

    def plan(
        self,
        obs: Observation,
        gen: Gen,
        *,
        previous: Plan | None = None,
        elapsed: int = 0,
        prefix: int = 0,
        budget: float | Budget | None = None,
    ) -> Plan:
        """One plan per row of `obs`, on the CPU in physical units.

        With a sequence of generators, row i draws from `gen[i]` alone, so what else is in the batch doesn't change its noise.

        Args:
            previous: the plans that are being carried out, a row each. With `decode.warm` below 1 decoding starts from them,
                unless nothing of them is left.
            elapsed: actions of `previous` that were carried out by the time of `obs`.
            prefix: how many of those that follow are carried out whatever this plan says; they come back as its first ones.
            budget: seconds that planning may take. What an evaluation costs is read from `previous`, or said by a `Budget`: so
                many steps are taken as there is time for, one at least. Where one costs more, the rest is left out.

        Raises:
            KinoiseError: a policy in training mode; a previous plan of another shape or with NaN; a prefix that it or the chunk
                can't hold; a budget that isn't positive.
        """
        if self.training:
            raise KinoiseError("a policy in training mode can't plan: call policy.eval() first")
        start = self._start(obs, previous, elapsed, prefix, budget)
        # Without inference mode, tensors can take part in a gradient.
        with torch.inference_mode(not self.differentiates(start)), torch.no_grad(), self._precision():
            plan, gate = self.decode(obs, gen, start), self.config.decode.gate
            if not start.warm or gate is None:
                return plan
            # From noise takes at least this long: the observation is encoded anew, and looked at once.
            least = plan.timing["encode"] + plan.timing["evaluation"]
            late = start.budget is not None and start.budget.left < least
            cold = [row for row, surprise in enumerate(plan.surprise) if surprise > gate and not late]
            if not cold:
                return replace(plan, cold=(False,) * obs.batch)
            own = [gen[row] for row in cold] if isinstance(gen, Sequence) else gen
            return replaced(plan, cold, self.decode(obs.rows(cold), own, start.cold(cold)))

    def differentiates(self, start: Start) -> bool:
        """Whether decoding from there takes gradients."""
        return False

    def _start(
        self, obs: Observation, previous: Plan | None, elapsed: int, prefix: int, budget: float | Budget | None
    ) -> Start:
        """Where a plan starts, all of it checked."""
        check_prefix(prefix, elapsed, previous, self.config.chunk)
        known, cost = None, None
        if previous is not None:
            found = tuple(previous.actions.shape)
            if len(found) != 3 or found[::2] != (obs.batch, self.spec.action_dim):
                raise KinoiseError(
                    f"the previous plan has the shape {found}: "
                    f"expected {obs.batch} rows, a chunk, {self.spec.action_dim} numbers"
                )
            known = left_of(previous, elapsed, self.config.chunk)
            cost = previous.timing.get("evaluation")
        warm = known is not None and self.config.decode.warm < 1
        return Start(known, warm, prefix, budget if isinstance(budget, Budget | None) else Budget(budget, cost))

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
