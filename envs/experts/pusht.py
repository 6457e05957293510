"""A scripted demonstrator of Push-T: plans one straight push after another (`pusht_planner`) and carries them out."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Float32

from ..base import Values
from .pusht_model import pose_of, to_block, to_world
from .pusht_planner import Push, error, plan
from .pusht_ways import step_back

Point = Float[np.ndarray, "2"]

AHEAD = 28.0  # px from the disc to where it is told to be: by upstream's controller it then goes 11 px a step
DONE = 1.3  # error that is good enough, px: 96 % of the target are covered, or more
TURN = 14.0  # px before a waypoint at which the disc makes for the next
ALIGNED = 5.0  # px from where a push starts, within which it does
PUSHED = 0.7  # px before its end at which a push is over
STRAY = 3.0  # px that the block may move, by mishap, before the push that was planned for it
RELEASE = 20.0  # px that are kept from the block when all is done


class PushingExpert:
    """Goes round the block to a side, pushes along that side's normal, plans anew, and lets go when the target is covered.

    It sees what a policy sees, and knows of the simulator only what `pusht_model` does.
    """

    def __init__(self) -> None:
        self._push: Push | None = None
        self._planned: np.ndarray = np.zeros(3)
        self._next = 0

    def act(self, observation: Values) -> Float32[np.ndarray, "2"]:
        """Where the disc is to be, from "agent" and "block": at most 28 px from where it is, in the bounds of the table."""
        disc = observation["agent"].astype(np.float64)
        x, y, cos, sin = observation["block"].tolist()
        pose = pose_of(x, y, math.atan2(sin, cos))
        if self._push is None or self._over(self._push, disc, pose):
            self._push, self._planned, self._next = None, pose, 0
            if error(pose) < DONE:
                return _towards(disc, to_world(step_back(to_block(disc, pose), RELEASE), pose))
            self._push = plan(pose, disc)
        return _towards(disc, disc if self._push is None else self._waypoint(self._push, disc))

    def _over(self, push: Push, disc: Point, pose: Float[np.ndarray, "3"]) -> bool:
        """Whether a push has come to its end, or has become another by the block's moving away from it."""
        if self._next < len(push.way):
            return float(np.linalg.norm(pose[:2] - self._planned[:2])) > STRAY
        direction = push.end - push.way[-1]
        return float((push.end - disc) @ direction) < PUSHED * float(np.linalg.norm(direction))

    def _waypoint(self, push: Push, disc: Point) -> Point:
        while self._next < len(push.way):
            near = ALIGNED if self._next == len(push.way) - 1 else TURN
            if np.linalg.norm(push.way[self._next] - disc) > near:
                return push.way[self._next]
            self._next += 1
        return push.end


def _towards(disc: Point, target: Point) -> Float32[np.ndarray, "2"]:
    way = target - disc
    far = max(float(np.linalg.norm(way)), AHEAD)
    return np.clip(disc + way * (AHEAD / far if far > AHEAD else 1.0), 0, 512).astype(np.float32)
