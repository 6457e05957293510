"""LIBERO's scenes changed a little: where things lie, light, cameras, things that have nothing to do with the task.

Each kind has a generator of its own, drawn from the episode's seed: the same seed gives the same change, whichever other kinds
are asked for. `Perturber` undoes what it did to the model before it does it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64

from ...spec import KinoiseError
from ..rendering import load_mujoco
from .distractors import MOST, place_distractors
from .surroundings import NEAR, groups, near, settled, touching

Model = Data = Any  # mujoco's MjModel and MjData, which are imported where they are needed
Generator = np.random.Generator

PERTURBATIONS = {
    "positions": "metres by which each movable thing is displaced at most, up to 0.3",
    "lighting": "share by which brightness changes at most, up to 1; colours by a third, directions by half of it, in rad",
    "camera": "metres and rad by which fixed cameras are moved and turned at most, up to 0.5",
    "distractors": f"further things on the table, up to {MOST}, seen and not touched",
    "instruction": "1: other words; 2: other sentences, too",
}
"""What the strengths mean, by kind."""

LIMITS = {"positions": 0.3, "lighting": 1.0, "camera": 0.5, "distractors": float(MOST), "instruction": 2.0}
WHOLE = ("distractors", "instruction")
LIGHTS = ("light_diffuse", "light_specular", "light_dir")
CAMERAS = ("cam_pos", "cam_quat")
TRIES = 60


class Perturber:
    """Perturbs episodes of one scene.

    Args:
        model: of the scene, as it was compiled.
        strengths: by kind of PERTURBATIONS.

    Raises:
        KinoiseError: an unknown kind, a strength that is out of range.
    """

    def __init__(self, model: Model, strengths: Mapping[str, float]) -> None:
        check_strengths(strengths)
        self._model, self._strengths = model, dict(strengths)
        self._pristine = {name: getattr(model, name).copy() for name in (*LIGHTS, *CAMERAS)}
        self._headlight = model.vis.headlight.diffuse.copy()

    def restore(self) -> None:
        """Undoes what was done to the model; where things lie is for the next reset to say."""
        for name, values in self._pristine.items():
            getattr(self._model, name)[...] = values
        self._model.vis.headlight.diffuse[...] = self._headlight

    def apply(self, data: Data, seed: int) -> None:
        """Perturbs the episode whose initial state `data` holds; what the last episode's did to the model is undone."""
        mujoco = load_mujoco()

        self.restore()
        kinds: dict[str, Callable[..., None]] = {
            "positions": displace,
            "lighting": relight,
            "camera": move_cameras,
            "distractors": place_distractors,
        }
        for kind, change in kinds.items():
            if kind in self._strengths:
                change(self._model, data, generator(seed, kind), self._strengths[kind])
        mujoco.mj_forward(self._model, data)


def check_strengths(strengths: Mapping[str, float]) -> None:
    """Raises KinoiseError for an unknown kind and for a strength that is out of range."""
    for kind, strength in strengths.items():
        if kind not in PERTURBATIONS:
            raise KinoiseError(f"unknown perturbation '{kind}': there are {', '.join(PERTURBATIONS)}")
        whole = kind not in WHOLE or strength == int(strength)
        if not (0 < strength <= LIMITS[kind] and whole):
            wanted = "a whole number" if kind in WHOLE else "a number"
            raise KinoiseError(f"perturb={kind}:{strength:g}: expected {wanted} above 0, up to {LIMITS[kind]:g}")


def generator(seed: int, kind: str) -> Generator:
    """The randomness of one kind in the episode with this seed."""
    return np.random.default_rng([seed, *kind.encode()])


def displace(model: Model, data: Data, rng: Generator, strength: float) -> None:
    """Moves what lies on the table or the floor, horizontally and by at most `strength` metres.

    Things that touch once they lie still are moved as one. What lies on or in anything else, and what finds no free place in
    TRIES draws, stays where it is.
    """
    mujoco = load_mujoco()

    still = settled(model, data)
    for group in groups(model, still):
        before, joints = still.qpos.copy(), np.add.outer(group.joints, [0, 1])
        for _ in range(TRIES):
            angle, radius = 2 * np.pi * rng.random(), strength * np.sqrt(rng.random())
            move = radius * np.array([np.cos(angle), np.sin(angle)])
            still.qpos[joints] = before[joints] + move
            mujoco.mj_kinematics(model, still)
            mujoco.mj_comPos(model, still)
            if touching(near(model, still, NEAR), group.roots) == group.surfaces:
                data.qpos[joints] += move
                break
            still.qpos[:] = before
    mujoco.mj_forward(model, data)


def relight(model: Model, data: Data, rng: Generator, strength: float) -> None:
    """Changes brightness by at most a share of `strength`, colours by a third of it, and directions by half of it, in rad."""
    bright = 1 + strength * rng.uniform(-1, 1)
    tint = 1 + strength / 3 * rng.uniform(-1, 1, 3)
    model.light_diffuse[...] = np.clip(model.light_diffuse * bright * tint, 0, 1)
    model.light_specular[...] = np.clip(model.light_specular * bright, 0, 1)
    model.vis.headlight.diffuse[...] = np.clip(model.vis.headlight.diffuse * bright * tint, 0, 1)
    for light in range(model.nlight):
        model.light_dir[light] = _rotated(model.light_dir[light], _turn(rng, strength / 2))


def move_cameras(model: Model, data: Data, rng: Generator, strength: float) -> None:
    """Moves the cameras that no robot carries by at most `strength` metres, and turns them by at most as many rad."""
    mujoco = load_mujoco()

    for camera in range(model.ncam):
        way, length, turn = rng.standard_normal(3), strength * np.cbrt(rng.random()), _turn(rng, strength)
        if model.body_weldid[model.cam_bodyid[camera]]:
            continue
        model.cam_pos[camera] += length * way / np.linalg.norm(way)
        turned = np.zeros(4)
        mujoco.mju_mulQuat(turned, turn, model.cam_quat[camera].astype(np.float64))
        model.cam_quat[camera] = turned


def _turn(rng: Generator, most: float) -> Float64[np.ndarray, "4"]:
    """A quaternion: a turn by at most `most` rad about an axis of any direction."""
    axis, angle = rng.standard_normal(3), most * rng.random()
    return np.concatenate([[np.cos(angle / 2)], np.sin(angle / 2) * axis / np.linalg.norm(axis)])


def _rotated(vector: np.ndarray, turn: Float64[np.ndarray, "4"]) -> Float64[np.ndarray, "3"]:
    mujoco = load_mujoco()

    found = np.zeros(3)
    mujoco.mju_rotVecQuat(found, vector.astype(np.float64), turn)
    return found
