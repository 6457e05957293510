"""Drawers: pulled open by the bar on their front, pushed closed against it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .cloud import Clouds, Obstacle
from .motion import CLOSED, OPEN, Skill, close_fingers, frame, move, open_fingers, reach
from .scene import Joint, Pose, Rotation, Scene, Vector
from .travel import approach
from .wrist import easy_twin

UP = np.array([0.0, 0.0, 1.0])
ROOM = 0.09  # m that the hand needs under a bar that it grips
TIP = 0.009  # m from the grip site to the finger tips
WIDE_OPEN, ENOUGH = 0.97, 0.92  # of the way from closed to the far end: where pulling ends, and what is taken for success
SHUT = 0.1  # of the way from closed to the near end, where the board meets the frame before the joint ends
PATIENCE = 12  # steps without progress


class Front(NamedTuple):
    """A drawer's bar in the world: its `center`; its `half` sizes outward, along it and up; the first two axes."""

    center: Vector
    half: Vector
    outward: Vector
    along: Vector


def open_drawer(scene: Scene, name: str, attempt: int = 0) -> Skill:
    """Grips the bar with the fingers above and below it and pulls; leaves the hand clear, in front of the open drawer.

    Args:
        name: of the drawer's region, such as "wooden_cabinet_1_top_region".
        attempt: from 0; another tilt of the hand each time.
    """
    joint = drawer_joint(scene, name)
    front = bar(scene, joint)
    if front.center[2] - scene.corners(scene.parent(name) or name)[:, 2].min() < ROOM:
        return (yield from drag_open(scene, name, attempt))
    rotation = tilted(scene, front, *np.radians(((80, 32), (84, 20), (80, 42))[attempt % 3]))
    approach = rotation[:, 2]
    grip = Pose(front.center + 0.002 * approach, rotation)
    before = Pose(grip.position - 0.05 * approach, rotation)
    yield from move(scene, before, OPEN, within=0.02, turned=0.15)
    yield from move(scene, grip, OPEN, within=0.007, turned=0.1)
    yield from close_fingers(scene, grip)
    best, waited = 0.0, 0
    while openness(scene, name) < WIDE_OPEN and waited < PATIENCE:
        yield reach(scene, Pose(bar(scene, joint).center + 0.05 * front.outward, rotation), CLOSED)
        now = openness(scene, name)
        best, waited = (now, 0) if now > best + 0.005 else (best, waited + 1)
    yield from open_fingers(scene, wide=0.04)
    clear = scene.hand().position - 0.055 * approach + 0.02 * UP
    yield from move(scene, Pose(clear, rotation), OPEN, within=0.012, turned=1.0, stalled=4)
    return openness(scene, name) >= ENOUGH


def drag_open(scene: Scene, name: str, attempt: int = 0) -> Skill:
    """Opens a drawer too low for a grip: the tips of the closed fingers lean behind the bar's upper edge and draw it along."""
    joint = drawer_joint(scene, name)
    front = bar(scene, joint)
    tilts = np.roll((45, 60, 50), -attempt)
    options = [(np.radians(tilt), beside) for beside in (0.0, 0.025, -0.025) for tilt in tilts]
    clouds = Clouds(scene)
    around = Obstacle(clouds.around(front.center - 0.3, front.center + 0.35))

    def leaning(tilt: float) -> Rotation:
        return easy_twin(scene, frame(front.along, -np.cos(tilt) * UP - np.sin(tilt) * front.outward))

    def hooked(rise: float, out: float, tilt: float, beside: float) -> Pose:
        """The tips behind the bar's edge, `rise` above it, `out` before it and `beside` its middle (m)."""
        now, rotation = bar(scene, joint), leaning(tilt)
        edge = now.center + (now.half[2] + rise) * UP + (out - now.half[0] - 0.009) * front.outward + beside * front.along
        return Pose(edge - TIP * rotation[:, 2], rotation)

    tilt, beside = min(options, key=lambda item: around.hits(hooked(0.02, 0.02, *item), 0.0, 0.006))
    edge = hooked(0.004, 0.0, tilt, beside)
    rotation = edge.rotation
    yield from approach(scene, clouds, edge, CLOSED, (), above=0.05)
    yield from move(scene, edge, CLOSED, within=0.006, turned=0.1, stalled=5)
    best, waited = 0.0, 0
    while openness(scene, name) < WIDE_OPEN and waited < PATIENCE:
        yield reach(scene, hooked(-0.022, 0.045, tilt, beside), CLOSED)
        now = openness(scene, name)
        best, waited = (now, 0) if now > best + 0.005 else (best, waited + 1)
    yield from move(
        scene, Pose(scene.hand().position - 0.05 * rotation[:, 2], rotation), CLOSED, within=0.015, turned=1.0, stalled=4
    )
    return openness(scene, name) >= ENOUGH


def close_drawer(scene: Scene, name: str, attempt: int = 0) -> Skill:
    """Pushes the drawer's bar with the tips of the closed fingers until it is shut, then backs off.

    Args:
        name: of the drawer's region.
        attempt: from 0; another tilt of the hand each time.
    """
    joint = drawer_joint(scene, name)
    front = bar(scene, joint)
    tilt = np.radians((30, 40, 20)[attempt % 3])
    approach = -np.cos(tilt) * UP - np.sin(tilt) * front.outward
    rotation = easy_twin(scene, frame(front.along, approach))

    def touching(gap: float) -> Pose:
        """The tips' front `gap` (m) before the bar."""
        now = bar(scene, joint)
        out = now.half[0] + 0.010 + gap
        return Pose(now.center + out * front.outward - TIP * approach, rotation)

    before = touching(0.03)
    above = Pose(before.position + 0.06 * UP, rotation)
    hand = scene.hand().position
    if (hand - before.position) @ front.outward < 0:  # from over the drawer, first out past its front
        yield from move(
            scene, Pose(np.array([*above.position[:2], max(hand[2], above.position[2])]), rotation), CLOSED, within=0.05
        )
    yield from move(scene, above, CLOSED, within=0.03, turned=0.3)
    yield from move(scene, before, CLOSED, within=0.015, turned=0.15)
    best, waited = openness(scene, name), 0
    while shutness(scene, name) < SHUT and waited < PATIENCE:
        yield reach(scene, touching(-0.05), CLOSED)
        now = openness(scene, name)
        best, waited = (now, 0) if now < best - 0.005 else (best, waited + 1)
    hand = scene.hand()
    yield from move(scene, Pose(hand.position + 0.05 * front.outward + 0.03 * UP, rotation), CLOSED, within=0.02, turned=1.0)
    return shutness(scene, name) > SHUT / 2


def drawer_joint(scene: Scene, name: str) -> Joint:
    """The slide of the drawer that a region is in."""
    (joint,) = scene.joints(name)
    return joint


def openness(scene: Scene, name: str) -> float:
    """How far a drawer has come of the way from closed (joint at 0) to its far end (1)."""
    joint = drawer_joint(scene, name)
    return joint.value / farther(joint)


def shutness(scene: Scene, name: str) -> float:
    """How far a drawer has been pushed past where it counts as closed (0) towards its stop (1)."""
    joint = drawer_joint(scene, name)
    return joint.value / nearer(joint)


def farther(joint: Joint) -> float:
    """The end of a joint's range that is farther from 0, where the thing is closed."""
    return joint.low if abs(joint.low) > abs(joint.high) else joint.high


def nearer(joint: Joint) -> float:
    """The end of a joint's range that is nearer to 0: past closed."""
    return joint.high if abs(joint.low) > abs(joint.high) else joint.low


def bar(scene: Scene, joint: Joint) -> Front:
    """The piece of the drawer that stands out farthest."""
    _, axis = scene.joint_frame(joint.name)
    outward = axis * np.sign(farther(joint))
    along = np.cross(UP, outward)
    axes = np.stack([outward, along, UP])
    part = max(scene.parts(scene.joint_body(joint.name)), key=lambda item: (item.points @ outward).max())
    low, high = (part.points @ axes.T).min(0), (part.points @ axes.T).max(0)
    return Front((low + high) / 2 @ axes, (high - low) / 2, outward, along)


def tilted(scene: Scene, front: Front, tilt: float, turn: float) -> Rotation:
    """The hand towards the drawer's front, `tilt` (rad) from straight down, one finger above the other.

    It comes `turn` (rad) from the robot's side rather than square to the front, which keeps the forearm off what is behind it.
    """
    side = front.along * np.sign(front.along @ (front.center - scene.pose("robot0_base").position))
    inward = -np.cos(turn) * front.outward + np.sin(turn) * side
    return easy_twin(scene, frame(np.sin(tilt) * UP + np.cos(tilt) * inward, np.sin(tilt) * inward - np.cos(tilt) * UP))
