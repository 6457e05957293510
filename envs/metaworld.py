"""Metaworld's 50 tasks (Yu et al. 2019, version 3): a Sawyer arm with a gripper over a table, goals visible.

An episode's initial state is that of upstream's benchmarks, where every episode has a fresh environment and one frozen draw of
`rand_vec`; here the draw comes from the seed of `reset`, which upstream ignores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..spec import Feature, KinoiseError, Spec
from .base import Expert, Values, check_pictures
from .pictured import Pictured, image_features
from .rendering import Data, Model, load_mujoco, unstable

if TYPE_CHECKING:
    from metaworld.sawyer_xyz_env import SawyerXYZEnv

TASKS = {
    "assembly": "pick up the nut and put it over the peg",
    "basketball": "put the basketball through the hoop",
    "bin-picking": "pick up the block and drop it into the other bin",
    "box-close": "put the lid on the box",
    "button-press-topdown": "press the button from above",
    "button-press-topdown-wall": "reach over the wall and press the button from above",
    "button-press": "press the button on the front of the box",
    "button-press-wall": "reach around the wall and press the button on the front of the box",
    "coffee-button": "press the button of the coffee machine",
    "coffee-pull": "pull the mug away from the coffee machine",
    "coffee-push": "push the mug under the coffee machine",
    "dial-turn": "turn the dial",
    "disassemble": "take the nut off the peg",
    "door-close": "close the door",
    "door-lock": "lock the door",
    "door-open": "open the door",
    "door-unlock": "unlock the door",
    "hand-insert": "reach into the hole with the gripper",
    "drawer-close": "close the drawer",
    "drawer-open": "open the drawer",
    "faucet-open": "turn the faucet on",
    "faucet-close": "turn the faucet off",
    "hammer": "drive the nail in with the hammer",
    "handle-press-side": "press the handle down from the side",
    "handle-press": "press the handle down",
    "handle-pull-side": "pull the handle up from the side",
    "handle-pull": "pull the handle up",
    "lever-pull": "pull the lever up",
    "pick-place-wall": "pick up the puck, lift it over the wall and place it at the goal",
    "pick-out-of-hole": "take the puck out of the hole",
    "pick-place": "pick up the puck and place it at the goal",
    "plate-slide": "slide the plate forward into the net",
    "plate-slide-side": "slide the plate sideways into the net",
    "plate-slide-back": "slide the plate back out of the net",
    "plate-slide-back-side": "slide the plate sideways out of the net",
    "peg-insert-side": "insert the peg into the hole in the side of the box",
    "peg-unplug-side": "pull the plug out of the side of the box",
    "soccer": "push the ball into the soccer goal",
    "stick-push": "push the thermos to the goal with the stick",
    "stick-pull": "pull the thermos to the goal with the stick",
    "push": "push the puck to the goal",
    "push-wall": "push the puck around the wall to the goal",
    "push-back": "push the block back towards the robot to the goal",
    "reach": "move the gripper to the goal",
    "reach-wall": "move the gripper over the wall to the goal",
    "shelf-place": "pick up the block and place it on the shelf",
    "sweep-into": "sweep the block into the hole",
    "sweep": "sweep the block off the table",
    "window-open": "open the window",
    "window-close": "close the window",
}
SUITES = {
    "mt10": (
        "reach",
        "push",
        "pick-place",
        "door-open",
        "drawer-open",
        "drawer-close",
        "button-press-topdown",
        "peg-insert-side",
        "window-open",
        "window-close",
    ),
    "mt50": tuple(TASKS),
}

PROPRIO = "proprio"
CAMERAS = ("topview", "corner", "corner2", "corner3", "corner4", "behindGripper", "gripperPOV")

# Arrays of a compiled model that are larger than this are meshes and textures, which no task changes.
SMALL_BYTES = 2**16


def canonical(name: str) -> str:
    """Upstream's own `push-v3` is our `push`."""
    return name.removesuffix("-v3")


def make(task: str, *, render: bool, cameras: Sequence[str], size: int) -> Metaworld:
    return Metaworld(task, render=render, cameras=cameras, size=size)


class Metaworld(Pictured):
    """One of Metaworld's tasks; arguments as for `envs.make`.

    Observes "state" (39): hand, gripper opening, up to two objects' positions and quaternions (unused places are 0), all of
    that one step earlier, and the goal. Actions: the hand's displacement along x, y, z, at 1 by a centimetre a step, and the
    gripper's effort, at 1 closing. 80 steps a second, 500 an episode.

    With cameras there is also "proprio" (4), what a robot knows without looking: hand and gripper opening.
    """

    view = "corner4"  # the pose that others give upstream's far-away "corner2" by hand

    def __init__(self, task: str, *, render: bool = False, cameras: Sequence[str] = (), size: int = 84) -> None:
        check_pictures(cameras, size, CAMERAS)
        self._class = _seeded(task)
        self._sim = self._class()
        self._model: Model = self._sim.model
        self._pristine = _small_arrays(self._model)
        self._begun = False
        spec, horizon, model = _spec(1 / self._sim.dt, cameras, size), self._sim.max_path_length, self._model
        super().__init__(
            f"metaworld/{task}", TASKS[task], spec, horizon, model=model, render=render, cameras=cameras, size=size
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Values, dict[str, Any]]:
        seed = self.next_seed(seed)
        for name, values in self._pristine.items():
            getattr(self._model, name)[...] = values
        self._sim = self._class(self._model)
        self._sim.np_random = np.random.default_rng(seed)
        self._sim.max_path_length = self.horizon
        state, _ = self._sim.reset()
        self._begun = True
        if self._renderer is not None:
            self._renderer.place(self._sim.data)
        return self._observation(state), {}

    def step(self, action: np.ndarray) -> tuple[Values, float, bool, bool, dict[str, Any]]:
        if not self._begun or self._sim.curr_path_length >= self.horizon:
            raise KinoiseError(f"{self.task}: the episode has not begun, or has reached its {self.horizon} steps: call reset")
        state, reward, _, truncated, info = self._sim.step(self.bounded(action))
        if unstable(self._sim.data):
            raise KinoiseError(f"{self.task}: the physics became unstable at step {self._sim.curr_path_length}. Call reset.")
        return self._observation(state), float(reward), False, bool(truncated), {"success": bool(info["success"])}

    def initial(self) -> dict[str, Any]:
        """`rand_vec`: upstream's draw, which fixes the positions of objects and goal. Raises KinoiseError before `reset`."""
        if not self._begun:
            raise KinoiseError(f"{self.task}: no initial state has been drawn. Call reset first.")
        return {"rand_vec": self._sim.rand_vec.tolist()}

    def expert(self) -> Expert:
        from .experts.metaworld import ScriptedExpert

        return ScriptedExpert(self.task.removeprefix("metaworld/"))

    def close(self) -> None:
        self._sim.close()
        super().close()

    @property
    def _data(self) -> Data:
        return self._sim.data

    def _observation(self, state: np.ndarray) -> Values:
        values = {"state": state.astype(np.float32)}
        proprio = {PROPRIO: values["state"][:4].copy()} if self._cameras else {}
        return values | proprio | self._pictures()


def _spec(rate: float, cameras: Sequence[str], size: int) -> Spec:
    place = ("x", "y", "z")
    now = [f"hand.{axis}" for axis in place] + ["gripper"]
    for thing in ("object1", "object2"):
        now += [f"{thing}.{axis}" for axis in (*place, "q0", "q1", "q2", "q3")]
    units = ["m", "m", "m", "1", *(["m"] * 3 + ["1"] * 4) * 2]
    state = Feature(
        shape=(39,),
        names=(*now, *(f"previous.{name}" for name in now), *(f"goal.{axis}" for axis in place)),
        unit=(*units, *units, "m", "m", "m"),
    )
    seen = {PROPRIO: Feature((4,), names=tuple(now[:4]), unit=tuple(units[:4]))} if cameras else {}
    seen |= image_features(cameras, size)
    action = Feature(shape=(4,), names=(*place, "gripper"), unit=("cm", "cm", "cm", "1"), low=(-1.0,) * 4, high=(1.0,) * 4)
    return Spec({"state": state, **seen}, action, rate=rate, control="delta", gripper=(3,), language=True)


def _small_arrays(model: Model) -> dict[str, np.ndarray]:
    """Copies of what an episode may change in a compiled model: tasks move its bodies and sites."""
    arrays = {name: getattr(model, name) for name in dir(model) if not name.startswith("_")}
    return {
        name: item.copy()
        for name, item in arrays.items()
        if isinstance(item, np.ndarray) and item.flags.writeable and item.nbytes <= SMALL_BYTES
    }


def _seeded(task: str) -> type[Any]:
    """Upstream's class of `task`, whose instances take a compiled model and draw their one `rand_vec` from `np_random`.

    Upstream's objects carry things from one episode to the next, in attributes, in the model and in the physics: an
    instance is therefore to be used for one episode. With its model compiled already, it is made in a few milliseconds.
    """
    mujoco = load_mujoco()
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    upstream: type[SawyerXYZEnv] = ALL_V3_ENVIRONMENTS[f"{task}-v3"]

    class Seeded(upstream):
        def __init__(self, model: Model | None = None) -> None:
            self._compiled = model
            super().__init__()
            self._partially_observable = False
            del self.sawyer_observation_space
            self._freeze_rand_vec, self.seeded_rand_vec, self._set_task_called = False, True, True

        def _initialize_simulation(self) -> tuple[Model, Data]:
            if self._compiled is None:
                return super()._initialize_simulation()
            return self._compiled, mujoco.MjData(self._compiled)

        def reset_model(self) -> np.ndarray:
            """Upstream's `reset` calls this twice: the first draws, the second begins where the draw has put things."""
            observation = super().reset_model()
            self._freeze_rand_vec = True
            return observation

        def touching_object(self, object_geom_id: int) -> bool:
            """Upstream's rule without its loop in Python over all contacts, which took a quarter of a step's time."""
            pairs, address, force = self.data.contact.geom, self.data.contact.efc_address, self.data.efc_force
            touched = (pairs == object_geom_id).any(axis=1)
            return all(
                force[address[touched & (pairs == self.data.geom(pad).id).any(axis=1)]].sum() > 0
                for pad in ("leftpad_geom", "rightpad_geom")
            )

        @property
        def rand_vec(self) -> np.ndarray:
            """The draw of the episode."""
            assert self._last_rand_vec is not None
            return self._last_rand_vec

    return Seeded
