"""A kinoise run in robomimic's own rollouts. robomimic is no dependency: it is imported where it is asked for."""

from .actor import RolloutAdapter, rollout_policy

__all__ = ["RolloutAdapter", "rollout_policy"]
