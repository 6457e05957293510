"""Whether the arm gets to a pose: inverse kinematics on a copy of the simulator's state."""

from __future__ import annotations

import numpy as np

from ...rendering import load_mujoco
from .motion import axis_angle
from .scene import Pose, Scene

STEPS = 60
DAMPING = 0.05
POSTURE = 0.02  # how much of the way to the posture that an episode begins with is taken each step
WITHIN, TURNED = 0.015, 0.15  # m, rad
MARGIN = 0.05  # rad kept from the joints' ends


class Arm:
    """The robot of a scene, in a copy of its state: asking it moves nothing."""

    def __init__(self, scene: Scene) -> None:
        self._mujoco = load_mujoco()
        self._model, self._data = scene.model, self._mujoco.MjData(scene.model)
        robot = scene.env.robots[0]
        self._grip = scene.model.site(robot.gripper.important_sites["grip_site"]).id
        joints = [scene.model.joint(name) for name in robot.robot_joints]
        self._qpos = np.array([item.qposadr[0] for item in joints])
        self._dof = np.array([item.dofadr[0] for item in joints])
        self._low = np.array([item.range[0] for item in joints]) + MARGIN
        self._high = np.array([item.range[1] for item in joints]) - MARGIN
        self._data.qpos[:] = scene.data.qpos
        self._start = scene.data.qpos[self._qpos].copy()

    def reaches(self, pose: Pose) -> bool:
        """Whether some joint positions within their limits bring the grip site to `pose` (damped least squares)."""
        mujoco, model, data = self._mujoco, self._model, self._data
        joints = self._start.copy()
        jacobian = np.zeros((6, model.nv))
        for _ in range(STEPS):
            data.qpos[self._qpos] = joints
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            left = pose.position - data.site_xpos[self._grip]
            turn = axis_angle(pose.rotation @ data.site_xmat[self._grip].reshape(3, 3).T)
            if np.linalg.norm(left) < WITHIN and np.linalg.norm(turn) < TURNED:
                return True
            mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], self._grip)
            part = jacobian[:, self._dof]
            error = np.concatenate([left * min(1.0, 0.1 / max(np.linalg.norm(left), 1e-9)), np.clip(turn, -0.4, 0.4)])
            inverse = part.T @ np.linalg.inv(part @ part.T + DAMPING**2 * np.eye(6))
            step = inverse @ error + (np.eye(7) - inverse @ part) @ (self._start - joints) * POSTURE
            joints = np.clip(joints + step, self._low, self._high)
        return False
