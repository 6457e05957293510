"""Where a thing may be put down so that a predicate comes true, and putting it there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .cloud import CELL, Clouds, Heights
from .goals import Predicate
from .motion import turn_about
from .scene import Points, Pose, Rotation, Scene, Vector

UP = np.array([0.0, 0.0, 1.0])
STEP = 0.015  # m between candidates
NEAR = 0.03  # m, LIBERO's tolerance of one thing's being on another
REST = 0.006  # m within which a point of the thing counts as supported
# What a place costs: a turn (rad), metres from the middle, an unsure predicate, an unsteady rest.
TURN, OFF, UNSURE, UNSTEADY = 0.2, 3.0, 0.3, 0.6


class Place(NamedTuple):
    """A pose of a thing's body at which it rests, or nearly, a cost to compare by, and offsets (m) by which it comes there.

    Without such a `way` it comes straight from above.
    """

    pose: Pose
    cost: float
    way: tuple[Vector, ...] = ()


def places(scene: Scene, clouds: Clouds, predicate: Predicate, spread: bool = False, ceiling: float = np.inf) -> list[Place]:
    """Poses of `predicate[1]` that make "on" or "in" `predicate[2]` true when it is let down from above; cheapest first.

    Args:
        spread: keep to the far side of a region that others are to share.
        ceiling: m; what is higher is disregarded.
    """
    _, thing, target = predicate
    now, middle = scene.pose(thing), scene.pose(target).position
    body = now.to_local(clouds.of(thing))
    size = float(np.linalg.norm(body, axis=1).max())
    half = _half(scene, target)
    low, high = middle - half - size - 0.02, middle + half + size + 0.02
    low[2], high[2] = middle[2] - 0.6, min(middle[2] + 0.6, ceiling)
    heights = Heights(clouds.around(low, high, (thing,)), low, high)
    found: list[Place] = []
    for rotations in (_rotations(scene, target, now), _leaning(now)):
        for rotation, turned in rotations:
            found += _resting(scene, predicate, body @ rotation.T, rotation, turned, heights, spread)
        if found:
            break
    return sorted(found, key=lambda item: item.cost)


def _resting(
    scene: Scene, predicate: Predicate, body: Points, rotation: Rotation, turned: float, heights: Heights, spread: bool
) -> list[Place]:
    """The places of a thing that is turned so, with `body` its surface about its own origin."""
    profile, middle, found = _bottom(body), scene.pose(predicate[2]).position, []
    for offset in _offsets(_half(scene, predicate[2])):
        spot = middle + offset
        shifted = profile + np.array([spot[0], spot[1], 0.0])
        gaps = shifted[:, 2] - heights.under(shifted)
        height = -float(gaps.min())
        if not np.isfinite(height):
            continue
        position = np.array([spot[0], spot[1], height])
        if not would_hold(scene, predicate, position):
            continue
        cost = TURN * turned + OFF * (0.06 - float(offset[1]) if spread else float(np.linalg.norm(offset[:2])))
        cost += UNSURE * _unsure(scene, predicate, position) + UNSTEADY * _unsteady(profile, gaps + height)
        found.append(Place(Pose(position, rotation), cost))
    return found


def would_hold(scene: Scene, predicate: Predicate, position: np.ndarray) -> bool:
    """Whether "on" or "in" would be true with the thing's body at `position` and at rest there: LIBERO's own tests."""
    kind, _, target = predicate
    if target not in scene.sites:
        base = scene.pose(target).position
        return bool(np.linalg.norm(position[:2] - base[:2]) < NEAR and position[2] >= base[2])
    site, region = scene.env.object_sites_dict[target], scene.pose(target)
    test = site.in_box if kind == "in" else site.under
    return bool(test(region.position, region.rotation, position))


def _half(scene: Scene, target: str) -> np.ndarray:
    """Half sizes of the part of the target that positions are searched in, world."""
    if target not in scene.sites:
        return np.array([0.01, 0.01, 0.0])
    return np.abs(scene.pose(target).rotation @ scene.region(target))


def _offsets(half: np.ndarray) -> list[np.ndarray]:
    axes = [np.arange(-int(h / STEP), int(h / STEP) + 1) * STEP for h in half[:2]]
    found = [np.array([x, y, 0.0]) for x in axes[0] for y in axes[1]]
    return sorted(found, key=lambda item: float(np.linalg.norm(item)))


def _rotations(scene: Scene, target: str, now: Pose) -> Sequence[tuple[Rotation, float]]:
    """The thing's rotations to try and by how much each turns it, rad: about the vertical."""
    turns = {0.0}
    base = scene.pose(target).rotation
    along = base[:, int(np.argmax(np.abs(base[0])))]
    yaw = np.arctan2(along[1], along[0])
    for axis in now.rotation.T:
        if abs(axis[2]) < 0.5:
            off = yaw - np.arctan2(axis[1], axis[0])
            turns |= {float((off + k * np.pi / 2 + np.pi) % (2 * np.pi) - np.pi) for k in range(4)}
            break
    turns |= {k * np.pi / 4 for k in (-2, -1, 1, 2)}
    return [(turn_about(UP, turn) @ now.rotation, abs(turn)) for turn in sorted(turns, key=abs)]


def _leaning(now: Pose) -> Sequence[tuple[Rotation, float]]:
    """The thing leaning to each side, for where there is no room to stand."""
    sides = [turn_about(UP, turn) @ np.array([1.0, 0.0, 0.0]) for turn in np.arange(4) * np.pi / 2]
    return [(turn_about(side, lean) @ now.rotation, lean) for lean in (0.8, 1.1, 1.4) for side in sides]


def _bottom(points: Points) -> Points:
    """The lowest point of each cell of the x-y plane."""
    cells = np.floor(points[:, :2] / CELL).astype(np.int64)
    order = np.lexsort([points[:, 2], cells[:, 1], cells[:, 0]])
    cells, points = cells[order], points[order]
    first = np.ones(len(points), dtype=bool)
    first[1:] = (np.diff(cells, axis=0) != 0).any(1)
    return points[first]


def _unsure(scene: Scene, predicate: Predicate, position: np.ndarray) -> float:
    """The share of positions a centimetre beside where the predicate would be false."""
    shifts = 0.01 * np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 0.5], [0, 0, -0.2]])
    return float(np.mean([not would_hold(scene, predicate, position + shift) for shift in shifts]))


def _unsteady(profile: Points, gaps: np.ndarray) -> float:
    """How far the origin is from being within what supports the thing: 0 steady, 1 not at all."""
    support = profile[gaps < REST, :2]
    low, high = support.min(0), support.max(0)
    size = np.ptp(profile[:, :2], axis=0)
    return float(min(1.0, (np.maximum(low + 0.004, 0) / size + np.maximum(0.004 - high, 0) / size).max() * 4))
