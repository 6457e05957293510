"""Picking a thing up and putting it down: grasp and place are chosen together, so that the hand fits at both ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .cloud import COARSE, Clouds, Obstacle, thinned
from .goals import Predicate
from .grasp import OPENING, Grasp, candidates
from .motion import CLOSED, FINGERS, OPEN, Skill, axis_angle, move, pointing_down, reach, turn_about
from .place import Place, places
from .scene import Pose, Scene, Vector
from .shake import neighbours, shake_off
from .stow import drawer_places, in_drawer, shifted
from .travel import approach, at_height, clear_above, over, raised, reach_of

NOMINAL = pointing_down(np.pi / 2)  # as the hand is when an episode begins
YAWS = 12
# How the hand leans (axis times angle, rad): not, towards the robot, to either side; ways that are enough.
UPRIGHT, BACK, SIDES, FEW = (0.0, 0.0, 0.0), (0.0, -0.5, 0.0), ((-0.5, 0.0, 0.0), (0.5, 0.0, 0.0)), 3
RAISE = (0.004, 0.02, 0.04, 0.06, 0.08, 0.1)  # m above the rest at which a thing may be let go
STILL, SHUT = 0.0008, 0.001  # m a step, of fingers that hold something; m between those that hold nothing
STRETCH, FAR = 0.7, 8.0  # m from the robot's base, beyond which the arm is nearly straight and slow; what a metre of it costs
STRAIGHT = 0.74  # m from there, beyond which leaning hands are looked for first
NEAR = 0.025  # m from its place
BESIDE, SLOWLY = 0.008, 0.01  # m sideways off, as long as which it is let down by aiming this much lower (m) only
LOOSE = 0.015  # m by which the fingers open before the hand goes
TURN, DROP, BLOCKED, ACROSS = 0.2, 10.0, 5.0, 1.5
MANY = 40  # grasps looked for where few will do


class Plan(NamedTuple):
    """The hand's pose at the grasp and the thing's then (world), where the thing is let go, the cost, a `way` as a place's."""

    grasp: Grasp
    thing: Pose
    release: Pose
    cost: float
    way: tuple[Vector, ...] = ()


def plans(scene: Scene, clouds: Clouds, predicate: Predicate, spread: bool = False) -> list[Plan]:
    """Ways to make "on" or "in" true by moving `predicate[1]`, the cheapest first and each with another grasp."""
    thing = predicate[1]
    now = scene.pose(thing)
    spots = drawer_places(scene, clouds, predicate) if in_drawer(scene, predicate) else []
    spots = spots or places(scene, clouds, predicate, spread)[:12]
    found: list[Plan] = []
    if spots:
        middle = spots[0].pose.position
        there = Obstacle(thinned(clouds.around(middle - 0.3, middle + 0.3, (thing,)), COARSE))
        far = float(np.linalg.norm(now.position[:2] - _base(scene))) > STRAIGHT
        for lean in (BACK, UPRIGHT, *SIDES) if far else (UPRIGHT, *SIDES, BACK):
            for grasp in grasps_of(scene, clouds, thing, MANY if spots[0].way else 12, lean=lean):
                found.append(_best(grasp, now, spots, there))
            if sum(item.cost < BLOCKED for item in found) >= FEW:
                break
    return sorted(found, key=lambda item: item.cost)


def grasps_of(
    scene: Scene, clouds: Clouds, thing: str, most: int = 12, apart: float = 0.02, lean: Sequence[float] = UPRIGHT
) -> list[Grasp]:
    """Grasps of a thing that the hand can be in, the cheapest first: from above, turned by `lean` (axis times angle, rad)."""
    now, cloud = scene.pose(thing), clouds.of(thing)
    around = clouds.around(cloud.min(0) - 0.15, cloud.max(0) + np.array([0.15, 0.15, 0.3]), (thing,))
    centre = scene.data.subtree_com[scene.body(thing)].copy()
    x = now.rotation[:, int(np.argmin(np.abs(now.rotation[2])))]
    yaws = np.arctan2(x[1], x[0]) + np.arange(YAWS) * np.pi / YAWS
    turn = turn_about(np.array(lean), float(np.linalg.norm(lean))) if any(lean) else np.eye(3)
    found = candidates(cloud, around, centre, [turn @ pointing_down(float(yaw)) for yaw in yaws], NOMINAL, most, apart)
    base = _base(scene)
    stretched = [max(0.0, float(np.linalg.norm(item.hand.position[:2] - base)) - STRETCH) for item in found]
    found = [item._replace(cost=item.cost + FAR * far) for item, far in zip(found, stretched, strict=True)]
    return sorted(found, key=lambda item: item.cost)


def _base(scene: Scene) -> np.ndarray:
    """Where the robot stands, [2]."""
    return scene.pose(scene.env.robots[0].robot_model.root_body).position[:2]


def pick_and_place(scene: Scene, clouds: Clouds, predicate: Predicate, attempt: int, spread: bool = False) -> Skill:
    """Makes "on" or "in" true; on each further `attempt` with another grasp. False when it went wrong on the way."""
    thing = predicate[1]
    options = plans(scene, clouds, predicate, spread)
    if not options:
        return scene.fail(f"no way to grasp {thing} and put it there")
    plan = options[attempt % len(options)]
    hand, beside = plan.grasp.hand, neighbours(scene, thing)
    yield from approach(scene, clouds, hand, OPEN, ())
    if not (yield from move(scene, hand, OPEN, within=0.012, turned=0.08)):
        return scene.fail(f"grasp of {thing} out of reach: {np.round(hand.position - scene.hand().position, 3)}")
    if not (yield from take(scene, thing, hand)):
        yield from move(scene, raised(scene.hand(), 0.08), OPEN, within=0.03)
        return scene.fail(f"{thing} is not between the fingers, {scene.opening():.3f} apart")
    if beside and not (yield from held(scene, thing, shake_off(scene, beside))):
        return False
    if not (yield from held(scene, thing, _carry(scene, clouds, thing, plan))):
        return False
    yield from release(scene, plan.way)
    return scene.holds(predicate) or scene.fail(
        f"{thing} lies at {np.round(scene.pose(thing).position - plan.release.position, 3)}"
    )


def take(scene: Scene, thing: str, hand: Pose) -> Skill:
    """Closes the fingers at `hand` until they hold the thing; false when they close on nothing."""
    firm, before = 0, scene.opening()
    for _ in range(FINGERS):
        yield reach(scene, hand, CLOSED)
        now = scene.opening()
        firm = firm + 1 if scene.grasped(thing) and before - now < STILL else 0
        before = now
        if firm >= 2:
            return True
        if now < SHUT:
            break
    return scene.grasped(thing)


def release(scene: Scene, way: Sequence[Vector] = (), up: float = 0.08) -> Skill:
    """Opens the fingers and goes back, by the `way` (m from here) that it came and then up."""
    hand, before = scene.hand(), scene.opening()
    for _ in range(8):
        yield reach(scene, hand, OPEN)
        if scene.opening() > min(before + LOOSE, 0.07):
            break
    for offset in way[::-1]:
        yield from move(scene, shifted(hand, offset), OPEN, within=0.02, turned=3.2)
    return (yield from move(scene, raised(scene.hand() if way else hand, up), OPEN, within=0.03, turned=3.2))


def _carry(scene: Scene, clouds: Clouds, thing: str, plan: Plan) -> Skill:
    """Brings the thing to where it is let go, from above; first from under what it may be under."""
    start = scene.hand()
    aside = clear_above(clouds, thing, start)
    if aside.any():
        start = Pose(start.position + aside + np.array([0.0, 0.0, 0.02]), start.rotation)
        yield from move(scene, start, CLOSED, within=0.015)
    goal = _hand_for(scene, thing, plan.release)
    entry = shifted(goal, plan.way[0]) if plan.way else goal
    below, wide = reach_of(clouds.of(thing), start)
    height = max(over(clouds, start, entry, below, wide, (thing,)), entry.position[2])
    yield from move(scene, at_height(start, max(height, start.position[2] + 0.03)), CLOSED, within=0.03, turned=3.2)
    yield from move(scene, at_height(entry, height), CLOSED, within=0.02, turned=0.2)
    for offset in plan.way:
        yield from move(scene, shifted(goal, offset), CLOSED, within=0.008, turned=3.2, limit=25, stalled=6)
    if plan.way:
        yield from move(scene, goal, CLOSED, within=0.006, turned=3.2, limit=25, stalled=6)
        return True
    best, waited = np.inf, 0
    for _ in range(60):
        goal, hand = _hand_for(scene, thing, plan.release), scene.hand()
        far = float(np.linalg.norm(goal.position - hand.position))
        if far < 0.008:
            return True
        best, waited = (far, 0) if far < best - 0.001 else (best, waited + 1)
        if waited > (6 if far < NEAR else 25):  # it rests on something; farther off the arm is only slow
            return True
        if float(np.linalg.norm((goal.position - hand.position)[:2])) > BESIDE:
            goal = at_height(goal, max(float(goal.position[2]), float(hand.position[2]) - SLOWLY))
        yield reach(scene, goal, CLOSED)
    return True


def _hand_for(scene: Scene, thing: str, target: Pose) -> Pose:
    """Where the hand has to be for what it holds to be at `target`."""
    return target.times(scene.pose(thing).inverse().times(scene.hand()))


def held(scene: Scene, thing: str, skill: Skill) -> Skill:
    """`skill`, given up when the thing has left the hand."""
    lost = 0
    try:
        action = next(skill)
        while True:
            yield action
            lost = 0 if scene.grasped(thing) else lost + 1
            if lost > 4:
                return scene.fail(f"{thing} was lost")
            action = next(skill)
    except StopIteration as end:
        return bool(end.value)


def _best(grasp: Grasp, now: Pose, spots: Sequence[Place], there: Obstacle) -> Plan:
    """Grasp and place together, with the cheapest of the places; of those that cost the same, the first."""
    hands = [spot.pose.times(now.inverse().times(grasp.hand)) for spot in spots]
    least = [_cost(grasp, spot, hand) for spot, hand in zip(spots, hands, strict=True)]
    best: tuple[float, int] | None = None
    plan: Plan | None = None
    for index in sorted(range(len(spots)), key=least.__getitem__):
        if best is not None and least[index] > best[0]:
            break  # whether the hand touches something there, which is what takes the time, no longer matters
        other = _joined(grasp, now, spots[index], hands[index], least[index], there)
        if best is None or (other.cost, index) < best:
            best, plan = (other.cost, index), other
    assert plan is not None
    return plan


def _cost(grasp: Grasp, spot: Place, hand: Pose) -> float:
    """What grasp and place cost together where the hand can let go at once."""
    cost = grasp.cost + spot.cost + TURN * float(np.linalg.norm(axis_angle(hand.rotation @ NOMINAL.T)))
    if spot.way:  # the thing tips on its way in, about the line between the fingers
        cost += ACROSS * abs(float(hand.rotation[:, 0] @ spot.way[0])) / max(float(np.linalg.norm(spot.way[0][:2])), 0.01)
    return cost


def _joined(grasp: Grasp, now: Pose, spot: Place, hand: Pose, cost: float, there: Obstacle) -> Plan:
    """The lowest release at which the hand touches nothing."""
    for lift in RAISE:
        up = raised(hand, lift)
        if not any(_hits(there, shifted(up, offset), grasp) for offset in (np.zeros(3), *spot.way)):
            return Plan(grasp, now, raised(spot.pose, lift), cost + DROP * lift, spot.way)
    return Plan(grasp, now, raised(spot.pose, RAISE[0]), cost + BLOCKED, spot.way)


def _hits(there: Obstacle, hand: Pose, grasp: Grasp) -> int:
    """How many points the hand would touch with its fingers a little wider than they hold."""
    return there.hits(hand, min(grasp.width + 0.03, OPENING), 0.002)
