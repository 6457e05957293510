"""Knobs turned about an upright axis: gripped by the ridge on top, and turned with the hand."""

from __future__ import annotations

import numpy as np

from .motion import CLOSED, OPEN, Skill, close_fingers, move, pointing_down, reach, turn_about
from .scene import Joint, Pose, Scene
from .wrist import easy_twin

UP = np.array([0.0, 0.0, 1.0])
AHEAD = 0.6  # rad by which the hand leads the knob: what turns it
RELEASE = 5  # steps


def turn_knob(scene: Scene, name: str, to: float, attempt: int = 0) -> Skill:
    """Turns a fixture's knob until its joint has passed `to` (rad); leaves the hand above it.

    Args:
        name: of the fixture, such as "flat_stove_1".
        to: the joint's value, in its range; the nearer end of it means against the stop.
        attempt: from 0; another depth of the grip each time.
    """
    (joint,) = scene.joints(name)
    way = np.sign(to - joint.value)
    center, axis = scene.joint_frame(joint.name)
    top, across = ridge(scene, joint)
    yaw = np.arctan2(across[1], across[0])
    rotation = easy_twin(scene, pointing_down(yaw))
    height = top - (0.018, 0.024, 0.012)[attempt % 3]
    grip = Pose(np.array([center[0], center[1], height]), rotation)
    yield from move(scene, Pose(grip.position + 0.06 * UP, rotation), OPEN, within=0.02, turned=0.15)
    yield from move(scene, grip, OPEN, within=0.01, turned=0.1)
    yield from close_fingers(scene, grip)
    start = joint.value

    def turned(ahead: float) -> Pose:
        """The grip turned with the knob, and `ahead` (rad) of it."""
        return Pose(grip.position, turn_about(axis, scene.joint(joint.name).value - start + way * ahead) @ rotation)

    def passed() -> bool:
        return bool((scene.joint(joint.name).value - to) * way >= 0)

    best, waited = 0.0, 0
    while not passed() and waited < 12:
        yield reach(scene, turned(AHEAD), CLOSED)
        now = abs(scene.joint(joint.name).value - start)
        best, waited = (now, 0) if now > best + 0.005 else (best, waited + 1)
    for _ in range(RELEASE):  # still turning a little, so that the fingers don't take the knob back with them
        yield reach(scene, Pose(grip.position, turn_about(axis, way * 0.05) @ scene.hand().rotation), OPEN)
    hand = scene.hand()
    away = center - scene.pose("robot0_base").position  # a knob near the robot leaves the arm no room to go straight up
    clear = hand.position + 0.06 * UP + 0.03 * away * np.array([1.0, 1.0, 0.0]) / np.linalg.norm(away[:2])
    yield from move(scene, Pose(clear, hand.rotation), OPEN, within=0.02, turned=1.0, stalled=4)
    return passed()


def ridge(scene: Scene, joint: Joint) -> tuple[float, np.ndarray]:
    """The height of a knob's top, and the direction in which what stands up on it is thinnest, in the world."""
    points = np.concatenate([part.points for part in scene.parts(scene.joint_body(joint.name))])
    top = float(points[:, 2].max())
    high = points[points[:, 2] > (top + points[:, 2].min()) / 2][:, :2]
    angles = np.linspace(0, np.pi, 90, endpoint=False)
    directions = np.column_stack([np.cos(angles), np.sin(angles)])
    thin = directions[int(np.argmin(np.ptp(high @ directions.T, axis=0)))]
    return top, np.array([*thin, 0.0])
