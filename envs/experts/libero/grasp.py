"""Where to take hold of a thing: candidate poses of the gripper from the thing's surface alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .cloud import COARSE, PAD, SPACING, Obstacle, thinned
from .motion import axis_angle, nearest_twin
from .scene import Points, Pose, Rotation, Vector

OPENING = 0.08  # m between the open pads
WIDEST = 0.070  # m, of what is taken between them
GAP = 0.012  # m without surface between two walls that are taken one by one
STEEP = 0.02  # m by which both faces together may lean across the pads
STEP = 0.01  # m between candidates across the fingers
DEPTHS = (0.003, 0.0055, 0.008, 0.014, 0.02, 0.027)  # m of the grip site below the highest point that is taken
SAME, SAME_TURN = 0.012, 0.4  # m and rad within which two grasps count as one
SHIFTS = (0.0, 0.015, -0.015, 0.028, -0.028)  # m from the middle between the pads, where one finger has little room
WAY = (0.05, 0.1, 0.15)  # m before a grasp where the hand, on its way there, must fit too
MARGINS = (0.006, 0.01, 0.014)  # m from the hand within which it is getting tight
FLOOR = 0.004  # m kept between fingertips and what is below

# What a candidate costs, so that the best is the lowest; 1 stands for something like a quarter of a metre's detour.
TURN, OFF, SLANT, THICK, SHALLOW, DEEP, TIGHT, SHIFT, LEAN = 0.35, 2.5, 25.0, 3.0, 25.0, 3.0, 0.25, 12.0, 0.6


class Grasp(NamedTuple):
    """A pose of the grip site (world) at which to close, the thickness that is taken (m) and a cost to compare by."""

    hand: Pose
    width: float
    cost: float


def candidates(
    thing: Points,
    around: Points,
    centre: Vector,
    rotations: Sequence[Rotation],
    nominal: Rotation,
    most: int = 12,
    apart: float = SAME,
) -> list[Grasp]:
    """Grasps of `thing` that the open hand can be in without touching anything, the cheapest first.

    Args:
        thing: its surface, world.
        around: the surfaces of what is near, world.
        centre: of mass.
        rotations: of the gripper, to be tried.
        nominal: the gripper's most comfortable rotation; turning away from it costs.
        most: how many to return at most.
        apart: m by which they are apart, unless they are turned differently.
    """
    found: list[Grasp] = []
    for rotation in rotations:
        rotation = nearest_twin(rotation, nominal)
        turned = float(np.linalg.norm(axis_angle(rotation @ nominal.T)))
        local, middle = thing @ rotation, centre @ rotation
        for spot, width, cost in _spots(local, middle):
            found.append(Grasp(Pose(rotation @ spot, rotation), width, cost + TURN * turned))
    found.sort(key=lambda item: item.cost)
    return _free(found, Obstacle(thinned(thing, SPACING)), Obstacle(thinned(around, COARSE)), most, apart)


def _free(found: list[Grasp], thing: Obstacle, around: Obstacle, most: int, apart: float) -> list[Grasp]:
    """The first `most` whose hand touches nothing and that are not nearly the same, dearer where it is tight."""
    kept: list[Grasp] = []
    for item in found:
        if any(_alike(item, other, apart) for other in kept):
            continue
        if thing.hits(item.hand, OPENING, 0.001) or around.hits(item.hand, OPENING, FLOOR / 2, closing=True):
            continue
        if any(around.hits(_before(item.hand, way), OPENING, FLOOR) for way in WAY):
            continue
        tight = sum(around.hits(item.hand, OPENING, margin, closing=True) > 0 for margin in MARGINS)
        kept.append(item._replace(cost=item.cost + TIGHT * tight))
        if len(kept) >= most:
            break
    return sorted(kept, key=lambda item: item.cost)


def _before(hand: Pose, by: float) -> Pose:
    return Pose(hand.position - by * hand.rotation[:, 2], hand.rotation)


def _alike(one: Grasp, other: Grasp, apart: float) -> bool:
    near = float(np.linalg.norm(one.hand.position - other.hand.position)) < apart
    return near and float(np.trace(one.hand.rotation @ other.hand.rotation.T)) > float(1 + 2 * np.cos(SAME_TURN))


def _spots(local: Points, middle: Vector) -> Iterator[tuple[Float[np.ndarray, "3"], float, float]]:
    """In the gripper's axes (approach along z): where the grip site may be, the thickness there, and what it costs."""
    low, high = local[:, 1].min(), local[:, 1].max()
    edge = min(0.006, (high - low) / 2)
    rows = np.concatenate([[middle[1]], np.arange(middle[1] + STEP, high - edge + 1e-9, STEP)])
    rows = np.concatenate([rows, np.arange(middle[1] - STEP, low + edge - 1e-9, -STEP)])
    for row in rows:
        slab = local[np.abs(local[:, 1] - row) < PAD[1, 1]]
        if len(slab) < 4:
            continue
        for top_first in DEPTHS:
            level = slab[:, 2].min() + top_first
            above = slab[slab[:, 2] < level + PAD[1, 2]]
            for wall in _walls(above):
                yield from _judge(wall, row, level, top_first, middle)


def _walls(points: Points) -> list[Points]:
    """Points split where there is a gap along x."""
    points = points[points[:, 0].argsort()]
    return np.split(points, np.flatnonzero(np.diff(points[:, 0]) > GAP) + 1)


def _judge(
    wall: Points, row: float, level: float, depth: float, middle: Vector
) -> Iterator[tuple[Float[np.ndarray, "3"], float, float]]:
    held = wall[wall[:, 2] > level + PAD[0, 2]]
    if len(held) < 4:
        return
    low, high = held[:, 0].min(), held[:, 0].max()
    if wall[:, 0].max() - wall[:, 0].min() > WIDEST:
        return
    overlap = level + PAD[1, 2] - max(float(wall[:, 2].min()), level + PAD[0, 2])
    spot = np.array([(low + high) / 2, row, level])
    slant = _slant(held)
    if slant > STEEP:  # an edge, off which the pads slide
        return
    cost = OFF * float(np.hypot(spot[0] - middle[0], row - middle[1])) + SLANT * slant
    cost += LEAN * min(_lean(held), 1.5) + THICK * float(high - low)
    cost += SHALLOW * max(PAD[1, 2] - PAD[0, 2] - overlap, 0.0) + DEEP * depth
    for shift in SHIFTS:
        if abs(shift) + (high - low) / 2 < OPENING / 2 - 0.006:
            yield spot + np.array([shift, 0.0, 0.0]), float(high - low), cost + SHIFT * abs(shift)


def _slant(held: Points) -> float:
    """By how much the two faces between the pads lean across the fingers, m."""
    faces = _faces(held, 1)
    return float(np.ptp(faces, axis=0).sum())


def _lean(held: Points) -> float:
    """The steeper of the two faces' slopes along the fingers: what is held by a cone slips out."""
    faces = _faces(held, 2)
    return float(np.abs(faces[-1] - faces[0]).max()) / max(0.75 * float(np.ptp(held[:, 2])), 0.004)


def _faces(held: Points, axis: int, bins: int = 4) -> Float[np.ndarray, "bins 2"]:
    """The lowest and the highest x in each of a few equal stretches of `axis`, but for empty ones, [bins, 2]."""
    low, high = held[:, axis].min(), held[:, axis].max()
    index = np.minimum(((held[:, axis] - low) / max(high - low, 1e-9) * bins).astype(int), bins - 1)
    groups = [held[index == i, 0] for i in range(bins)]
    return np.array([[group.min(), group.max()] for group in groups if len(group)])
