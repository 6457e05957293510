"""Hinged doors: pulled ajar by their handle and swung open from behind, pushed shut from outside."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .motion import CLOSED, OPEN, Skill, close_fingers, frame, move, open_fingers, reach, turn_about
from .scene import Pose, Rotation, Scene, Vector
from .wrist import easy_twin

UP = np.array([0.0, 0.0, 1.0])
TIP = 0.009  # m from the grip site to the finger tips
PAD = 0.009  # m, half the width of the closed fingers' pads: the only part of them that LIBERO's doors collide with
DEPTH = 0.035  # m below the door's top edge that the tips of an upright hand go, so that the hand passes above it
AJAR = 0.5  # rad that a door is pulled open by its handle, enough for the fingers to get behind it
OPENED, SHUT = 1.42, 0.003  # rad from closed


class Door(NamedTuple):
    """A door in the world: `hinge` [3]; `along` it from the hinge and `outward`, unit vectors; its `width` and `top` height.

    The board lies between `inner` and `outer`, m along `outward` from the hinge. `handle` is the middle of what stands out
    farthest. `opening` is +1 or -1: the sense about UP in which it opens. `angle` (rad) is how far it is open.
    """

    hinge: Vector
    along: Vector
    outward: Vector
    width: float
    top: float
    inner: float
    outer: float
    handle: Vector
    opening: float
    angle: float


def close_door(scene: Scene, name: str, attempt: int = 0) -> Skill:
    """Pushes the door shut with the closed fingers upright at its outer side, the hand above it.

    Args:
        name: of the fixture, such as "microwave_1".
        attempt: from 0; another distance from the hinge each time.
    """
    share = (0.78, 0.65, 0.88)[attempt % 3]
    rotation = upright(scene)

    def outside(gap: float) -> Pose:
        return beside(scene, name, share, gap, rotation, outer=True)

    before = outside(0.04)
    yield from move(scene, Pose(before.position + 0.05 * UP, rotation), CLOSED, within=0.03, turned=0.3)
    yield from move(scene, before, CLOSED, within=0.02, turned=0.2)
    best, waited = np.inf, 0
    while (angle := door(scene, name).angle) > SHUT and waited < 12:
        best, waited = (angle, 0) if angle < best - 0.01 else (best, waited + 1)
        yield reach(scene, outside(-0.012 - 0.03 * min(1.0, angle / 0.5)), CLOSED)  # gently at the end, or it springs back
    now = door(scene, name)
    hand = scene.hand().position
    yield from move(scene, Pose(hand + 0.05 * now.outward + 0.04 * UP, rotation), CLOSED, within=0.02, turned=1.0)
    return door(scene, name).angle <= 0.004


def open_door(scene: Scene, name: str, attempt: int = 0) -> Skill:
    """Pulls the door ajar by its handle, then swings it wide with the fingers behind it.

    Args:
        name: of the fixture, such as "microwave_1".
        attempt: from 0; another tilt of the hand at the handle each time.
    """
    if door(scene, name).angle < AJAR - 0.1:
        yield from pull_ajar(scene, name, np.radians((75, 82, 68)[attempt % 3]))
    yield from swing(scene, name, (0.85, 0.75, 0.9)[attempt % 3])
    return door(scene, name).angle >= OPENED - 0.06


def pull_ajar(scene: Scene, name: str, tilt: float) -> Skill:
    """Grips the upright handle, the hand `tilt` (rad) from straight down, and draws it along its circle."""
    now = door(scene, name)
    facing = -np.sin(tilt) * now.outward - np.cos(tilt) * UP
    rotation = easy_twin(scene, frame(now.along, facing))
    grip = Pose(now.handle + 0.002 * facing, rotation)
    yield from move(scene, Pose(grip.position - 0.06 * facing, rotation), OPEN, within=0.02, turned=0.15)
    yield from move(scene, grip, OPEN, within=0.007, turned=0.1)
    yield from close_fingers(scene, grip)
    best, waited = 0.0, 0
    while (angle := door(scene, name).angle) < AJAR and waited < 12:
        best, waited = (angle, 0) if angle > best + 0.01 else (best, waited + 1)
        turn = turn_about(UP, now.opening * 0.6 * angle)
        here = door(scene, name)
        yield reach(scene, Pose(here.handle + 0.05 * here.outward, turn @ rotation), CLOSED)
    yield from open_fingers(scene, wide=0.045)
    hand = scene.hand()
    yield from move(scene, Pose(hand.position - 0.05 * hand.rotation[:, 2], hand.rotation), OPEN, within=0.015, turned=1.0)
    return door(scene, name).angle > 0.3


def swing(scene: Scene, name: str, share: float) -> Skill:
    """Puts the closed fingers behind a door that is ajar, round its free edge, and pushes it wide open."""
    rotation = upright(scene)
    now = door(scene, name)
    free = beside(scene, name, 1.0, 0.0, rotation, outer=False).position + 0.05 * now.along
    yield from move(scene, Pose(free + 0.05 * UP, rotation), CLOSED, within=0.025, turned=0.3)
    yield from move(scene, Pose(free, rotation), CLOSED, within=0.02, turned=0.2)
    best, waited = 0.0, 0
    while (angle := door(scene, name).angle) < OPENED and waited < 14:
        best, waited = (angle, 0) if angle > best + 0.01 else (best, waited + 1)
        yield reach(scene, beside(scene, name, share, -0.035, rotation, outer=False), CLOSED)
    yield from move(scene, Pose(scene.hand().position + 0.07 * UP, rotation), CLOSED, within=0.02, turned=1.0)
    return True


def upright(scene: Scene) -> Rotation:
    """Straight down, with the fingers as they are about the vertical."""
    return frame(scene.hand().rotation[:, 0] * np.array([1.0, 1.0, 0.0]), -UP)


def beside(scene: Scene, name: str, share: float, gap: float, rotation: Rotation, outer: bool) -> Pose:
    """The closed fingers upright beside the door's board, `gap` (m) off it, at `share` of its width from the hinge."""
    now = door(scene, name)
    thick = PAD
    off = now.outer + thick + gap if outer else now.inner - thick - gap
    tips = now.hinge + share * now.width * now.along + off * now.outward
    return Pose(np.array([tips[0], tips[1], now.top - DEPTH + TIP]), rotation)


def door(scene: Scene, name: str) -> Door:
    """A fixture's one door as it is now."""
    (joint,) = scene.joints(name)
    hinge, axis = scene.joint_frame(joint.name)
    far = joint.low if abs(joint.low) > abs(joint.high) else joint.high
    parts = scene.parts(scene.joint_body(joint.name))
    board = max(parts, key=lambda part: float(np.prod(np.sort(_size(part.points))[1:])))
    along, width = _rectangle(board.points, (board.points.mean(0) - hinge) * np.array([1.0, 1.0, 0.0]))
    opening = float(np.sign(far) * np.sign(axis[2]))
    outward = opening * np.cross(UP, along)  # a door swings out to where its free edge begins to move
    depth = (board.points - hinge) @ outward
    reaches = [float((part.points @ outward).max()) for part in parts]
    foremost = [part for part, out in zip(parts, reaches, strict=True) if out > max(reaches) - 0.003]
    grip = max(foremost, key=lambda part: float(np.ptp(part.points[:, 2])))
    handle = (grip.points.min(0) + grip.points.max(0)) / 2
    top = float(board.points[:, 2].max())
    return Door(hinge, along, outward, width, top, float(depth.min()), float(depth.max()), handle, opening, abs(joint.value))


def _size(points: np.ndarray) -> np.ndarray:
    centered = points - points.mean(0)
    return np.ptp(centered @ np.linalg.svd(centered, full_matrices=False)[2].T, axis=0)


def _rectangle(points: np.ndarray, towards: Vector) -> tuple[Vector, float]:
    """The horizontal direction in which a board is long, on the side of `towards`, and how far it reaches from the hinge."""
    flat = points[:, :2] - points[:, :2].mean(0)
    direction = np.array([*np.linalg.svd(flat, full_matrices=False)[2][0], 0.0])
    direction = direction * np.sign(direction @ towards)
    return direction, float(np.ptp(points @ direction))
