"""Upstream's simulation of one task, built once and set to one initial state after another."""

from __future__ import annotations

import pdb
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Float32, Float64

from ...spec import KinoiseError
from ..osc import OscStepper
from ..rendering import load_mujoco, unstable
from ..robosuite.upstream import drawing
from .assets import load_libero
from .distractors import crowded
from .names import definition, suite_of
from .perturb import Perturber
from .states import read_states

TRIES = 100
SETTLE = 10
"""Steps with nothing commanded, in which what was placed comes to rest."""
IDLE = (0.0,) * 6 + (-1.0,)


class Scene:
    """One task's simulation, as `libero.libero.envs` builds it, without its observations and its pictures.

    Args:
        task: such as "spatial-3".
        textured: load the textures too. Without them a scene is there in a third of the time, and takes a third of the memory.
        perturb: strengths by kind, see `PERTURBATIONS`.

    Raises KinoiseError when LIBERO isn't installed, or not whole.
    """

    def __init__(self, task: str, textured: bool = False, perturb: Mapping[str, float] | None = None) -> None:
        load_libero()
        from libero.libero import get_libero_path
        from libero.libero.envs import TASK_MAPPING, bddl_utils
        from robosuite import load_controller_config

        folder, name = f"libero_{suite_of(task)}", definition(task)
        file = Path(get_libero_path("bddl_files")) / folder / f"{name}.bddl"
        states = Path(get_libero_path("init_states")) / folder / f"{name}.pruned_init"
        if not file.is_file():
            raise KinoiseError(f"{file} is missing: hf-libero isn't whole. Install it again: make libero")
        self.stored = read_states(states)
        kind = TASK_MAPPING[bddl_utils.get_problem_info(str(file))["problem_name"]]
        strengths = dict(perturb or {})
        kind = crowded(kind) if "distractors" in strengths else kind
        with _drawing(0):
            self.upstream: Any = _quickly(kind, textured)(
                str(file),
                robots=["Panda"],
                controller_configs=load_controller_config(default_controller="OSC_POSE"),
                initialization_noise=None,
                use_camera_obs=False,
                has_renderer=False,
                has_offscreen_renderer=False,
                control_freq=20,
                ignore_done=True,
                hard_reset=False,
            )
        self._perturber = Perturber(self.model, strengths) if strengths else None
        self._compiled = self.upstream.compiled
        self._robot = self.upstream.robots[0]
        model = self.upstream.sim.model
        self._hand = model.site_name2id(self._robot.controller.eef_name)
        self._wrist = model.body_name2id(self._robot.robot_model.eef_name)
        self._base = model.body_name2id(self._robot.robot_model.root_body)
        self._fingers = np.array(self._robot._ref_gripper_joint_pos_indexes)
        if self.stored.shape[1] != 1 + self.data.qpos.size + self.data.qvel.size:
            raise KinoiseError(f"{states} holds states of another scene. Install hf-libero again: make libero")

    @property
    def model(self) -> Any:
        """mujoco.MjModel"""
        return self.upstream.sim.model._model

    @property
    def data(self) -> Any:
        """mujoco.MjData"""
        return self.upstream.sim.data._data

    def reset(self, seed: int, index: int | None = None) -> None:
        """Begins an episode.

        Args:
            seed: draws where things are placed, from the regions that the task's definition gives.
            index: instead takes the stored state of this number. What no state holds is drawn all the same: where the fixtures
                stand, within a centimetre.
        """
        from robosuite.utils.errors import RandomizationError

        if self._perturber is not None:
            self._perturber.restore()
        # Upstream places things in and on fixtures as if these stood where the compiled model has them.
        self.model.body_pos[:], self.model.body_quat[:] = self._compiled
        with _drawing(seed), _without_debugger():
            for attempt in range(TRIES):
                try:
                    self.upstream.reset()
                    break
                except RandomizationError as error:
                    if attempt == TRIES - 1:
                        raise KinoiseError(f"nothing fits into the scene in {TRIES} attempts: {error}") from error
        self._stepper = OscStepper(self.upstream)
        if index is not None:
            self.upstream.sim.set_state_from_flattened(self.stored[index])
        self.upstream.sim.forward()
        self.upstream._post_process()
        if index is None:
            for _ in range(SETTLE):
                self.step(np.array(IDLE))
        if self._perturber is not None:
            self._perturber.apply(self.data, seed)
            self.upstream._post_process()

    def step(self, action: np.ndarray) -> None:
        """A twentieth of a second. Raises KinoiseError when the physics became unstable."""
        self._stepper.step(action.astype(np.float64))
        self.upstream._post_process()
        if not np.isfinite(self.data.qpos).all() or unstable(self.data):
            raise KinoiseError("the physics became unstable. Call reset.")

    def initial(self) -> dict[str, Any]:
        """Where things are now: the positions of all joints, and of the fixtures, which have none."""
        bodies = [self.upstream.obj_body_id[name] for name in self.upstream.fixtures_dict]
        return {"positions": self.data.qpos.tolist(), "fixtures": self.model.body_pos[bodies].tolist()}

    @property
    def success(self) -> bool:
        """Whether the definition's goal holds."""
        return bool(self.upstream._check_success())

    @property
    def hand(self) -> Float64[np.ndarray, "3"]:
        """Where the gripper grips, in metres, in the world."""
        return self.data.site_xpos[self._hand]

    @property
    def base(self) -> Float64[np.ndarray, "3"]:
        """Where the robot stands."""
        return self.data.xpos[self._base]

    @property
    def rotation(self) -> Float32[np.ndarray, "6"]:
        """The first two columns of the hand's rotation."""
        return self.data.xmat[self._wrist].reshape(3, 3)[:, :2].T.ravel().astype(np.float32)

    @property
    def state(self) -> Float32[np.ndarray, "8"]:
        """LIBERO's: the gripper's position, the hand's rotation vector, the fingers' positions."""
        turn = _rotation_vector(self.data.xquat[self._wrist])
        return np.concatenate([self.hand, turn, self.data.qpos[self._fingers]]).astype(np.float32)

    def close(self) -> None:
        """Frees what upstream holds."""
        self.upstream.close()


def _quickly(kind: type[Any], textured: bool) -> type[Any]:
    """`kind`, an upstream class, whose instances share what was compiled for the same scene before."""

    def initialize(self: Any, xml_string: str | None = None) -> None:
        from robosuite.utils.binding_utils import MjSim

        xml = xml_string or self.model.get_xml()
        model = copy(_compiled(xml if textured else _plain(xml)))
        self.compiled = model.body_pos.copy(), model.body_quat.copy()
        self.sim = MjSim(model)
        self.sim.forward()
        self.initialize_time(self.control_freq)

    return type(kind.__name__, (kind,), {"_initialize_sim": initialize})  # upstream compares a class's name with its problem's


@lru_cache(maxsize=4)
def _compiled(xml: str) -> Any:
    return load_mujoco().MjModel.from_xml_string(xml)


def _plain(xml: str) -> str:
    """The same scene with white pixels for textures, which are most of what a scene takes to compile and to keep."""
    root = ElementTree.fromstring(xml)
    for texture in root.iter("texture"):
        for name in [name for name in texture.attrib if name.startswith(("file", "grid"))]:
            del texture.attrib[name]
        texture.attrib.update(builtin="flat", width="1", height="1")
    return ElementTree.tostring(root, encoding="unicode")


def _drawing(seed: int) -> AbstractContextManager[None]:
    """Upstream draws from NumPy's global generator, which takes seeds of 32 bits."""
    return drawing(int(np.random.SeedSequence(seed).generate_state(1)[0]))


@contextmanager
def _without_debugger() -> Iterator[None]:
    """Where nothing fits, upstream starts a debugger before it says so."""
    kept, pdb.set_trace = pdb.set_trace, lambda *_, **__: None
    try:
        yield
    finally:
        pdb.set_trace = kept


def _rotation_vector(quaternion: Float64[np.ndarray, "4"]) -> Float64[np.ndarray, "3"]:
    """Axis times angle of a quaternion (w, x, y, z), by robosuite's rule: the sign is the quaternion's own."""
    w = float(np.clip(quaternion[0], -1, 1))
    length = np.sqrt(1 - w * w)
    return np.zeros(3) if length < 1e-8 else quaternion[1:] * (2 * np.arccos(w) / length)
