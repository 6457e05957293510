"""How smoothly a robot is told to move, as shares of its action's range. A gripper, which jumps by nature, is left out.

Every step has one number, the largest over the dimensions, for policies and demonstrations alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ..data.base import ACTION, EpisodeStore, starts
from ..deploy.latency import percentiles
from ..spec import Spec
from .timeline import Carried


def motion(spec: Spec, episodes: Sequence[Carried]) -> dict[str, Any]:
    """What the policy's actions were like.

    `joins`: percentiles of the change from the action before to the first that is a new plan's own; `acceleration`: of the
    actions' second difference, and its root mean square, per step squared; `steps`, and how many of them were `held`.
    """
    played = [item for item in episodes if len(item.actions)]
    scaled = [_scaled(spec, item.actions) for item in played]
    jumps = np.concatenate(
        [_changes(row)[np.array(item.joins, int) - 1] for item, row in zip(played, scaled, strict=True)] or [[]]
    )
    bends = np.concatenate([_changes(np.diff(row, axis=0)) for row in scaled]) if scaled else np.zeros(0)
    return {
        "joins": percentiles(jumps.tolist()),
        "acceleration": {"rms": float(np.sqrt(np.mean(bends**2))) if len(bends) else None, **percentiles(bends.tolist())},
        "steps": sum(len(row) for row in scaled),
        "held": sum(item.held for item in episodes),
    }


def demonstrated(spec: Spec, store: EpisodeStore) -> dict[str, Any]:
    """Percentiles of the demonstrations' own change from one action to the next, within episodes, measured as `joins` are."""
    changes = [
        _changes(_scaled(spec, store.read(ACTION, int(start), int(end))))
        for start, end in zip(starts(store.ends), store.ends, strict=True)
    ]
    every = np.concatenate(changes)
    return {
        "data": str(store.path),
        "episodes": len(changes),
        "steps": int(store.ends[-1]),
        "change": percentiles(every.tolist()),
    }


def _scaled(spec: Spec, actions: Float[np.ndarray, "steps action"]) -> Float[np.ndarray, "steps moving"]:
    """The dimensions that move the robot, as shares of their range, or as they are where there is none."""
    moving = [item for item in range(spec.action_dim) if item not in spec.gripper]
    low, high = spec.action.low, spec.action.high
    span = np.ones(spec.action_dim) if low is None or high is None else np.subtract(high, low)
    return (actions / np.where(span > 0, span, 1))[:, moving]


def _changes(values: Float[np.ndarray, "steps moving"]) -> Float[np.ndarray, "changes"]:
    """From each step to the next, the largest of the dimensions' changes; 0 where nothing but a gripper moves."""
    return np.abs(np.diff(values, axis=0)).max(1, initial=0.0)
