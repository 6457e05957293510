"""Places in an open drawer: level, below its frame, and reached past what hangs over it (handles of the drawers above)."""

from __future__ import annotations

import numpy as np

from .cloud import Clouds, Heights
from .goals import Predicate
from .motion import CLOSED, Skill, move, pointing_down, reach
from .place import Place, places
from .scene import Points, Pose, Scene, Vector
from .travel import TIP, approach, raised
from .wrist import easy_twin

SHIFTS = np.arange(0.0, 0.081, 0.005)  # m towards the drawer's front at which a thing may come down before it goes in
GAP = 0.004  # m kept to what is above
SQUEEZE = 0.02  # m of what is above that a thing, which turns between the fingers, may be too high for on its way in
CLEAR = 0.003  # m by which a thing is carried above what it just doesn't touch
FRAME = 0.004  # m above the drawer's walls up to which a thing still passes under the frame
DEARER = 4.0  # what a metre of going in sideways costs
MOST = 12
EDGE, PRESSED, BESIDE, FURTHER = 0.006, 0.014, 0.02, 0.045  # m: what counts as the highest edge; where it is pushed, how far
STEPS = 12  # that a push lasts


def in_drawer(scene: Scene, predicate: Predicate) -> bool:
    """Whether `predicate` is about the inside of a drawer."""
    return predicate[0] == "in" and predicate[2] in scene.sites and bool(scene.joints(predicate[2]))


def sticks_out(scene: Scene, clouds: Clouds, predicate: Predicate) -> bool:
    """Whether a thing in a drawer is higher than the drawer's walls, so that the drawer can't be closed."""
    return float(clouds.of(predicate[1])[:, 2].max()) > _top(scene, clouds, predicate[2]) + FRAME


def cramped(scene: Scene, clouds: Clouds, predicate: Predicate) -> bool:
    """Whether a thing can't be let down into a drawer from straight above, for what hangs over it."""
    return all(item.way for item in drawer_places(scene, clouds, predicate))


def drawer_places(scene: Scene, clouds: Clouds, predicate: Predicate) -> list[Place]:
    """Poses of `predicate[1]` in the drawer of the region `predicate[2]` in which it doesn't stick out; cheapest first."""
    _, thing, target = predicate
    top = _top(scene, clouds, target)
    _, axis = scene.joint_frame(scene.joints(target)[0].name)
    (joint,) = scene.joints(target)
    outward = axis * np.sign(joint.low + joint.high)
    now, middle = scene.pose(thing), scene.pose(target).position
    body = now.to_local(clouds.of(thing))
    size = float(np.linalg.norm(body, axis=1).max())
    reach = np.append(np.full(2, 0.15 + size + SHIFTS[-1]), 0.6)
    low, high = middle - reach, middle + reach
    around = clouds.around(low, high, (thing,))
    above = around[:, 2] > top + FRAME
    inside, over = Heights(around[~above], low, high), Heights(around[above] * [1, 1, -1], low, high).grown(GAP)
    found: list[Place] = []
    for place in places(scene, clouds, predicate, ceiling=top + FRAME):
        surface = body @ place.pose.rotation.T
        if float(surface[:, 2].max()) + place.pose.position[2] > top + FRAME:
            continue
        way = _way(surface, place.pose.position, outward, inside, over)
        if way is not None:
            far = float(np.linalg.norm(way[0][:2])) if way else 0.0
            found.append(place._replace(cost=place.cost + DEARER * far, way=tuple(way)))
        if len(found) >= MOST:
            break
    return sorted(found, key=lambda item: item.cost)


def _way(surface: Points, spot: Vector, outward: Vector, inside: Heights, over: Heights) -> list[Vector] | None:
    """Offsets from `spot` by which the thing comes in, from where nothing is above it; None when there is no such way."""
    offsets: list[Vector] = []
    for shift in SHIFTS:
        there = surface + spot + shift * outward
        roof = -over.under(there)
        if not shift and not np.isfinite(roof).any():
            return []
        rise = max(inside.rest(there) + CLEAR, 0.0) if shift else 0.0
        if (there[:, 2] + rise > roof + SQUEEZE - GAP).any():
            return None
        offsets.insert(0, shift * outward + np.array([0.0, 0.0, rise]))
        if not np.isfinite(roof).any():
            return offsets[:-1]
    return None


def _top(scene: Scene, clouds: Clouds, region: str) -> float:
    """The upper edge of a drawer's walls, m."""
    return float(clouds.of(scene.joint_body(scene.joints(region)[0].name))[:, 2].max())


def tuck(scene: Scene, clouds: Clouds, predicate: Predicate, attempt: int) -> Skill:
    """Makes a thing that leans in a drawer lie in it: its highest edge is pushed down, or aside every second time."""
    thing, target = predicate[1], predicate[2]
    cloud = clouds.of(thing)
    top = float(cloud[:, 2].max())
    edge = cloud[cloud[:, 2] > top - EDGE].mean(0)
    ahead = (scene.pose(thing).position - edge) * [1.0, 1.0, 0.0]
    ahead = ahead / max(float(np.linalg.norm(ahead)), 1e-9)
    rotation = easy_twin(scene, pointing_down(float(np.arctan2(ahead[0], -ahead[1]))))
    low = max(top - PRESSED, _top(scene, clouds, target) + FRAME)
    ends = (np.append((edge - BESIDE * ahead)[:2], low + TIP), np.append((edge + FURTHER * ahead)[:2], low + TIP))
    if attempt % 2 == 0:
        ends = (np.append(edge[:2], top + TIP), np.append(edge[:2], top + TIP - FURTHER))
    start = Pose(ends[0], rotation)
    yield from approach(scene, clouds, start, CLOSED, (), above=0.05)
    yield from move(scene, start, CLOSED, within=0.008, turned=0.15)
    for _ in range(STEPS):
        if not sticks_out(scene, clouds, predicate):
            break
        yield reach(scene, Pose(ends[1], rotation), CLOSED)
    yield from move(scene, raised(scene.hand(), 0.08), CLOSED, within=0.02, turned=1.0)
    return not sticks_out(scene, clouds, predicate) or scene.fail(f"{thing} sticks out of the drawer")


def shifted(pose: Pose, by: Vector) -> Pose:
    """The same pose, elsewhere."""
    return Pose(pose.position + by, pose.rotation)
