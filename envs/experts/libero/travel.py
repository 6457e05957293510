"""Going from one place to another over what stands in between."""

from __future__ import annotations

import numpy as np

from .cloud import COARSE, Clouds, Heights, Obstacle, thinned
from .motion import Skill, move
from .scene import MAX_OPENING, Points, Pose, Scene

CLEAR = 0.02  # m kept above what is passed over
HAND = 0.1  # m, half of the palm's width
PALM = 0.031  # m from the grip site up to the palm
ASIDE = (0.0, 0.03, 0.06, 0.09, 0.12)  # m that are tried to get from under something
LEANING = -0.97  # z of the direction out of the hand, above which it leans and has to come in along that direction
BACK = (0.11, 0.15)  # m along its own axis that a leaning hand may begin before what it takes
DESCENT = (0.0, 0.04, 0.08, 0.12, 0.16)  # m above there where it must fit too
TIP = 0.0095  # m from the grip site down to the fingertips


def over(clouds: Clouds, start: Pose, end: Pose, below: float, wide: float, without: tuple[str, ...]) -> float:
    """The lowest height of the grip site at which the hand passes from `start` to `end` without touching anything.

    Args:
        below: how far what is carried (or the fingertips) reaches below the grip site, m.
        wide: its half width, m.
        without: what is carried, and so not in the way.
    """
    ends = np.stack([start.position, end.position])
    low, high = ends.min(0) - HAND - 0.02, ends.max(0) + HAND + 0.02
    low[2], high[2] = ends[:, 2].min() - 0.5, ends[:, 2].max() + 0.6
    heights = Heights(clouds.around(low, high, without), low, high)
    way = start.position + np.linspace(0, 1, 40)[:, None] * (end.position - start.position)
    carried = heights.grown(min(wide, 0.1)).under(way).max() + below
    return float(max(carried, heights.grown(HAND).under(way).max() - PALM)) + CLEAR


def reach_of(cloud: Points, hand: Pose) -> tuple[float, float]:
    """How far a carried thing reaches below the grip site, and sideways from it, m; not less than the fingers do."""
    gap = cloud - hand.position
    return max(TIP, float(-gap[:, 2].min())), max(0.03, float(np.linalg.norm(gap[:, :2], axis=1).max()))


def approach(scene: Scene, clouds: Clouds, target: Pose, grip: float, without: tuple[str, ...], above: float = 0.07) -> Skill:
    """With the empty hand, turned as in `target`, to `above` (m) before it or higher, from where it is straight ahead."""
    hand = scene.hand()
    height = over(clouds, hand, target, TIP, 0.035, without)
    if hand.position[2] < height - CLEAR:
        yield from move(scene, at_height(hand, height), grip, within=0.03, turned=3.2)
    before = _back(clouds, target, above, without)
    top = at_height(before, max(height, float(before.position[2])))
    leaning = target.rotation[2, 2] > LEANING
    there = yield from move(scene, top, grip, within=0.015 if leaning else 0.03, turned=0.15 if leaning else 0.25)
    if leaning:
        there = yield from move(scene, before, grip, within=0.015, turned=0.15)
    return there


def _back(clouds: Clouds, target: Pose, above: float, without: tuple[str, ...]) -> Pose:
    """`target` drawn back by `above` (m) or, where the leaning hand couldn't come down to there, farther."""
    back = [Pose(target.position - by * target.rotation[:, 2], target.rotation) for by in (above, *BACK)]
    if target.rotation[2, 2] <= LEANING:
        return back[0]
    low, high = target.position - 0.4, target.position + 0.4
    around = Obstacle(thinned(clouds.around(low, high, without), COARSE))
    free = [item for item in back if not any(around.hits(raised(item, up), MAX_OPENING, 0.004) for up in DESCENT)]
    return free[0] if free else back[0]


def at_height(pose: Pose, height: float) -> Pose:
    """The same pose, at another height (z of the world, m)."""
    return Pose(np.array([pose.position[0], pose.position[1], height]), pose.rotation)


def raised(pose: Pose, by: float) -> Pose:
    return at_height(pose, float(pose.position[2]) + by)


def clear_above(clouds: Clouds, thing: str, hand: Pose) -> np.ndarray:
    """The shortest way aside, [3], after which nothing is above the thing or the hand that holds it; zero if nothing is."""
    cloud = clouds.of(thing)
    palm = hand.to_world(np.array([[x, y, -PALM] for x in (-HAND, 0.0, HAND) for y in (-0.03, 0.03)]))
    held = np.concatenate([cloud, palm])
    low, high = held.min(0) - ASIDE[-1] - 0.03, held.max(0) + ASIDE[-1] + 0.03
    low[2], high[2] = cloud[:, 2].max() + 0.005, cloud[:, 2].max() + 0.4
    above = Heights(clouds.around(low, high, (thing,)), low, high).grown(0.015)
    turns = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    for far in ASIDE:
        for turn in turns if far else turns[:1]:
            shift = far * np.array([np.cos(turn), np.sin(turn), 0.0])
            if not np.isfinite(above.under(held + shift)).any():
                return shift
    return np.zeros(3)
