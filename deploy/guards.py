"""What stands between a policy and a robot: every command is finite, within bounds, and close to the one before it; nothing
is planned on what the sensors saw long ago, and no plan is waited for forever."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32

from ..config import UsageError
from ..spec import KinoiseError, Spec

Action = Float32[np.ndarray, "action"]

GUARDS: tuple[str, ...] = ("nan", "bounds", "velocity", "jump", "stale", "heartbeat")


@dataclass
class GuardConfig:
    """Which guards are on. There is no switch for NaN and infinity: they never reach a robot."""

    bounds: bool = field(default=True, metadata={"help": "clip commands to the action's bounds"})
    velocity: float | None = field(
        default=2.0, metadata={"help": "fastest motion of absolute control, as a part of the range per second; null for any"}
    )
    jump: float | None = field(
        default=0.5, metadata={"help": "largest change from the last command, as a part of the action's range; null for any"}
    )
    stale: float | None = field(
        default=0.5,
        metadata={"help": "seconds after which an observation is too old to plan on, and twice that to act on; null: never"},
    )
    heartbeat: float | None = field(
        default=1.0, metadata={"help": "seconds after which a silent inference is begun again, if it can be; null: never"}
    )

    def __post_init__(self) -> None:
        for name in ("velocity", "jump", "stale", "heartbeat"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"guards.{name}={value}: expected a number above 0, or null for no such guard")


def bounds_of(spec: Spec) -> tuple[Action, Action] | None:
    """The lowest and the highest action; None where there are no bounds."""
    low, high = spec.action.low, spec.action.high
    return None if low is None or high is None else (np.array(low, np.float32), np.array(high, np.float32))


def still(spec: Spec, last: Action | None) -> Action | None:
    """The command that keeps a robot where it is, with the gripper as it was last told.

    For `delta` and `relative` control no motion; for `absolute` control the last command, or None (send nothing) before there
    is one, since where the robot stands isn't known in the action's terms.
    """
    if spec.control == "absolute":
        return None if last is None else last.copy()
    command = np.zeros(spec.action_dim, np.float32)
    if last is not None:
        gripper = list(spec.gripper)
        command[gripper] = last[gripper]
    bounds = bounds_of(spec)
    return command if bounds is None else np.clip(command, *bounds)


class Guards:
    """Turns what a policy asks for into what may be sent, and counts every time that the two differ.

    `interventions` counts for `nan` plans that were refused and commands that were replaced; for `bounds`, `velocity` and
    `jump` commands that were changed; for `stale` ticks with an observation that was too old; for `heartbeat` questions
    that stayed open for too long.

    Args:
        spec: of the robot; its action's bounds are the limits.
        config: which guards are on.

    Raises:
        KinoiseError: a guard is on that needs bounds, and the action has none.
    """

    def __init__(self, spec: Spec, config: GuardConfig | None = None) -> None:
        self.config = config or GuardConfig()
        bounds = bounds_of(spec)
        speed = self.config.velocity if spec.control == "absolute" else None
        if bounds is None and (self.config.bounds or self.config.jump is not None or speed is not None):
            raise KinoiseError(
                "the robot's action has no bounds, and the guards need them: "
                "give its spec low and high, or set guards.bounds=false guards.jump=null guards.velocity=null"
            )
        self.spec = spec
        self.interventions: dict[str, int] = dict.fromkeys(GUARDS, 0)
        self._bounds = bounds if self.config.bounds else None
        self._speed = self._share(bounds, speed)
        self._jump = self._share(bounds, self.config.jump)

    def _share(self, bounds: tuple[Action, Action] | None, part: float | None) -> Action | None:
        """That part of the action's range; None for no limit."""
        if bounds is None or part is None:
            return None
        share = np.float32(part) * (bounds[1] - bounds[0])
        # A gripper opens or closes in one step: that is its business, not a fault.
        share[list(self.spec.gripper)] = np.inf
        return share

    def __call__(self, wanted: Action, last: Action | None, seconds: float) -> Action | None:
        """The command to send for `wanted`, after `last` (None before the first); None is to send nothing.

        An action with NaN or infinity in it is replaced as a whole by `still`. The change is measured from `last`, or from
        standing still before the first command.

        Args:
            seconds: from one command to the next.
        """
        if not np.isfinite(wanted).all():
            self.interventions["nan"] += 1
            return still(self.spec, last)
        action = np.asarray(wanted, np.float32)
        if self._bounds is not None:
            action = self._limit("bounds", action, *self._bounds)
        start = still(self.spec, None) if last is None else last
        if start is None:
            return action
        if self._speed is not None:
            step = self._speed * np.float32(seconds)
            action = self._limit("velocity", action, start - step, start + step)
        if self._jump is not None:
            action = self._limit("jump", action, start - self._jump, start + self._jump)
        return action

    def stale(self, age: float) -> bool:
        """Whether an observation of that age (seconds) is too old to plan on."""
        return self._exceeds("stale", age)

    def overdue(self, seconds: float) -> bool:
        """Whether a question that has been open for so long is given up."""
        return self._exceeds("heartbeat", seconds)

    def _exceeds(self, guard: str, seconds: float) -> bool:
        limit = getattr(self.config, guard)
        exceeds = limit is not None and seconds > limit
        self.interventions[guard] += exceeds
        return exceeds

    def _limit(self, guard: str, action: Action, low: Action, high: Action) -> Action:
        limited = np.clip(action, low, high)
        self.interventions[guard] += bool((limited != action).any())
        return limited
