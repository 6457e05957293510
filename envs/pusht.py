"""Push-T (Florence et al. 2021, in the version of Chi et al. 2023): a disc pushes a T-shaped block over a table.

The physics, the initial states, the reward and the pictures are gym-pusht's. It is an optional dependency.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from ..spec import Feature, KinoiseError, Spec
from .base import Env, Expert, Values, check_pictures

if TYPE_CHECKING:
    from gym_pusht.envs.pusht import PushTEnv

TASKS = {"pusht": "push the T-shaped block onto the T-shaped target"}
SUITES: dict[str, Sequence[str]] = {}
CAMERAS = ("top",)

SIDE = 512.0  # of the table, in the simulator's pixels
RATE = 10.0
HORIZON = 300
VIEW_SIZE = 384
CORNERS = 8


def canonical(name: str) -> str:
    """Gymnasium's `PushT-v0` is our `pusht`."""
    return name.removesuffix("-v0").lower()


def make(task: str, *, render: bool, cameras: Sequence[str], size: int) -> PushT:
    return PushT(task, render=render, cameras=cameras, size=size)


class PushT(Env):
    """Push-T; arguments as for `envs.make`.

    Observes, in pixels of a table of 512 x 512 (x to the right, y down): "agent" (2), the disc; "block" (4), the origin of the
    T, which is the middle of its bar's outer edge, with the cosine and sine of its angle; "keypoints" (16), the T's corners in
    the order of upstream's `get_keypoints`. The camera "top" sees all of the table. Actions: where the disc is to be, to which
    a controller takes it within a few steps. 10 steps a second, 300 an episode.

    The target never moves: the block's origin at (256, 256), turned by 45 degrees. `info["coverage"]` is the share of it that
    the block covers; more than 0.95 is success, and the reward is coverage / 0.95, at most 1.
    """

    def __init__(self, task: str, *, render: bool = False, cameras: Sequence[str] = (), size: int = 84) -> None:
        check_pictures(cameras, size, CAMERAS)
        self._pictured, self._steps = bool(cameras), HORIZON
        self._sim = _simulator()(
            render_mode="rgb_array",
            observation_width=size,
            observation_height=size,
            visualization_width=VIEW_SIZE,
            visualization_height=VIEW_SIZE,
        )
        self.render_mode = "rgb_array" if render else None
        self._initial: list[float] | None = None
        super().__init__(f"pusht/{task}", TASKS[task], _spec(cameras, size), HORIZON)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Values, dict[str, Any]]:
        self._sim.reset(seed=self.next_seed(seed))
        self._sim._last_action = None  # drawn by `render`: upstream keeps the episode's before
        agent, block = self._sim.agent, self._sim.block
        self._initial = [float(number) for number in (*agent.position, *block.position, block.angle % (2 * np.pi))]
        self._steps = 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[Values, float, bool, bool, dict[str, Any]]:
        if self._steps >= self.horizon:
            raise KinoiseError(f"{self.task}: the episode has not begun, or has reached its {self.horizon} steps: call reset")
        _, reward, success, _, info = self._sim.step(self.bounded(action).astype(np.float64))
        self._steps += 1
        found = {"success": bool(success), "coverage": float(info["coverage"])}
        return self._observation(), float(reward), False, self._steps == self.horizon, found

    def initial(self) -> dict[str, Any]:
        """`state`: the disc's x, y, the block's x, y and its angle in [0, 2 pi). Raises KinoiseError before `reset`."""
        if self._initial is None:
            raise KinoiseError(f"{self.task}: no initial state has been drawn. Call reset first.")
        return {"state": self._initial}

    def expert(self) -> Expert:
        from .experts.pusht import PushingExpert

        return PushingExpert()

    def render(self) -> UInt8[np.ndarray, "height width 3"]:
        if self.render_mode is None:
            raise KinoiseError(f"{self.task} was made without pictures for people. Make it with render=True.")
        return np.asarray(self._sim.render(), np.uint8)

    def close(self) -> None:
        self._sim.close()

    def _observation(self) -> Values:
        agent, block = self._sim.agent, self._sim.block
        values = {
            "agent": np.array(agent.position, np.float32),
            "block": np.array([*block.position, np.cos(block.angle), np.sin(block.angle)], np.float32),
            "keypoints": self._sim.get_keypoints(self._sim._block_shapes).astype(np.float32).ravel(),
        }
        if self._pictured and self.drawn:
            values["image.top"] = np.asarray(self._sim._render(), np.uint8)
        return values


def _spec(cameras: Sequence[str], size: int) -> Spec:
    corners = tuple(f"{axis}{corner}" for corner in range(CORNERS) for axis in "xy")
    observations = {
        "agent": Feature((2,), names=("x", "y"), unit=("px", "px")),
        "block": Feature((4,), names=("x", "y", "cos", "sin"), unit=("px", "px", "1", "1")),
        "keypoints": Feature((2 * CORNERS,), names=corners, unit=("px",) * 2 * CORNERS),
    }
    observations |= {f"image.{camera}": Feature((size, size, 3), "image") for camera in cameras}
    action = Feature((2,), names=("x", "y"), unit=("px", "px"), low=(0.0, 0.0), high=(SIDE, SIDE))
    return Spec(observations, action, rate=RATE, control="absolute", language=True)


def _simulator() -> type[PushTEnv]:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # pygame greets on standard output, where results are printed
    try:
        from gym_pusht.envs.pusht import PushTEnv
    except ImportError as error:
        raise KinoiseError(
            f"Push-T can't be simulated here: {error}. Install it with: pip install -c constraints.txt -e '.[pusht]' "
            "(its OpenCV also needs Debian's libgl1 and libglib2.0-0)"
        ) from error
    return PushTEnv
