"""What stands between a policy and a robot: every command is finite, within bounds, and close to the one before it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32

from ..config import UsageError
from ..spec import KinoiseError, Spec

Action = Float32[np.ndarray, "action"]


@dataclass
class GuardConfig:
    """Which guards are on. NaN and infinity never reach a robot."""

    bounds: bool = field(default=True, metadata={"help": "clip commands to the action's bounds"})
    jump: float | None = field(
        default=0.5, metadata={"help": "largest change in one step, as a part of the action's range; null for none"}
    )

    def __post_init__(self) -> None:
        if self.jump is not None and not self.jump > 0:
            raise UsageError(f"guards.jump={self.jump}: expected a positive part of the action's range, or null")


def hold(spec: Spec, last: Action | None) -> Action | None:
    """The command that keeps a robot where it is, with the gripper as it was last told.

    For `delta` and `relative` control no motion; for `absolute` control the last command, or None (send nothing) before there
    is one, since where the robot stands isn't known in the action's terms.
    """
    if spec.control == "absolute":
        return None if last is None else last.copy()
    still = np.zeros(spec.action_dim, np.float32)
    if last is not None:
        gripper = list(spec.gripper)
        still[gripper] = last[gripper]
    bounds = _bounds(spec)
    return still if bounds is None else np.clip(still, *bounds)


def _bounds(spec: Spec) -> tuple[Action, Action] | None:
    low, high = spec.action.low, spec.action.high
    return None if low is None or high is None else (np.array(low, np.float32), np.array(high, np.float32))


class Guards:
    """Turns what a policy asks for into what may be sent, and counts every time that the two differ.

    Args:
        spec: of the robot; its action's bounds are the limits.
        config: which guards are on.

    Raises:
        KinoiseError: a guard is on that needs bounds, and the action has none.
    """

    def __init__(self, spec: Spec, config: GuardConfig | None = None) -> None:
        config = config or GuardConfig()
        bounds = _bounds(spec)
        if bounds is None and (config.bounds or config.jump is not None):
            raise KinoiseError(
                "the robot's action has no bounds, and the guards need them: "
                "give its spec low and high, or set guards.bounds=false guards.jump=null"
            )
        self.spec = spec
        self.interventions = {"nan": 0, "bounds": 0, "jump": 0}
        self._bounds = bounds if config.bounds else None
        self._step = None
        if bounds is not None and config.jump is not None:
            self._step = np.float32(config.jump) * (bounds[1] - bounds[0])
            # A gripper opens or closes in one step: that is its business, not a fault.
            self._step[list(spec.gripper)] = np.inf

    def __call__(self, wanted: Action, last: Action | None) -> Action | None:
        """The command to send for `wanted`, after `last` (None before the first); None is to send nothing.

        An action with NaN or infinity in it is replaced as a whole by `hold`. The jump is measured from `last`, or from
        standing still before the first command.
        """
        if not np.isfinite(wanted).all():
            self.interventions["nan"] += 1
            return hold(self.spec, last)
        action = np.asarray(wanted, np.float32)
        if self._bounds is not None:
            action = self._limit("bounds", action, *self._bounds)
        start = hold(self.spec, None) if last is None else last
        if self._step is not None and start is not None:
            action = self._limit("jump", action, start - self._step, start + self._step)
        return action

    def _limit(self, guard: str, action: Action, low: Action, high: Action) -> Action:
        limited = np.clip(action, low, high)
        self.interventions[guard] += bool((limited != action).any())
        return limited
