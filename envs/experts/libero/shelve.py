"""Putting things under a roof, into shelves and ovens: held from outside and moved in along the open side."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .arm import Arm
from .cloud import COARSE, Clouds, Heights, Obstacle, thinned
from .goals import Predicate
from .grasp import Grasp
from .motion import CLOSED, OPEN, Skill, axis_angle, move, reach, turn_about
from .pick import NOMINAL, grasps_of, held, take
from .place import would_hold
from .scene import Points, Pose, Rotation, Scene, Vector
from .travel import TIP, approach, at_height, over, reach_of

UP = np.array([0.0, 0.0, 1.0])
CELL = 0.005  # m, of the grid that says where there is something
RAISE = 0.01  # m above the rest at which a thing is moved in
DEPTHS = (0.012, 0.02, 0.035, 0.06)  # m of the thing's origin beyond the region's face
ASIDE = (0.0, 0.03, -0.03, 0.06, -0.06)  # m beside the region's middle
TILTS = (0.0, 0.35, 0.6, 0.9, 1.2, np.pi / 2)  # rad by which the hand leans so that the thing goes ahead of it
OUTSIDE = 0.02  # m before the region's face from where it goes straight in
TURN, OFF, DEEP = 0.25, 2.0, 3.0
ENOUGH = 3
FLUSH = 0.008  # m that a thing has to lie behind a face with a door
SIDE, PUSHING = 0.011, 25  # m, half of the closed fingers' thickness; steps that a push lasts


class Solid:
    """Where there is something: a grid of cells over a box."""

    def __init__(self, points: Points, low: Vector, high: Vector) -> None:
        self._low = low
        self._full = np.zeros(np.ceil((high - low) / CELL).astype(int) + 1, dtype=bool)
        self._full[tuple(np.floor((points - low) / CELL).astype(int).T)] = True

    def touched(self, points: Points) -> bool:
        cells = np.floor((points - self._low) / CELL).astype(int)
        cells = cells[((cells >= 0) & (cells < self._full.shape)).all(1)]
        return bool(self._full[tuple(cells.T)].any())


def covered(scene: Scene, clouds: Clouds, predicate: Predicate) -> bool:
    """Whether a region can't be reached from above, for a roof over it."""
    if predicate[0] != "in" or predicate[2] not in scene.sites:
        return False
    middle = scene.pose(predicate[2]).position
    low, high = middle + np.array([-0.02, -0.02, 0.02]), middle + np.array([0.02, 0.02, 0.3])
    return len(clouds.around(low, high, scene.objects)) > 0


def opening(scene: Scene, clouds: Clouds, site: str) -> tuple[Vector, Vector]:
    """The open side of a region: the horizontal direction out of it, and the middle of its face there."""
    region = scene.pose(site)
    half = np.abs(region.rotation @ scene.region(site))
    best: tuple[int, Vector] | None = None
    for x, y in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        out = np.array([x, y, 0.0])
        far = region.position + out * (half + 0.12)
        aside = 0.5 * half * (1 - np.abs(out)) * [1, 1, 0] + [0, 0, 0.01]
        ends = np.stack([region.position - aside, region.position + aside, far - aside, far + aside])
        count = len(clouds.around(ends.min(0), ends.max(0), scene.objects))
        if best is None or count < best[0]:
            best = count, out
    assert best is not None
    return best[1], region.position + best[1] * half


def shelve(scene: Scene, clouds: Clouds, predicate: Predicate, attempt: int) -> Skill:
    """Makes "in" true for a region with a roof; on each further `attempt` another way."""
    thing = predicate[1]
    out, face = opening(scene, clouds, predicate[2])
    found = sorted(ways(scene, clouds, predicate, out, face), key=lambda item: item[0])
    if not found:
        return scene.fail(f"no way to put {thing} under a roof")
    _, grasp, target, away = found[attempt % len(found)]
    yield from approach(scene, clouds, grasp.hand, OPEN, ())
    if not (yield from move(scene, grasp.hand, OPEN, within=0.012, turned=0.08)):
        return scene.fail(f"grasp of {thing} out of reach")
    if not (yield from take(scene, thing, grasp.hand)):
        return scene.fail(f"{thing} is not between the fingers")
    if not (yield from held(scene, thing, _insert(scene, clouds, thing, target, away * out))):
        return False
    hand = scene.hand()
    for _ in range(4):
        yield reach(scene, hand, OPEN)
    yield from move(scene, Pose(hand.position + 0.1 * out, hand.rotation), OPEN, within=0.02, turned=1.0)
    if scene.joints(scene.parent(predicate[2]) or predicate[2]):  # a door is to be closed on it
        yield from _push_in(scene, clouds, thing, out, face)
    return scene.holds(predicate) or scene.fail(f"{thing} does not lie inside")


def ways(
    scene: Scene, clouds: Clouds, predicate: Predicate, out: Vector, face: Vector
) -> Iterator[tuple[float, Grasp, Pose, float]]:
    """Cost, grasp, the thing's pose inside and how far out of there it goes straight; a few that are free of collisions."""
    thing = predicate[1]
    now, cloud = scene.pose(thing), thinned(clouds.of(thing), COARSE / 2)
    body = now.to_local(cloud)
    low, high = face - np.array([0.45, 0.45, 0.25]), face + 0.45
    there = clouds.around(low, high, (thing,))
    solid, near = Solid(there, low, high), Obstacle(thinned(there, COARSE))
    floor = Heights(there[there[:, 2] < scene.pose(predicate[2]).position[2]], low, high)
    grasps, arm, count = grasps_of(scene, clouds, thing, most=24, apart=0.04), Arm(scene), 0
    for rotation, turned in _turns(out):
        turned_body = body @ (rotation @ now.rotation).T
        for aside in ASIDE:
            for depth in DEPTHS:
                spot = face - depth * out + aside * np.cross(UP, out)
                height = floor.rest(turned_body + np.array([spot[0], spot[1], 0.0]))
                if not np.isfinite(height):
                    continue
                target = Pose(np.array([spot[0], spot[1], height + RAISE]), rotation @ now.rotation)
                if not would_hold(scene, predicate, target.position):
                    continue
                inside = turned_body + target.position
                away = max(float(((face - inside) @ out).max()), 0.0) + OUTSIDE
                path = [inside + step * away * out for step in (0.0, 0.25, 0.5, 0.75, 1.0)]
                if any(solid.touched(points) for points in path):
                    continue
                cost = OFF * abs(aside) + DEEP * depth
                for grasp in grasps:
                    hand = target.times(now.inverse().times(grasp.hand))
                    if any(near.hits(Pose(hand.position + s * away * out, hand.rotation), 0.05, 0.003) for s in (0.0, 1.0)):
                        continue
                    if not arm.reaches(hand) or not arm.reaches(Pose(hand.position + away * out, hand.rotation)):
                        continue
                    lean = float(np.linalg.norm(axis_angle(hand.rotation @ NOMINAL.T)))
                    yield cost + grasp.cost + TURN * (turned + lean), grasp, target, away
                    count += 1
                    break
                if count >= ENOUGH:
                    return


def _push_in(scene: Scene, clouds: Clouds, thing: str, out: Vector, face: Vector) -> Skill:
    """What still stands out of the face is pushed in with the tips of the closed fingers, the hand turned as it is."""
    rotation = scene.hand().rotation

    def touching(gap: float) -> Pose:
        cloud = clouds.of(thing)
        ahead = cloud @ out
        foremost = cloud[ahead > ahead.max() - 0.004].mean(0)
        return Pose(foremost + (gap + SIDE) * out - TIP * rotation[:, 2], rotation)

    if ((clouds.of(thing) - face) @ out).max() < -FLUSH:
        return True
    yield from move(scene, touching(0.03), CLOSED, within=0.012, turned=0.3)
    for _ in range(PUSHING):
        if ((clouds.of(thing) - face) @ out).max() < -FLUSH:
            break
        yield reach(scene, touching(-0.04), CLOSED, speed=0.7)
    hand = scene.hand().position
    return (yield from move(scene, Pose(hand + 0.08 * out, rotation), CLOSED, within=0.03, turned=1.0))


def _turns(out: Vector) -> list[tuple[Rotation, float]]:
    """Turns of hand and thing together: about the vertical, then leaning so that the hand points in."""
    lean = np.cross(UP, out)
    found = []
    for tilt in TILTS:
        for yaw in (0.0, np.pi / 4, -np.pi / 4, np.pi / 2, -np.pi / 2):
            rotation = turn_about(lean, tilt) @ turn_about(UP, yaw)
            found.append((rotation, abs(tilt) + abs(yaw)))
    return sorted(found, key=lambda item: item[1])


def _insert(scene: Scene, clouds: Clouds, thing: str, target: Pose, away: Vector) -> Skill:
    """Over to before the face, down to the target's height, and in."""
    start = scene.hand()
    before = Pose(target.position + away, target.rotation)
    goal = before.times(scene.pose(thing).inverse().times(start))
    below, wide = reach_of(clouds.of(thing), start)
    height = max(over(clouds, start, goal, below, wide, (thing,)), goal.position[2])
    yield from move(scene, at_height(start, max(height, start.position[2] + 0.03)), CLOSED, within=0.03, turned=3.2)
    yield from move(scene, at_height(goal, height), CLOSED, within=0.03, turned=0.3)
    for pose, within in ((before, 0.015), (target, 0.01)):
        best, waited = np.inf, 0
        for _ in range(60):
            goal = pose.times(scene.pose(thing).inverse().times(scene.hand()))
            far = float(np.linalg.norm(goal.position - scene.hand().position))
            if far < within:
                break
            best, waited = (far, 0) if far < best - 0.001 else (best, waited + 1)
            if waited > 8:
                break
            yield reach(scene, goal, CLOSED, speed=0.7)
    return True
