"""Which push to make next in Push-T: a search over pairs of straight pushes, by simulation, for the pair that ends soonest.

For a push the disc goes round the block to a place before one of its sides, then along that side's normal. What is chosen is
a function of where disc and block are, with no chance in it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .pusht_model import RADIUS, Numbers, Poses, pose_of, push, to_block, to_world
from .pusht_ways import BEFORE, CONTACTS, CORNERS, MARGIN, NORMALS, TOUCH, distances, way, within

GOAL = pose_of(256.0, 256.0, np.pi / 4)

SPEED = 13.0  # px a control step, that plans are timed by
EFFORT = 6.0  # control steps that any push costs beside its way: slowing down, turning, starting
NEXT = 14.0  # control steps to a further push that is not simulated
STRIDE = 2.0  # px a simulated move
LONGEST = 90  # simulated moves of a push
CHECKED = 5  # moves between two poses that are held against the walls
WALLS = (7.0, 504.0)
KEPT = 40  # first pushes that seconds are simulated for
EVERY = 4  # of a contact's lengths, those that may be kept
FINE = 0.6  # error below which there is nothing to gain, px
WORTH = 12.0  # control steps that an error e times smaller is worth, where errors are small
COARSE = 30.0  # error above which it is rather the way that counts, px
WAY = 0.5  # control steps for each px of error

LEVERS = (CONTACTS[:, 0] * NORMALS[:, 1] - CONTACTS[:, 1] * NORMALS[:, 0]) / RADIUS
TWISTS = np.column_stack([NORMALS, LEVERS]) / np.sqrt(1 + LEVERS**2)[:, None]  # how a push begins to move the block, of norm 1
REACH = 0.4 * RADIUS / np.maximum(np.abs(TWISTS[:, 2]), 0.1)  # px for which it goes on about like that


class Push(NamedTuple):
    """A push in the world.

    Args:
        way: waypoints round the block, [points, 2]; the last is before the side that is pushed.
        end: where the disc is when the push is over, straight on from there.
    """

    way: Float[np.ndarray, "points 2"]
    end: Float[np.ndarray, "2"]


class Tried(NamedTuple):
    """Pushes from every contact, of every length.

    Args:
        cost: control steps for the way there and the push; infinite where it can't be made.
        poses: the block's after it.
    """

    cost: Float[np.ndarray, "moves batch contacts"]
    poses: Float[np.ndarray, "moves batch contacts 3"]


def left(poses: Poses) -> Float[np.ndarray, "*#batch 3"]:
    """From poses to the target, in the block's frame, px: along x, along y, and the turn, a gyration radius to the radian."""
    turned = np.remainder(GOAL[2] - poses[..., 2] + np.pi, 2 * np.pi) - np.pi
    ahead = to_block(np.broadcast_to(GOAL[:2], (*poses.shape[:-1], 2)), poses)
    return np.concatenate([ahead, RADIUS * turned[..., None]], -1)


def error(poses: Poses) -> Numbers:
    """How far blocks are from the target, px: a root mean square over the block where the turn is small."""
    return np.sqrt((left(poses) ** 2).sum(-1))


def plan(pose: Float[np.ndarray, "3"], disc: Float[np.ndarray, "2"]) -> Push | None:
    """The first of the two pushes that together promise to end soonest; None when no side can be reached.

    Which first pushes a second is simulated for is decided by what would be left after the best further one, to first order.
    """
    first = _try(pose[None], disc[None])
    cost, poses = first.cost[:, 0], first.poses[:, 0]
    outlook = cost + np.minimum(_worth(error(poses)), _further(poses))
    kept = np.argsort(np.where(_varied(outlook), outlook, np.inf), axis=None, kind="stable")[:KEPT]
    moves, contacts = np.unravel_index(kept, cost.shape)
    ends = to_world(TOUCH[contacts] + STRIDE * (moves + 1)[:, None] * NORMALS[contacts], pose)
    second = _try(poses[moves, contacts], ends)
    pairs = cost[moves, contacts] + (second.cost + _worth(error(second.poses))).min((0, 2))
    alone = cost[moves, contacts] + _worth(error(poses[moves, contacts]))
    total = np.minimum(pairs, alone)
    best = int(total.argmin())
    if not np.isfinite(total[best]):
        return None
    return Push(way(pose, disc, int(contacts[best])), ends[best])


def _try(poses: Float[np.ndarray, "batch 3"], discs: Float[np.ndarray, "batch 2"]) -> Tried:
    shape = (LONGEST, len(poses), len(CONTACTS))
    each = poses[:, None]
    moves = to_world(NORMALS, each) - each[..., :2]
    ways = np.where(within(to_world(BEFORE, each)), distances(poses, discs), np.inf)
    walked = STRIDE * np.arange(1, LONGEST + 1)[:, None, None]
    touch = to_world(TOUCH, each)
    cost = np.where(within(touch + walked[..., None] * moves), EFFORT + (ways + MARGIN + walked) / SPEED, np.inf)
    repeated = np.repeat(poses, len(CONTACTS), 0)
    after = push(repeated, touch.reshape(-1, 2), STRIDE * moves.reshape(-1, 2), LONGEST).reshape(*shape, 3)
    # Walls are not simulated: what would press the block against one can't be made.
    pressed = np.maximum.accumulate(_beyond_walls(after[::CHECKED]), axis=0) > np.maximum(_beyond_walls(poses)[:, None], 0) + 1
    return Tried(np.where(np.repeat(pressed, CHECKED, 0)[:LONGEST], np.inf, cost), after)


def _beyond_walls(poses: Poses) -> Float[np.ndarray, "*#batch"]:
    """By how much the block's farthest corner is beyond a wall, px."""
    corners = to_world(CORNERS, poses[..., None, :])
    return np.maximum(WALLS[0] - corners, corners - WALLS[1]).max((-1, -2))


def _worth(away: Numbers) -> Numbers:
    """Control steps that an error is expected to cost yet: the way, and at the end ever finer pushes."""
    return WORTH * np.log(np.maximum(away, FINE) / (1 + away / COARSE) / FINE) + away * WAY


def _further(poses: Poses) -> Numbers:
    """Control steps after the best further push, to first order in its length, and with it."""
    away = left(poses)
    along = away @ TWISTS.T
    gain = np.clip(along, 0, REACH)
    square = (away**2).sum(-1, keepdims=True) - 2 * gain * along + gain**2
    return NEXT + _worth(np.sqrt(np.maximum(square.min(-1), 0)))


def _varied(cost: Float[np.ndarray, "moves contacts"]) -> np.ndarray:
    """Of each contact the best length, and some others: neighbours in length would crowd out all else."""
    kept = np.zeros(cost.shape, bool)
    kept[1::EVERY] = True
    kept[cost.argmin(0), np.arange(cost.shape[1])] = True
    return kept
