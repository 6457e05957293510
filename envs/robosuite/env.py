"""Lift, Can and Square behind kinoise's interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from ...spec import Feature, KinoiseError, Spec
from ..base import Expert, Values, check_pictures
from ..pictured import Pictured, image_features
from ..rendering import Data, Model, unstable
from .recorded import made, require, require_same
from .upstream import CLASSES, RATE, TASKS, build, draw_cube, drawing, robosuite_version, stepper

SUITES: dict[str, Sequence[str]] = {}
CAMERAS = ("agentview", "robot0_eye_in_hand", "frontview", "birdview", "robot0_robotview")
HORIZON = 400  # robomimic's, for data sets by proficient humans
OBJECT = "object"
OBSERVED = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
OBJECT_SIZE = {"lift": 10, "can": 14, "square": 14}
ACTION = 7


def canonical(name: str) -> str:
    """robosuite's own `PickPlaceCan` is our `can`."""
    return {theirs.lower(): ours for ours, theirs in CLASSES.items()}.get(name.lower(), name)


def make(task: str, *, render: bool, cameras: Sequence[str], size: int) -> Robosuite:
    return Robosuite(task, render=render, cameras=cameras, size=size)


def check_recorded(task: str, env_args: Mapping[str, Any]) -> None:
    """Raises KinoiseError, with every difference, when demonstrations with these `env_args` are not of this environment."""
    robosuite_version()
    require(task, version("robosuite"), env_args)


def check_made(task: str, meta: Mapping[str, Any], env_args: Mapping[str, Any]) -> None:
    """The same by what a `Robosuite`, in whatever process, says of itself; `task` is its full id."""
    require_same(task, meta["robomimic"]["env_args"], env_args)


class Robosuite(Pictured):
    """One of the tasks; arguments as for `envs.make`.

    Observes what robomimic trains on, as robosuite's own observables give it: "robot0_eef_pos" (3), where the gripper is (m);
    "robot0_eef_quat" (4), the hand's orientation (x, y, z, w); "robot0_gripper_qpos" (2), the fingers (m); "object", the
    thing's position and orientation, and where it is from the gripper: for Lift 10, gripper minus cube in the world's frame;
    for Can and Square 14, position and orientation in the gripper's. Actions: OSC_POSE's steps, at 1 by 0.05 m along and 0.5
    rad about each of the world's axes, and the gripper, -1 opening and 1 closing. 20 steps a second, 400 an episode.

    The features have no names, units or bounds but the action's, and there is no instruction with observations: robomimic's
    files say none of it. Pictures are robosuite's own, pixel for pixel, but with row 0 at the top, as robomimic stores them.
    """

    view = "agentview"
    plain = False
    hidden = (0,)  # the group of geometries that collide, which robosuite doesn't draw

    def __init__(self, task: str, *, render: bool = False, cameras: Sequence[str] = (), size: int = 84) -> None:
        check_pictures(cameras, size, CAMERAS)
        self._sim = build(task)
        self._name = task
        self._step: Callable[[np.ndarray], Mapping[str, np.ndarray]] | None = None
        self._steps, self._end, self._initial = 0, 0, {}
        pictures = {"model": self._model, "render": render, "cameras": cameras, "size": size}
        super().__init__(f"robosuite/{task}", TASKS[task], _spec(task, cameras, size), HORIZON, **pictures)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Values, dict[str, Any]]:
        self._initial = {}
        with drawing(self.next_seed(seed)):
            if self._name == "lift":
                self._initial["cube"] = draw_cube(self._sim).tolist()
            found = self._sim.reset()
        self._initial["qpos"] = self._data.qpos.tolist()
        self._step, self._steps, self._end = stepper(self._sim), 0, self.horizon
        return self._observation(found), {}

    def step(self, action: np.ndarray) -> tuple[Values, float, bool, bool, dict[str, Any]]:
        if self._step is None or self._steps >= self._end:
            raise KinoiseError(f"{self.task}: the episode has not begun, or has reached its {self.horizon} steps: call reset")
        action = self.bounded(action).astype(np.float64)
        found = self._step(action)
        self._steps += 1
        if unstable(self._data):
            self._steps = self._end
            raise KinoiseError(f"{self.task}: the physics became unstable. Call reset.")
        info = {"success": bool(self._sim._check_success())}
        return self._observation(found), float(self._sim.reward(action)), False, self._steps == self._end, info

    def initial(self) -> dict[str, Any]:
        """`qpos`, all joints (m, rad, quaternions), and Lift's `cube`, half sizes (m). Raises KinoiseError before `reset`."""
        if not self._initial:
            raise KinoiseError(f"{self.task}: no initial state has been drawn. Call reset first.")
        return self._initial

    def meta(self) -> dict[str, Any]:
        return {"robomimic": {"env_args": made(self._name, version("robosuite"))}}

    def expert(self) -> Expert:
        from ..experts.robosuite import RobosuiteExpert

        return RobosuiteExpert(self._name, self._sim)

    @property
    def _model(self) -> Model:
        return self._sim.sim.model._model

    @property
    def _data(self) -> Data:
        return self._sim.sim.data._data

    def _observation(self, found: Mapping[str, np.ndarray]) -> Values:
        values = {OBJECT: np.array(found["object-state"], np.float32)}
        return values | {key: np.array(found[key], np.float32) for key in OBSERVED} | self._pictures()


def _spec(task: str, cameras: Sequence[str], size: int) -> Spec:
    states = {OBJECT: Feature((OBJECT_SIZE[task],))} | {key: Feature((count,)) for key, count in OBSERVED.items()}
    action = Feature((ACTION,), low=(-1.0,) * ACTION, high=(1.0,) * ACTION)
    return Spec(
        states | image_features(cameras, size), action, rate=float(RATE), control="delta", gripper=(ACTION - 1,), language=False
    )
