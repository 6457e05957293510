"""A policy of kinoise where robomimic expects its own: in `run_rollout`, `rollout_with_stats` and run_trained_agent."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...config import UsageError, check_seed
from ...deploy.guards import Action
from ...deploy.inference import PolicyPlanner
from ...deploy.robot import Reading
from ...policies.base import Policy, check_execute
from ...policies.checkpoint import load_policy
from ...policies.core.random import derived
from ...spec import KinoiseError
from ..timeline import Timeline
from .observe import modalities, values

TRIED = "0.2.0 and 0.3.0"
"""Versions of robomimic that this was run with."""


class RolloutAdapter:
    """Sees, plans and acts as in `kinoise eval`, one step at a call, with robomimic's `RolloutPolicy` for its shape.

    It keeps the observation history itself, so an environment needs no frame stack; of one, the newest frame counts. Every
    `execute` steps it plans anew, with the policy's own warm start, and carries that out. Actions are clipped to their bounds,
    as kinoise's environments do.

    Args:
        policy: in eval mode.
        execute: steps from plan to plan; None: the policy's own.
        ensemble: as for `Timeline`.
        seed: the noise of the plans of the n-th episode, n counting from 0, is a function of `seed` and n.
        instruction: what the robot is to do; for policies that know language.

    Raises:
        UsageError: an execute, ensemble or seed that can't be.
        KinoiseError: an instruction is missing.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        execute: int | None = None,
        ensemble: float | None = None,
        seed: int = 0,
        instruction: str | None = None,
    ) -> None:
        self._execute = policy.config.execute if execute is None else execute
        check_execute(self._execute, policy.config.chunk)
        check_seed(seed)
        if ensemble is not None and not 0 <= ensemble < math.inf:
            raise UsageError(f"ensemble={ensemble}: expected at least 0")
        if policy.spec.language and not instruction:
            known = "; ".join(f"'{text}'" for text in policy.texts[:5])
            raise KinoiseError(f"the policy acts on an instruction: give instruction=, such as {known or 'open the drawer'}")
        self.policy = policy
        self.obs_normalization_stats = None  # the policy normalises by its own statistics
        self._ensemble, self._seed, self._instruction = ensemble, seed, instruction or ""
        self._planner = PolicyPlanner(policy, seed)
        self._timeline: Timeline | None = None
        self._episodes = 0

    def start_episode(self, lang: str | None = None) -> None:
        """Forgets the episode before. `lang`, which later versions of robomimic give, replaces the instruction."""
        self._instruction = lang or self._instruction
        self._timeline = Timeline(self._execute, None, self._seed, self._ensemble)
        self._noise = derived(self._seed, self._episodes)
        self._seen: deque[Reading] = deque(maxlen=self.policy.config.history)
        self._ahead: deque[Action] = deque()
        self._episodes += 1

    def __call__(self, ob: Mapping[str, Any], goal: Mapping[str, Any] | None = None) -> Action:
        """The action for what the environment shows now; see `values` for `ob`.

        Raises:
            KinoiseError: observations that don't fit the policy, a goal, an action that isn't finite, or `start_episode` wasn't
                called.
        """
        if self._timeline is None:
            raise KinoiseError("the episode has not begun: call start_episode() first, as robomimic's rollouts do")
        if goal is not None:
            raise KinoiseError("kinoise's policies take no goal observations: roll out with use_goals=False")
        reading = Reading(values(ob, self.policy.spec), self._instruction)
        self._seen.extend([reading] * (1 if self._seen else self.policy.config.history))
        if not self._ahead:
            self._ahead.extend(self._plan(self._timeline))
        return self._bounded(self._ahead.popleft())

    def __repr__(self) -> str:
        config, spec = self.policy.config, self.policy.spec
        return (
            f"kinoise {config.name}: {', '.join(spec.observations)} -> {spec.action_dim} numbers; history {config.history}, "
            f"{self._execute} of {config.chunk} actions carried out"
        )

    def _plan(self, timeline: Timeline) -> np.ndarray:
        """What is carried out until the next plan."""
        known: dict[str, Any] = {}
        if self.policy.config.decode.warm < 1 and (previous := timeline.previous) is not None:
            known = {"previous": previous[0], "elapsed": previous[1]}
        with torch.no_grad():
            plan = self.policy.plan(self._planner.observation(tuple(self._seen)), [self._noise], **known)
        return timeline.take(plan.row(0))

    def _bounded(self, action: Action) -> Action:
        if not np.isfinite(action).all():
            raise KinoiseError(f"action {action.tolist()} is not finite: take another checkpoint")
        feature = self.policy.spec.action
        return np.clip(action, feature.low, feature.high).astype(np.float32)


def rollout_policy(
    run: Path | str | Policy,
    *,
    execute: int | None = None,
    ensemble: float | None = None,
    seed: int = 0,
    instruction: str | None = None,
    **loading: Any,
) -> RolloutAdapter:
    """A kinoise run as an instance of robomimic's `RolloutPolicy`, which its rollout functions ask for.

    robomimic is told which observations are images (`initialize_obs_utils_with_obs_specs`), as it is when it loads a checkpoint
    of its own, so make the environment after the policy: it neither shows nor turns other images.

    Args:
        run: a run, a checkpoint, or a policy.
        execute, ensemble, seed, instruction: as for `RolloutAdapter`.
        loading: further arguments of `load_policy`.

    Raises:
        UsageError, KinoiseError: robomimic can't be imported; what `load_policy` and `RolloutAdapter` raise.
    """
    try:
        import robomimic.utils.obs_utils as obs_utils  # pyright: ignore[reportMissingImports]
        from robomimic.algo import RolloutPolicy  # pyright: ignore[reportMissingImports]
    except Exception as error:
        raise KinoiseError(
            f"robomimic can't be imported ({type(error).__name__}: {error}). Install it beside kinoise; tried were {TRIED}."
        ) from error
    policy = run if isinstance(run, Policy) else load_policy(run, **loading)
    adapter = type("KinoiseRolloutPolicy", (RolloutAdapter, RolloutPolicy), {})
    made = adapter(policy, execute=execute, ensemble=ensemble, seed=seed, instruction=instruction)
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": modalities(policy.spec)})
    return made
