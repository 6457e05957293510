"""Metaworld's own scripted policies (`metaworld.policies.ENV_POLICY_MAP`), one for each of its tasks."""

from __future__ import annotations

import warnings

import numpy as np
from jaxtyping import Float32

from ..base import Values


class ScriptedExpert:
    """The scripted policy of `task` (such as "push"): proportional control through a few waypoints, from the state alone."""

    def __init__(self, task: str) -> None:
        from metaworld.policies import ENV_POLICY_MAP

        self._policy = ENV_POLICY_MAP[f"{task}-v3"]()
        # Said of nearly every action; we clip them, which is what it asks for.
        warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high")

    def act(self, observation: Values) -> Float32[np.ndarray, "action"]:
        """The action for `observation["state"]`, clipped to [-1, 1]."""
        action = self._policy.get_action(observation["state"].astype(np.float64))
        return np.clip(action, -1, 1).astype(np.float32)
