"""Demonstrators of robosuite's Lift, Can and Square: from the poses of the thing and the hand to OSC_POSE actions.

Each is a plan of straight moves: over the thing, down, close, up, to where it belongs, down, open, away. A thing that is not
between the fingers, or slips out, is picked up again from where it is then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float32

from ..base import Values
from .libero.motion import (
    CLOSED,
    OPEN,
    Skill,
    close_fingers,
    move,
    nearest_twin,
    open_fingers,
    pointing_down,
    reach,
    turn_about,
)
from .libero.scene import Pose, Rotation, Scene, Vector

ATTEMPTS = 6
UP, FLAT = np.array([0.0, 0.0, 1.0]), np.array([1.0, 1.0, 0.0])

ABOVE = 0.06  # m over the place of a grasp, from where the hand goes straight down
CARRY = 0.12  # m over the table to which Lift's cube is taken: success is at 0.04

CAN_FLOOR = 0.065  # m of the can's middle over a bin's floor where it is let go; standing it is 0.06
NEAR = np.array([-0.045, -0.04, 0.0])  # m from the middle of its place to where it is put: the middle is at the arm's reach
OVER_WALL = 0.18  # m of the can's middle over its place, so that it passes the bins' walls

HANDLE = 0.056  # m from the nut's middle to the middle of its handle
PEG_TOP = 0.95  # m
# m of the nut's middle from the peg's top: where it is lowered from, and on the way there, on the robot's side: beyond the peg
# the arm would be straight, from where its controller doesn't bring it back.
OVER_PEG, BEFORE_PEG = np.array([0.0, 0.0, 0.025]), np.array([-0.03, 0.0, 0.05])
LEVEL = 0.9  # cosine of the nut's tilt up to which it is carried off
SEATED, ON_PEG = 0.85, 0.87  # m, the nut's middle where it is let go, and under which that is success
WAYS = {np.pi: 0.0, -np.pi / 2: 2.5, np.pi / 2: 4.0}
"""Headings of the handle on the peg (rad), at a price: towards the robot; to its right and left, as far as the arm reaches."""
TURN, LAST = 2.6, (-1.95, 3.4)  # rad: most of a turn, lest it be made the other way; and how far the last joint goes from home
CENTRED, SQUARE = 0.004, 0.08  # m and rad within which the nut is lowered: it has 7 mm of play around the peg


class Table(Scene):
    """A robosuite task as its demonstrator sees it: the hand, and the one thing that counts."""

    def __init__(self, task: str, env: Any) -> None:
        robot = env.robots[0]
        gripper = robot.gripper["right"] if isinstance(robot.gripper, dict) else robot.gripper
        fingers = robot._ref_gripper_joint_pos_indexes
        self.env, self.model = env, env.sim.model._model
        self._grip_site = self.model.site(gripper.important_sites["grip_site"]).id
        self._joints = list(fingers["right"] if isinstance(fingers, dict) else fingers)
        body = env.cube.root_body if task == "lift" else {"can": "Can_main", "square": "SquareNut_main"}[task]
        self._body = self.model.body(body).id

    def hand(self) -> Pose:
        data = self.data
        return Pose(data.site_xpos[self._grip_site].copy(), data.site_xmat[self._grip_site].reshape(3, 3).copy())

    def opening(self) -> float:
        return float(np.abs(self.data.qpos[self._joints]).sum())

    def thing(self) -> Pose:
        return Pose(self.data.xpos[self._body].copy(), self.data.xmat[self._body].reshape(3, 3).copy())

    def held(self) -> bool:
        """Whether there is something between the fingers, and it is the thing."""
        return self.opening() > 0.004 and float(np.linalg.norm(self.thing().position - self.hand().position)) < 0.08


class RobosuiteExpert:
    """Demonstrates `task` in robosuite's environment `env`, for one episode; when it is done, the hand stays where it is."""

    def __init__(self, task: str, env: Any) -> None:
        self._table = Table(task, env)
        self._skill = {"lift": lift, "can": bring_can, "square": put_nut}[task](self._table)

    def act(self, observation: Values) -> Float32[np.ndarray, "action"]:
        action = next(self._skill, None)
        return reach(self._table, self._table.hand(), OPEN) if action is None else action


def lift(table: Table) -> Skill:
    """The cube, straight up."""
    for _ in range(ATTEMPTS):
        rotation = _across(table, table.thing().rotation, sides=4)
        if not (yield from _grasp(table, _middle, rotation, within=0.006)):
            continue
        hand = table.hand()
        if (yield from _carry(table, Pose(hand.position + CARRY * UP, hand.rotation), within=0.01)):
            return True
    return False


def bring_can(table: Table) -> Skill:
    """The can, from the one bin to its place in the other."""
    place = np.array(table.env.target_bin_placements[table.env.object_id]) + NEAR
    for _ in range(ATTEMPTS):
        can, now = table.thing(), table.hand().rotation
        standing = abs(can.rotation[2, 2]) > 0.7
        side = now[:, 0] if standing else np.cross(UP, can.rotation[:, 2])
        rotation = _down(side, now)
        if not (yield from _grasp(table, _middle, rotation, within=0.012)):
            continue
        hand = table.hand()
        offset = hand.position - table.thing().position  # where it was grasped is where it stays in the hand
        over = place + OVER_WALL * UP + offset
        way = (np.array([*hand.position[:2], over[2]]), 0.03), (over, 0.02), (place + CAN_FLOOR * UP + offset, 0.012)
        for target, within in way:
            if not (yield from _carry(table, Pose(target, rotation), within)):
                break
        else:
            return (yield from _leave(table))
    return False


def put_nut(table: Table) -> Skill:
    """The square nut, over the square peg."""
    peg, home = table.data.xpos[table.env.peg1_body_id].copy(), _heading(table.hand().rotation)
    for _ in range(ATTEMPTS):
        grip, way = _turns(_heading(table.thing().rotation), home)
        rotation = pointing_down(grip)
        if not (yield from _grasp(table, _handle, rotation, within=0.008, over=0.012)):
            continue
        lifted = np.array([*table.hand().position[:2], PEG_TOP + BEFORE_PEG[2]])
        if not (yield from _carry(table, Pose(lifted, rotation), within=0.03)):
            continue
        if table.thing().rotation[2, 2] < LEVEL:  # a finger came down on the handle
            continue
        if (yield from _thread(table, peg, turn_about(UP, way))):
            return (yield from _leave(table))
    return False


def _turns(handle: float, home: float) -> tuple[float, float]:
    """Headings of the hand for grasping a nut whose handle points to `handle`, and of the handle on the peg.

    The nut is square and the fingers are alike, so that there are eight ways. Those are left out whose turns the hand's last
    joint can't make, and those with the hand beyond the peg, where the arm doesn't reach.
    """
    found = []
    for grip in (handle + np.pi / 2, handle - np.pi / 2):
        before = _wrapped(grip - home)
        for way, price in WAYS.items():
            turn = _wrapped(way - handle)
            if (
                max(abs(before), abs(turn)) <= TURN
                and LAST[0] <= min(before, before + turn) <= max(before, before + turn) <= LAST[1]
            ):
                found.append((before**2 + turn**2 + price, home + before, way))
    return min(found)[1:]


def _middle(thing: Pose) -> Vector:
    return thing.position


def _handle(nut: Pose) -> Vector:
    return nut.position + HANDLE * nut.rotation[:, 0]


def _thread(table: Table, peg: np.ndarray, upright: Rotation) -> Skill:
    """The nut in the hand, over the peg and down; true when it is on it. What is servoed is the nut's pose, not the hand's."""
    before, over = PEG_TOP * UP + BEFORE_PEG, PEG_TOP * UP + OVER_PEG
    for _ in range(3):
        for place, within, turned, speed in (
            (before, 0.02, 0.3, 1.0),
            (over, CENTRED, SQUARE, 0.5),
            (SEATED * UP, 0.01, 0.5, 0.7),
        ):
            target = Pose(peg * FLAT + place, upright)
            best, waited = np.inf, 0
            while waited < 12 and table.held():
                nut = table.thing()
                away = float(np.linalg.norm(target.position - nut.position))
                if (away <= within and _angle(upright, nut.rotation) <= turned) or nut.position[2] < SEATED:
                    break
                best, waited = (away, 0) if away < best - 0.0005 else (best, waited + 1)
                yield reach(table, target.times(nut.inverse().times(table.hand())), CLOSED, speed)
        if not table.held():
            return False
        if table.thing().position[2] < ON_PEG:
            return True
    return False


def _grasp(table: Table, place: Callable[[Pose], Vector], rotation: Rotation, within: float, over: float = 0.02) -> Skill:
    """Open over the grasp, down, closed; true when the thing is between the fingers. Where it is, is asked after each move."""
    hand, above = table.hand(), place(table.thing()) + ABOVE * UP
    if hand.position[2] < above[2] - 0.02:  # after an attempt that failed
        yield from move(table, Pose(np.array([*hand.position[:2], above[2]]), hand.rotation), OPEN, within=0.02)
    yield from move(table, Pose(place(table.thing()) + ABOVE * UP, rotation), OPEN, within=over, turned=0.12)
    yield from move(table, Pose(place(table.thing()), rotation), OPEN, within=within, turned=0.1)
    yield from close_fingers(table, table.hand())
    return table.held()


def _carry(table: Table, target: Pose, within: float, speed: float = 1.0) -> Skill:
    """To `target` with the fingers closed; false when the thing is lost on the way."""
    way = move(table, target, CLOSED, within=within, turned=0.2, speed=speed)
    for action in way:
        if not table.held():
            return False
        yield action
    return table.held()


def _leave(table: Table) -> Skill:
    """Opens and goes up."""
    hand = table.hand()
    yield from open_fingers(table, hand, wide=0.06)
    return (yield from move(table, Pose(hand.position + 0.2 * UP, hand.rotation), OPEN, within=0.01))


def _down(side: np.ndarray, now: Rotation) -> Rotation:
    """The hand straight down with its fingers along `side`, turned least from now."""
    return nearest_twin(pointing_down(float(np.arctan2(side[1], side[0]))), now)


def _across(table: Table, rotation: Rotation, sides: int) -> Rotation:
    """The hand straight down, turned least from now, with its fingers across a thing of so many like sides."""
    heading = _heading(rotation)
    now = table.hand().rotation
    return min((pointing_down(heading + 2 * np.pi * k / sides) for k in range(sides)), key=lambda item: _angle(item, now))


def _heading(rotation: Rotation) -> float:
    """Of its x axis, seen from above, rad."""
    return float(np.arctan2(rotation[1, 0], rotation[0, 0]))


def _wrapped(angle: float) -> float:
    """Between -pi and pi."""
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


def _angle(first: Rotation, second: Rotation) -> float:
    """Between two rotations, rad."""
    return float(np.arccos(np.clip((np.trace(first @ second.T) - 1) / 2, -1.0, 1.0)))
