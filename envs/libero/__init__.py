"""LIBERO's five suites (Liu et al. 2023): a Panda arm that handles things on a table, after a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...spec import Feature, KinoiseError, Spec
from ..base import Expert, Values, check_pictures
from ..pictured import Pictured, image_features
from ..rendering import Data
from .names import HORIZONS, SUITES, TASKS, canonical, suite_of
from .objects import Objects, objects_feature
from .paraphrase import paraphrase
from .perturb import PERTURBATIONS, check_strengths
from .scene import IDLE, SETTLE, Scene

__all__ = ["CAMERAS", "PERTURBATIONS", "SUITES", "TASKS", "Libero", "canonical", "make"]

CAMERAS = ("agentview", "robot0_eye_in_hand", "frontview", "birdview", "sideview", "galleryview")
RATE = 20.0


def horizon(task: str) -> int:
    """Most steps of an episode; by suite, as in the literature (docs/evaluation.md)."""
    return HORIZONS[suite_of(task)]


def make(task: str, *, render: bool, cameras: Sequence[str], size: int, perturb: Mapping[str, float] | None = None) -> Libero:
    return Libero(task, render=render, cameras=cameras, size=size, perturb=perturb)


class Libero(Pictured):
    """One of LIBERO's 130 tasks; arguments as for `envs.make`.

    Observes "state" (8): the gripper's position, the hand's rotation vector and the fingers' positions, as LIBERO's data sets
    do; "rotation" (6): the same rotation without jumps; "objects": a list of what there is (`spec.OBJECT`), of the same length
    for every task. Pictures are upright, row 0 at the top. Actions (7): the hand's displacement, 5 cm at 1, its turn, 0.5 rad
    at 1, and the gripper, -1 open and 1 closed. 20 steps a second.

    `reset(seed=...)` places things anew, within the regions of the task's definition, and lets them come to rest.
    `reset(seed=..., options={"index": i})` takes the stored initial state of number i modulo `stored`, as it is: the seed then
    draws where the fixtures stand, within a centimetre, which no stored state says.
    """

    view = "agentview"
    hidden = (0,)  # the group of geometries that collide, which robosuite doesn't draw

    def __init__(
        self,
        task: str,
        *,
        render: bool = False,
        cameras: Sequence[str] = (),
        size: int = 84,
        perturb: Mapping[str, float] | None = None,
    ) -> None:
        check_pictures(cameras, size, CAMERAS)
        strengths = dict(perturb or {})
        check_strengths(strengths)
        self._rewording = int(strengths.pop("instruction", 0))
        self._scene = Scene(task, textured=render or bool(cameras), perturb=strengths)
        self._objects = Objects(self._scene.upstream)
        self.stored, self.settle = len(self._scene.stored), SETTLE
        self._initial: dict[str, Any] | None = None
        self._steps = 0
        spec, most, model = _spec(cameras, size), horizon(task), self._scene.model
        super().__init__(f"libero/{task}", TASKS[task], spec, most, model=model, render=render, cameras=cameras, size=size)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Values, dict[str, Any]]:
        seed = self.next_seed(seed)
        index = (options or {}).get("index")
        self._scene.reset(seed, None if index is None else index % self.stored)
        self._initial, self._steps = self._scene.initial(), 0
        if self._rewording:
            self.instruction = paraphrase(TASKS[self.task.removeprefix("libero/")], seed, self._rewording)
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[Values, float, bool, bool, dict[str, Any]]:
        if self._initial is None or self._steps >= self.horizon:
            raise KinoiseError(f"{self.task}: the episode has not begun, or has reached its {self.horizon} steps: call reset")
        self._scene.step(self.bounded(action))
        self._steps += 1
        success = self._scene.success
        return self._observation(), float(success), False, self._steps == self.horizon, {"success": success}

    def idle_action(self) -> np.ndarray:
        """Stays where it is, with the gripper open."""
        return np.array(IDLE, np.float32)

    def initial(self) -> dict[str, Any]:
        """`positions`: of all joints and objects; `fixtures`: where each stands. Raises KinoiseError before `reset`."""
        if self._initial is None:
            raise KinoiseError(f"{self.task}: no initial state has been drawn. Call reset first.")
        return self._initial

    def expert(self) -> Expert:
        from ..experts.libero import LiberoExpert

        return LiberoExpert(self._scene.upstream)

    def close(self) -> None:
        super().close()
        self._scene.close()

    @property
    def _data(self) -> Data:
        return self._scene.data

    def _observation(self) -> Values:
        scene = self._scene
        states = {"state": scene.state, "rotation": scene.rotation, "objects": self._objects.read(scene.hand, scene.base)}
        return states | self._pictures()


def _spec(cameras: Sequence[str], size: int) -> Spec:
    place, turn = ("x", "y", "z"), ("rx", "ry", "rz")
    observations = {
        "state": Feature((8,), names=(*place, *turn, "finger1", "finger2"), unit=("m",) * 3 + ("rad",) * 3 + ("m",) * 2),
        "rotation": Feature((6,), names=("r00", "r10", "r20", "r01", "r11", "r21"), unit=("1",) * 6),
        "objects": objects_feature(),
    }
    observations |= image_features(cameras, size)
    action = Feature(
        (7,),
        names=(*place, *turn, "gripper"),
        unit=("5 cm",) * 3 + ("0.5 rad",) * 3 + ("1",),
        low=(-1.0,) * 7,
        high=(1.0,) * 7,
    )
    return Spec(observations, action, rate=RATE, control="delta", gripper=(6,), language=True)
