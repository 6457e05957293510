"""A plan on the loop's ticks: which of its actions is for now."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..spec import Plan, Spec
from .guards import Action


@dataclass(frozen=True)
class Trajectory:
    """A plan whose action `i` is for tick `tick + i`; `tick` is the one that its observation belongs to."""

    plan: Plan
    tick: int

    @property
    def length(self) -> int:
        return self.plan.actions.shape[1]

    def left(self, tick: int) -> int:
        """Actions for `tick` and after; at most 0 when the plan is over."""
        return self.tick + self.length - tick

    def action(self, tick: int) -> Action:
        return self.plan.actions[0, tick - self.tick].numpy()

    def between(self, tick: int, part: float, spec: Spec) -> Action:
        """Absolute control: where to be a `part` of a tick after `tick`, on the line to the next action.

        The last action is kept for its whole tick, and the gripper is that of `tick`.
        """
        here = self.action(tick)
        there = self.action(tick + 1) if self.left(tick) > 1 else here
        command = here + np.float32(part) * (there - here)
        gripper = list(spec.gripper)
        command[gripper] = here[gripper]
        return command


def fault(plan: Plan, spec: Spec) -> str:
    """What makes `plan` unusable for one robot, "" when nothing does."""
    actions, wanted = plan.actions, spec.action_dim
    if actions.ndim == 3 and actions.shape[::2] == (1, wanted) and actions.dtype == torch.float32 and actions.is_cpu:
        return ""
    found = f"{actions.dtype} of shape {list(actions.shape)} on {actions.device}"
    return f"expected a plan in float32 of shape [1, chunk, {wanted}] on the CPU, it is {found}"


def share(action: Action, commands: int, spec: Spec) -> Action:
    """Delta and relative control: one of so many equal commands that make the motion of `action` together, gripper as it is."""
    if commands == 1:
        return action
    command = action / np.float32(commands)
    gripper = list(spec.gripper)
    command[gripper] = action[gripper]
    return command
