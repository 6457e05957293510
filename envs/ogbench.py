"""OGBench's manipulation tasks (Park et al. 2025): a UR5e arm with a gripper before cubes, buttons, a drawer and a window.

The physics, the goals and the success are OGBench's; upstream takes some of a reset's randomness from elsewhere, here all of it
comes from the seed. It is an optional dependency.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from ..spec import Feature, KinoiseError, Spec
from .base import Expert, Values, check_pictures
from .pictured import Pictured, image_features
from .rendering import Data, load_mujoco

TASKS = {
    "cube-single": "put the cube at its goal",
    "cube-double": "put both cubes at their goals",
    "scene": "bring the cube, the buttons, the drawer and the window to their goals",
    "puzzle-3x3": "press buttons until all lights are as in the goal",
}
SUITES: dict[str, Sequence[str]] = {}
CAMERAS = ("front", "front_pixels")

HORIZONS = {"cube-single": 200, "cube-double": 500, "scene": 750, "puzzle-3x3": 500}
RATE = 20.0
GOALS = 5
"""Of each task, numbered from 1 upstream; which of them an episode has is drawn, or its index modulo their number."""

REACH = ("cm", "cm", "cm", "rad", "1")
STEP = (5.0, 5.0, 5.0, 0.3, 1.0)
"""What an action's numbers move at most in a step: the gripper's fingers along x, y, z, their yaw, how far they are closed."""


def canonical(name: str) -> str:
    """Upstream's own `cube-single-v0` is our `cube-single`."""
    return name.removesuffix("-v0")


def horizon(task: str) -> int:
    """Most steps of an episode."""
    return HORIZONS[task]


def make(task: str, *, render: bool, cameras: Sequence[str], size: int) -> OGBench:
    return OGBench(task, render=render, cameras=cameras, size=size)


class OGBench(Pictured):
    """One of the tasks; arguments as for `envs.make`.

    Observes, in metres and radians where upstream scales: "proprio" (19), the arm's joints with their velocities, the position
    and yaw between the fingers, how far these are closed and whether they touch; "objects", each cube's position, quaternion
    and yaw, each button's state, position and velocity, the drawer's and the window's position and velocity; "goal", which cube
    positions, button states, drawer and window positions are wanted. 20 steps a second.

    Actions: the displacement of the fingers along x, y, z, by up to 5 cm, the change of their yaw, by up to 0.3 rad, and of how
    far they are closed (1 is shut).

    `stored` counts the task's goals: `options={"index": i}` takes goal i modulo 5, and the seed the rest.
    """

    stored = GOALS
    view = "front"

    def __init__(self, task: str, *, render: bool = False, cameras: Sequence[str] = (), size: int = 84) -> None:
        check_pictures(cameras, size, CAMERAS)
        self._sim = _seeded(task)(task, shown=not cameras)
        self._steps = -1
        self._initial: list[float] | None = None
        self._sim.begin(0, 1)  # compiles the model
        values = self._states()
        spec, most, model = _spec(values, self._sim, cameras, size), horizon(task), self._sim.model
        super().__init__(f"ogbench/{task}", TASKS[task], spec, most, model=model, render=render, cameras=cameras, size=size)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Values, dict[str, Any]]:
        seed = self.next_seed(seed)
        index = (options or {}).get("index")
        drawn = int(np.random.default_rng([seed, 1]).integers(GOALS))
        goal = 1 + (drawn if index is None else int(index) % GOALS)
        self._sim.begin(seed, goal)
        self._steps = 0
        values = self._states()
        self._initial = [float(goal), *(float(item) for item in np.concatenate([values["objects"], values["proprio"]]))]
        return values | self._pictures(), {"goal": goal}

    def step(self, action: np.ndarray) -> tuple[Values, float, bool, bool, dict[str, Any]]:
        if not 0 <= self._steps < self.horizon:
            raise KinoiseError(f"{self.task}: the episode has not begun, or has reached its {self.horizon} steps: call reset")
        command = self.bounded(action).astype(np.float64) / np.asarray(STEP)
        _, reward, _, _, info = self._sim.step(command)
        self._steps += 1
        values = self._states()
        if not all(np.isfinite(item).all() for item in values.values()):
            self._steps = -1
            raise KinoiseError(f"{self.task}: the physics became unstable. Call reset.")
        success = {"success": bool(info["success"])}
        return values | self._pictures(), float(reward), False, self._steps >= self.horizon, success

    def initial(self) -> dict[str, Any]:
        """`goal`: its number upstream; `state`: objects and arm. Raises KinoiseError before `reset`."""
        if self._initial is None:
            raise KinoiseError(f"{self.task}: no initial state has been drawn. Call reset first.")
        return {"goal": int(self._initial[0]), "state": self._initial[1:]}

    def expert(self) -> Expert:
        from .experts.ogbench import OracleExpert

        return OracleExpert(self._sim, np.asarray(STEP))

    @property
    def _data(self) -> Data:
        return self._sim.data

    def _states(self) -> Values:
        info = self._sim.compute_ob_info()
        parts = {"proprio": _proprio(info), "objects": _objects(info), "goal": _goal(self._sim)}
        return {key: np.concatenate([item for _, _, item in part]).astype(np.float32) for key, part in parts.items()}


Part = tuple[Sequence[str], Sequence[str], np.ndarray]
"""Names, units and numbers of a thing that is observed."""
Info = Mapping[str, Any]
"""What upstream's `compute_ob_info` says."""


def _spec(values: Values, sim: Any, cameras: Sequence[str], size: int) -> Spec:
    info = sim.compute_ob_info()
    observations = {}
    for key, parts in {"proprio": _proprio(info), "objects": _objects(info), "goal": _goal(sim)}.items():
        names, units = ([item for part in parts for item in part[index]] for index in (0, 1))
        observations[key] = Feature((len(values[key]),), names=tuple(map(str, names)), unit=tuple(map(str, units)))
    observations |= image_features(cameras, size)
    low, high = tuple(-item for item in STEP), STEP
    action = Feature((5,), names=("x", "y", "z", "yaw", "gripper"), unit=REACH, low=low, high=high)
    return Spec(observations, action, rate=RATE, control="delta", gripper=(4,), language=True)


def _proprio(info: Info) -> list[Part]:
    joints, yaw = range(6), info["proprio/effector_yaw"]
    return [
        ([f"joint{index}" for index in joints], ["rad"] * 6, info["proprio/joint_pos"]),
        ([f"joint{index}.velocity" for index in joints], ["rad/s"] * 6, info["proprio/joint_vel"]),
        (("fingers.x", "fingers.y", "fingers.z"), ["m"] * 3, info["proprio/effector_pos"]),
        (("fingers.cos", "fingers.sin"), ["1"] * 2, np.concatenate([np.cos(yaw), np.sin(yaw)])),
        (("closed", "touching"), ["1"] * 2, np.concatenate([info["proprio/gripper_opening"], info["proprio/gripper_contact"]])),
    ]


def _objects(info: Info) -> list[Part]:
    parts: list[Part] = []
    for index in _count(info, "block_{}_pos"):
        own, name = f"privileged/block_{index}", f"cube{index}"
        yaw = info[f"{own}_yaw"]
        parts += [
            ([f"{name}.{axis}" for axis in "xyz"], ["m"] * 3, info[f"{own}_pos"]),
            ([f"{name}.q{axis}" for axis in "wxyz"], ["1"] * 4, info[f"{own}_quat"]),
            ((f"{name}.cos", f"{name}.sin"), ["1"] * 2, np.concatenate([np.cos(yaw), np.sin(yaw)])),
        ]
    for index in _count(info, "button_{}_state"):
        own, name = f"privileged/button_{index}", f"button{index}"
        numbers = np.concatenate([[info[f"{own}_state"]], info[f"{own}_pos"], info[f"{own}_vel"]])
        parts.append(((f"{name}.on", f"{name}.height", f"{name}.velocity"), ("1", "m", "m/s"), numbers))
    for name in ("drawer", "window"):
        if f"privileged/{name}_pos" in info:
            numbers = np.concatenate([info[f"privileged/{name}_pos"], info[f"privileged/{name}_vel"]])
            parts.append(((f"{name}.position", f"{name}.velocity"), ("m", "m/s"), numbers))
    return parts


def _goal(sim: Any) -> list[Part]:
    parts: list[Part] = []
    for index, place in enumerate(sim.cube_goals()):
        parts.append(([f"goal.cube{index}.{axis}" for axis in "xyz"], ["m"] * 3, place))
    states = sim.button_goals()
    if len(states):
        parts.append(([f"goal.button{index}.on" for index in range(len(states))], ["1"] * len(states), states))
    for name, position in sim.slide_goals().items():
        parts.append(((f"goal.{name}.position",), ("m",), np.array([position])))
    return parts


def _count(info: Info, name: str) -> range:
    found = 0
    while f"privileged/{name.format(found)}" in info:
        found += 1
    return range(found)


def _seeded(task: str) -> type[Any]:
    """Upstream's class of `task`, whose resets depend on a seed and a goal's number alone, and whose goals can be asked for.

    Upstream shakes the scene by two actions from a space that it makes anew, unseeded, each time it is asked for its actions.
    """
    load_mujoco()
    try:
        from ogbench.manipspace.envs.cube_env import CubeEnv
        from ogbench.manipspace.envs.puzzle_env import PuzzleEnv
        from ogbench.manipspace.envs.scene_env import SceneEnv
    except ImportError as error:
        raise KinoiseError(
            f"ogbench/{task} needs the package {error.name}. Run: pip install -c constraints.txt -e '.[ogbench]', or "
            f"kinoise simulator install ogbench, and take env=remote/ogbench/ogbench/{task}"
        ) from error
    kind, _, variant = task.partition("-")
    upstream: Any = {"cube": CubeEnv, "scene": SceneEnv, "puzzle": PuzzleEnv}[kind]

    class Seeded(upstream):
        def __init__(self, task: str, shown: bool) -> None:
            self._actions = spaces.Box(-1.0, 1.0, (5,), np.float32)
            super().__init__(env_type=variant or kind, terminate_at_goal=False, visualize_info=shown)

        @property
        def action_space(self) -> spaces.Box:
            return self._actions

        @property
        def model(self) -> Any:
            return self._model

        @property
        def data(self) -> Any:
            return self._data

        def begin(self, seed: int, goal: int) -> None:
            self._actions.seed(seed)
            self.reset(seed=seed, options={"task_id": goal})

        def cube_goals(self) -> list[np.ndarray]:
            """Where each cube is wanted, m."""
            return [self._data.mocap_pos[index].copy() for index in getattr(self, "_cube_target_mocap_ids", ())]

        def button_goals(self) -> np.ndarray:
            """Which state each button is wanted in."""
            return np.asarray(getattr(self, "_target_button_states", ()), np.float64)

        def slide_goals(self) -> dict[str, float]:
            """How far drawer and window are wanted out, m."""
            names = ("drawer", "window") if kind == "scene" else ()
            return {name: float(getattr(self, f"_target_{name}_pos")) for name in names}

    return Seeded
