"""What a robot does when there is no plan for the present: a ladder that ends with a stop.

`plan`: the plan in force is as new as it should be. `rest`: the next one is late; what is left of the plan is carried out.
`hold`: nothing is left; the robot keeps its position, or its motion decays to none. `stop`: holding has lasted for too long;
the robot is stopped and stays so until somebody who has looked at it says otherwise. A new plan leads back to `plan` from
every rung but the last. The gripper is as it was last told on all of them: what it holds may not fall.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..config import UsageError
from ..spec import Spec
from .guards import Action, bounds_of, still

Rung = Literal["plan", "rest", "hold", "stop"]

NEGLIGIBLE = 1 / 32
"""Part of the last motion below which a decaying one ends."""


@dataclass
class FallbackConfig:
    """What happens without a plan."""

    hold: float = field(default=1.0, metadata={"help": "seconds without a plan after which the robot is stopped"})
    decay: float = field(
        default=0.5, metadata={"help": "part of its motion that a holding robot keeps, tick by tick (delta, relative)"}
    )
    on_stop: str = field(default="end", metadata={"help": "a stopped robot: end the run, or wait for a reset"})

    def __post_init__(self) -> None:
        if not 0 < self.hold < math.inf:
            raise UsageError(f"fallback.hold={self.hold}: expected seconds, more than 0")
        if not 0 <= self.decay < 1:
            raise UsageError(f"fallback.decay={self.decay}: expected at least 0 and below 1")
        if self.on_stop not in ("end", "wait"):
            raise UsageError(f"fallback.on_stop={self.on_stop}: expected end or wait")


class Ladder:
    """Where on the ladder a run stands.

    Args:
        spec: of the robot.
        config: how long it holds, and how.
    """

    def __init__(self, spec: Spec, config: FallbackConfig) -> None:
        self._spec, self._config = spec, config
        self.reset()

    def reset(self) -> None:
        """Begins again: after a latched stop, and with every new scene."""
        self.rung: Rung = "plan"
        self._since: float | None = None
        self._kept = 1.0

    def step(self, time: float, plan: Literal["new", "old", "none"]) -> Rung:
        """The rung of the tick at `time` (seconds): with a plan that is as new as it should be, an older one, or none."""
        if self.rung == "stop":
            return "stop"
        if plan != "none":
            self._since, self._kept = None, 1.0
            self.rung = "plan" if plan == "new" else "rest"
        else:
            self._since = time if self._since is None else self._since
            self.rung = "hold" if time - self._since < self._config.hold - 1e-6 else "stop"
        return self.rung

    def hold(self, last: Action | None) -> Action | None:
        """The next command of the rung `hold`, after `last` (None before the first); None is to send nothing.

        `absolute` control repeats the last command. `delta` and `relative` control keep a part of the last motion, tick by
        tick, until it is negligible, then none. Bounds that exclude standing still hold here too.
        """
        if self._spec.control == "absolute" or last is None:
            return still(self._spec, last)
        self._kept *= self._config.decay
        if self._kept < NEGLIGIBLE:
            return still(self._spec, last)
        gripper = list(self._spec.gripper)
        command = last * np.float32(self._config.decay)
        command[gripper] = last[gripper]
        bounds = bounds_of(self._spec)
        return command if bounds is None else np.clip(command, *bounds)
