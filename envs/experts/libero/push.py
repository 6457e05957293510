"""Flat round things pushed over the table, between the open fingers."""

from __future__ import annotations

from itertools import product

import numpy as np
from jaxtyping import Float

from .motion import OPEN, Skill, frame, move, reach
from .scene import MAX_OPENING, Pose, Rotation, Scene
from .wrist import easy_twin

Point = Float[np.ndarray, "2"]

UP = np.array([0.0, 0.0, 1.0])
TIP = 0.009  # m from the grip site to the finger tips
THICK = 0.010  # m, half a finger's width across the direction in which it opens
MARGIN = 0.01  # m inside the region's border
STEER = 1.5  # of the distance from the course, to the side of the fingers' goal
LEAD = 0.035  # m by which the fingers' goal is ahead of them: what pushes


def push_to(scene: Scene, name: str, site: str, attempt: int = 0) -> Skill:
    """Pushes an object straight ahead until its middle is well inside a region of the table; then lifts the hand.

    The fingers, open and low behind the object, hold it between them, so that it keeps its course.

    Args:
        name: of the object, such as "plate_1"; round, seen from above.
        site: of the region.
        attempt: from 0; another lean of the hand each time.
    """
    end = destination(scene, name, site)
    radius = _radius(scene, name)
    behind = float(np.sqrt(max(radius**2 - (MAX_OPENING / 2) ** 2, 0.0))) + THICK
    lean = np.radians((20, 10, 30)[attempt % 3])
    low = scene.corners(name)[:, 2].min() + (0.006, 0.008, 0.005)[attempt % 3]

    heading = (end - scene.pose(name).position[:2]) / np.linalg.norm(end - scene.pose(name).position[:2])
    rotation = leaning(scene, heading, lean)

    def fork(gap: float, height: float, lead: Point) -> Pose:
        """The tips `gap` (m) short of touching the object, `height` above its foot, shifted by `lead`."""
        tips = np.array([*(scene.pose(name).position[:2] - (behind + gap) * heading + lead), low + height])
        return Pose(tips - TIP * rotation[:, 2], rotation)

    none = np.zeros(2)
    yield from move(scene, fork(0.02, 0.06, none), OPEN, within=0.02, turned=0.2)
    yield from move(scene, fork(0.01, 0.0, none), OPEN, within=0.01, turned=0.2)
    best, waited = np.inf, 0
    while waited < 10:
        left = end - scene.pose(name).position[:2]
        far = float(np.linalg.norm(left))
        if far < 0.006:
            break
        best, waited = (far, 0) if far < best - 0.002 else (best, waited + 1)
        along = float(left @ heading)
        across = STEER * (left - along * heading)
        lead = heading * np.clip(along + 0.008, 0.0, LEAD) + across * min(1.0, LEAD / max(float(np.linalg.norm(across)), 1e-6))
        yield reach(scene, fork(0.0, 0.0, lead), OPEN)
    yield from move(scene, fork(0.03, 0.08, none), OPEN, within=0.02, turned=1.0)
    return scene.holds(["on", name, site])


def leaning(scene: Scene, ahead: Point, lean: float) -> Rotation:
    """The fingers side by side across the course, the hand leaning over what they push."""
    forward = np.array([*ahead, 0.0])
    return easy_twin(scene, frame(np.cross(UP, forward), -np.cos(lean) * UP - np.sin(lean) * forward))


def destination(scene: Scene, name: str, site: str) -> Point:
    """A point of the region where the object comes least into others, on the way and there."""
    start, radius = scene.pose(name).position[:2], _radius(scene, name)
    others = [scene.corners(item)[:, :2] for item in scene.objects if item != name]
    region, inset = scene.pose(site), np.maximum(scene.region(site)[:2] - MARGIN, 0.0)
    best, found = np.inf, region.position[:2]
    for x, y in product((0.0, -0.5, 0.5, -1.0, 1.0), repeat=2):
        end = region.to_world(np.array([x * inset[0], y * inset[1], 0.0]))[:2]
        track = np.linspace(start, end, 12)
        overlap = sum(max(0.0, radius - _distance(track, points)) for points in others)
        cost = float(np.linalg.norm(end - start)) + 10 * overlap
        if cost < best:
            best, found = cost, end
    return found


def _radius(scene: Scene, name: str) -> float:
    return float(np.linalg.norm(scene.corners(name)[:, :2] - scene.pose(name).position[:2], axis=1).max())


def _distance(track: Float[np.ndarray, "n 2"], points: Float[np.ndarray, "m 2"]) -> float:
    """From a track to a thing's footprint, taken as the box around its corners."""
    outside = np.maximum(np.maximum(points.min(0) - track, track - points.max(0)), 0.0)
    return float(np.linalg.norm(outside, axis=1).min())
