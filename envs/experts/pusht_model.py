"""Push-T's block under slow pushes, without a physics engine: many candidates are simulated at once, as arrays.

gym-pusht takes all speed from the block in every step of its physics and has no friction between block and disc. So the block
moves only while it is pushed, and then by the least motion that ends the overlap, in the metric of its mass and its moment of
inertia: along the contact's normal n, and about its centre of mass by (r x n) / RADIUS**2 for every pixel of it.

Poses are [..., 3]: centre of mass (px) and angle (rad). The T's own frame has its origin at the centre of mass, the bar at
negative y and the stem along y.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

DISC = 15.0  # radius of the disc that pushes, px
RADIUS = np.sqrt(3000.0)  # of gyration: sqrt(moment of inertia / mass), px
CENTRE = np.array([0.0, 45.0])  # of mass, from the block's origin

# Bar and stem: the middles and the half sides of two boxes.
MIDDLES = np.array([[0.0, -30.0], [0.0, 30.0]])
HALVES = np.array([[60.0, 15.0], [15.0, 45.0]])

Poses = Float[np.ndarray, "*#batch 3"]
Points = Float[np.ndarray, "*#batch 2"]
Numbers = Float[np.ndarray, "*#batch"] | float  # NumPy's scalars for a single pose or point


def turn(points: Points, angle: Numbers) -> Points:
    """`points` turned by `angle` about the origin."""
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = points[..., 0], points[..., 1]
    return np.stack([cos * x - sin * y, sin * x + cos * y], -1)


def to_world(points: Points, poses: Poses) -> Points:
    return turn(points, poses[..., 2]) + poses[..., :2]


def to_block(points: Points, poses: Poses) -> Points:
    return turn(points - poses[..., :2], -poses[..., 2])


def pose_of(x: float, y: float, angle: float) -> Float[np.ndarray, "3"]:
    """The pose of a block whose origin is there."""
    return np.append(turn(CENTRE, angle) + np.array([x, y]), angle)


def gaps(points: Points) -> Float[np.ndarray, "*#batch boxes 2"]:
    """From points in the block's frame to the nearest points of bar and stem."""
    return MIDDLES + np.clip(points[..., None, :] - MIDDLES, -HALVES, HALVES) - points[..., None, :]


def clearance(points: Points) -> Float[np.ndarray, "*#batch"]:
    """How far a disc at these points in the block's frame is from touching it; negative for overlap."""
    return np.sqrt((gaps(points) ** 2).sum(-1)).min(-1) - DISC


def push(
    poses: Float[np.ndarray, "batch 3"], disc: Float[np.ndarray, "batch 2"], moves: Float[np.ndarray, "batch 2"], steps: int
) -> Float[np.ndarray, "steps batch 3"]:
    """The block's poses while the disc goes `steps` times by `moves` (px, at most about 3)."""
    x, y, angle = poses.T.copy()
    disc_x, disc_y = disc.T.copy()
    move_x, move_y = moves.T
    taken = np.empty((steps, len(poses), 3))
    for step in range(steps):
        disc_x = disc_x + move_x
        disc_y = disc_y + move_y
        for (middle_x, middle_y), (half_x, half_y) in zip(MIDDLES.tolist(), HALVES.tolist(), strict=True):
            cos, sin = np.cos(angle), np.sin(angle)
            at_x = cos * (disc_x - x) + sin * (disc_y - y)
            at_y = cos * (disc_y - y) - sin * (disc_x - x)
            arm_x = np.minimum(np.maximum(at_x, middle_x - half_x), middle_x + half_x)
            arm_y = np.minimum(np.maximum(at_y, middle_y - half_y), middle_y + half_y)
            gap_x, gap_y = arm_x - at_x, arm_y - at_y
            distance = np.sqrt(gap_x * gap_x + gap_y * gap_y) + 1e-9
            gap_x, gap_y = gap_x / distance, gap_y / distance
            lever = (arm_x * gap_y - arm_y * gap_x) / RADIUS
            moved = np.maximum(DISC - distance, 0) / (1 + lever * lever)
            x = x + moved * (cos * gap_x - sin * gap_y)
            y = y + moved * (sin * gap_x + cos * gap_y)
            angle = angle + moved * lever / RADIUS
        taken[step, :, 0], taken[step, :, 1], taken[step, :, 2] = x, y, angle
    return taken
