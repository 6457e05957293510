"""A robosuite environment's control step, with the physics computed once a substep instead of three times.

robosuite 1.4 computes the whole forward dynamics before its controller runs, again inside the controller, and again in the
substep itself. What the controller reads (poses, Jacobians, inertia, bias forces) is there after MuJoCo's `mj_step1` already,
and `mj_step2` goes on from there with the controller's torques. The law is the same; what differs is where the constraint
solver starts from, so that states agree within its tolerance (1e-7 after five seconds), at a quarter of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.linalg import get_lapack_funcs

from ..spec import KinoiseError
from .rendering import load_mujoco

Vector = Float[np.ndarray, "n"]

ARM = 6
EULER = 0
EXPECTED = {
    "robots": 1,
    "controller": "OSC_POSE",
    "impedance": "fixed",
    "deltas": True,
    "uncoupled": True,
    "interpolation": None,
    "integrator": EULER,
}
NULLSPACE_KP = 10.0  # of robosuite's `nullspace_torques`


class OscStepper:
    """Steps a robosuite 1.4 environment with one Panda under a fixed-impedance OSC_POSE controller.

    The law is that of robosuite's `controllers/osc.py` (Khatib 1987): positions and orientations uncoupled, torques towards the
    initial joint positions in the null space, and gravity compensated. Only the simulator's state is touched: not robosuite's
    buffers of recent values, its observables nor its time.

    Args:
        env: robosuite's, after its `reset`; each episode takes a new stepper.

    Raises:
        KinoiseError: another controller, robot or integrator than this follows.
    """

    def __init__(self, env: Any) -> None:
        self._mujoco = load_mujoco()
        self._check(env)
        robot = env.robots[0]
        controller, gripper = robot.controller, robot.gripper
        self._gripper = gripper
        self._model, self._data = env.sim.model._model, env.sim.data._data
        self._substeps = int(env.control_timestep / env.model_timestep)
        self._site = env.sim.model.site_name2id(controller.eef_name)
        self._qpos, self._qvel = _span(controller.qpos_index), _span(controller.qvel_index)
        self._kp, self._kd = np.array(controller.kp), np.array(controller.kd)
        self._scale = np.array(controller.output_max)
        self._arm = np.array(robot._ref_joint_actuator_indexes)
        self._fingers = np.array(robot._ref_joint_gripper_actuator_indexes)
        self._low, self._high = self._model.actuator_ctrlrange[self._arm].T.copy()
        low, high = self._model.actuator_ctrlrange[self._fingers].T
        self._middle, self._half = (high + low) / 2, (high - low) / 2
        self._jacobian = np.zeros((6, self._model.nv))
        self._inertia = np.zeros((self._model.nv, self._model.nv))
        self._initial = np.array(controller.initial_joint)
        self._held, self._grip = np.array(controller.goal_ori), np.zeros(len(self._fingers))

    def step(self, action: Float[np.ndarray, "7"]) -> None:
        """One control step: `action` in [-1, 1], by 0.05 m along and 0.5 rad about each axis, then -1 open, 1 closed."""
        mujoco, model, data = self._mujoco, self._model, self._data
        direction = np.array([-1.0, 1.0]) * self._gripper.speed * np.sign(action[ARM])
        mujoco.mj_step1(model, data)
        goal = self._aim(np.clip(action[:ARM], -1, 1) * self._scale)
        for substep in range(self._substeps):
            if substep:
                mujoco.mj_step1(model, data)
            data.ctrl[self._arm] = np.clip(self._torques(goal), self._low, self._high)
            self._grip = np.clip(self._grip + direction, -1, 1)
            data.ctrl[self._fingers] = self._middle + self._half * self._grip
            mujoco.mj_step2(model, data)

    def _aim(self, delta: Float[np.ndarray, "6"]) -> Float[np.ndarray, "3"]:
        """Where the hand is to be; and turns what is held, which without a turn stays as it was, whatever the hand did."""
        if (np.abs(delta[3:]) > 0).any():
            self._held = _rotation(delta[3:]) @ self._data.site_xmat[self._site].reshape(3, 3)
        return self._data.site_xpos[self._site] + delta[:3]

    def _torques(self, goal: Float[np.ndarray, "3"]) -> Vector:
        model, data, mujoco = self._model, self._data, self._mujoco
        mujoco.mj_jacSite(model, data, self._jacobian[:3], self._jacobian[3:], self._site)
        mujoco.mj_fullM(model, self._inertia, data.qM)
        jacobian = self._jacobian[:, self._qvel]
        inertia = self._inertia[self._qvel, self._qvel]
        joints, velocity = data.qpos[self._qpos], data.qvel[self._qvel]
        error = np.concatenate([goal - data.site_xpos[self._site], _turn(self._held, data.site_xmat[self._site].reshape(3, 3))])
        wanted = self._kp * error - self._kd * (self._jacobian @ data.qvel)

        weighted = _solve(inertia, jacobian.T)  # M^-1 J^T
        mobility = jacobian @ weighted  # J M^-1 J^T, the inverse of the inertia that the hand presents
        wrench = np.concatenate([_solve(mobility[:3, :3], wanted[:3]), _solve(mobility[3:, 3:], wanted[3:])])
        posture = inertia @ (NULLSPACE_KP * (self._initial - joints) - 2 * np.sqrt(NULLSPACE_KP) * velocity)
        posture -= jacobian.T @ _solve(mobility, weighted.T @ posture)  # (I - Jbar J)^T posture
        return jacobian.T @ wrench + data.qfrc_bias[self._qvel] + posture

    @staticmethod
    def _check(env: Any) -> None:
        controller = env.robots[0].controller
        found = {
            "robots": len(env.robots),
            "controller": controller.name,
            "impedance": getattr(controller, "impedance_mode", None),
            "deltas": getattr(controller, "use_delta", None),
            "uncoupled": getattr(controller, "uncoupling", None),
            "interpolation": getattr(controller, "interpolator_pos", None) or getattr(controller, "interpolator_ori", None),
            "integrator": int(env.sim.model._model.opt.integrator),
        }
        if found != EXPECTED:
            raise KinoiseError(f"expected a robosuite environment with {EXPECTED}, came {found}. Take its default OSC_POSE.")


(_posv,) = get_lapack_funcs(("posv",), dtype=np.float64)


def _span(indices: Sequence[Any]) -> slice:
    """The joints of an arm follow one another, so that its part of an array is a view."""
    return slice(int(indices[0]), int(indices[-1]) + 1)


def _solve(matrix: Float[np.ndarray, "n n"], right: np.ndarray) -> np.ndarray:
    """For a positive definite matrix; by LAPACK itself, since NumPy's checks take longer than a solution of this size."""
    _, solution, failed = _posv(matrix, right)
    return np.linalg.pinv(matrix) @ right if failed else solution  # a stretched arm's is not definite: robosuite inverts so


def _turn(desired: Float[np.ndarray, "3 3"], current: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3"]:
    """The rotation from `current` to `desired`, half the sum of their axes' cross products: sin(angle) about its axis."""
    skew = desired @ current.T
    return np.array([skew[2, 1] - skew[1, 2], skew[0, 2] - skew[2, 0], skew[1, 0] - skew[0, 1]]) / 2


def _rotation(turn: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """The matrix of a rotation vector (Rodrigues)."""
    angle = float(np.linalg.norm(turn))
    x, y, z = turn / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
