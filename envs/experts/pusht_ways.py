"""Where Push-T's block can be pushed, and ways round it to these places that don't touch it.

All constants are in the T's own frame (see `pusht_model`), in pixels.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from .pusht_model import DISC, HALVES, Points, clearance, gaps, to_block, to_world

SPAN = (3.0, 509.0)  # where the disc may go in the world
MARGIN = 6.0  # kept from the block on the way
SPACING = 7.0  # between the places where a push may begin
SAMPLES = 41  # points of a way that are checked

WIDE, THIN = HALVES[0, 0], HALVES[1, 0]  # half the bar's length and half the stem's width
TOP, UNDER, END = -45.0, -15.0, 75.0  # the bar's two long sides and the stem's end, along y


def _sides() -> tuple[Points, Points]:
    """Points of contact along the T's eight sides, and the inward normals there, in which pushes go."""
    corner = DISC + MARGIN + 1  # kept from the concave corners: the disc comes straight to a side
    sides = [  # first and last point, normal
        ((-WIDE + 2, TOP), (WIDE - 2, TOP), (0, 1)),
        ((-WIDE, TOP + 2), (-WIDE, UNDER - 2), (1, 0)),
        ((WIDE, TOP + 2), (WIDE, UNDER - 2), (-1, 0)),
        ((-WIDE + 2, UNDER), (-THIN - corner, UNDER), (0, -1)),
        ((THIN + corner, UNDER), (WIDE - 2, UNDER), (0, -1)),
        ((-THIN, UNDER + corner), (-THIN, END - 2), (1, 0)),
        ((THIN, UNDER + corner), (THIN, END - 2), (-1, 0)),
        ((-THIN + 2, END), (THIN - 2, END), (0, -1)),
    ]
    points, normals = [], []
    for first, last, normal in sides:
        count = int(np.ptp([first, last], axis=0).max() // SPACING) + 1
        points.append(np.linspace(first, last, count))
        normals += [normal] * count
    return np.concatenate(points), np.array(normals, float)


CONTACTS, NORMALS = _sides()
TOUCH = CONTACTS - DISC * NORMALS  # where the disc is when it begins to push
BEFORE = CONTACTS - (DISC + MARGIN) * NORMALS  # where it comes to first

CORNERS = np.array([(-WIDE, TOP), (WIDE, TOP), (WIDE, UNDER), (THIN, END), (-THIN, END), (-WIDE, UNDER)])  # the convex ones
RING = CORNERS + (DISC + MARGIN + 2) * np.array([(-1, -1), (1, -1), (1, 1), (1, 1), (-1, 1), (-1, 1)])  # where ways turn


def straight(begin: Points, end: Points) -> Float[np.ndarray, "*#batch"]:
    """Length of the straight way between points of the block's frame; infinite where it comes too near to the block."""
    along = np.linspace(0, 1, SAMPLES)[:, None]
    points = begin[..., None, :] * (1 - along) + end[..., None, :] * along
    free = clearance(points).min(-1) > MARGIN - 1
    return np.where(free, np.sqrt(((begin - end) ** 2).sum(-1)), np.inf)


_RING_RING = straight(RING[:, None], RING[None])
_RING_BEFORE = straight(RING[:, None], BEFORE[None])


def within(points: Points) -> Bool[np.ndarray, "*#batch"]:
    """Whether the disc may go to these points of the world."""
    return np.all((points > SPAN[0]) & (points < SPAN[1]), axis=-1)


def step_back(points: Points, margin: float = MARGIN) -> Points:
    """About the nearest points of the block's frame that keep `margin` from the block."""
    for _ in range(4):  # in a concave corner, going back from one box comes nearer to the other
        for box in range(len(HALVES)):
            gap = gaps(points)[..., box, :]
            distance = np.sqrt((gap**2).sum(-1, keepdims=True)) + 1e-9
            points = points - gap / distance * np.maximum(DISC + margin - distance, 0)
    return points


def distances(poses: Float[np.ndarray, "batch 3"], discs: Float[np.ndarray, "batch 2"]) -> Float[np.ndarray, "batch contacts"]:
    """Lengths of the shortest ways from discs (in the world) to BEFORE of every contact; infinite where there is none."""
    at = to_block(discs, poses)
    begin = step_back(at)
    closed = np.where(within(to_world(RING, poses[:, None])), 0.0, np.inf)
    ring = _RING_RING + closed[:, None, :]
    for middle in range(len(RING)):
        ring = np.minimum(ring, ring[:, :, middle, None] + ring[:, middle, None, :])
    reached = straight(begin[:, None], RING) + closed
    reached = np.minimum(reached, (reached[:, :, None] + ring).min(1))
    around = (reached[:, :, None] + _RING_BEFORE).min(1)
    return np.minimum(straight(begin[:, None], BEFORE), around) + np.sqrt(((begin - at) ** 2).sum(-1))[:, None]


def way(pose: Float[np.ndarray, "3"], disc: Float[np.ndarray, "2"], contact: int) -> Float[np.ndarray, "points 2"]:
    """The waypoints, in the world, of the shortest way to BEFORE of a contact that can be reached."""
    ring = RING[within(to_world(RING, pose))]
    nodes = np.concatenate([step_back(to_block(disc, pose))[None], ring, BEFORE[contact][None]])
    lengths = straight(nodes[:, None], nodes[None])
    shortest, origin = lengths[0], np.zeros(len(nodes), int)
    for _ in nodes:
        through = shortest[:, None] + lengths
        origin = np.where(through.min(0) < shortest, through.argmin(0), origin)
        shortest = np.minimum(shortest, through.min(0))
    path = [len(nodes) - 1]
    while path[-1] != 0:
        path.append(int(origin[path[-1]]))
    return to_world(nodes[path[::-1]], pose)
