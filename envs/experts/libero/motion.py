"""Moving the gripper: a proportional servo in task space, and skills as generators.

A skill is a generator: it yields an action a step, reads the scene anew after each, and returns whether it succeeded:

    def skill(scene: Scene, ...) -> Skill:
        yield from move(scene, above, grip=OPEN, within=0.03)
        return (yield from move(scene, down, grip=OPEN, within=0.005))

Actions are robosuite's OSC_POSE deltas in [-1, 1]: 0.05 m and 0.5 rad (axis-angle, the world's frame) at 1, then the gripper,
-1 opening and +1 closing (its sign counts; the fingers take about 16 steps from end to end). The controller follows a steady
delta with 0.3 of it a step: the hand's top speed is 0.015 m and 0.15 rad a step.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
from jaxtyping import Float, Float32

from .scene import Pose, Rotation, Scene, Vector

Action = Float32[np.ndarray, "7"]
Skill = Generator[Action, None, bool]

OPEN, CLOSED = -1.0, 1.0
METRES, RADIANS = 0.05, 0.5  # at an action of 1
GAIN, TURN_GAIN = 1.6, 1.4  # of the error that one action asks for: higher ones overshoot
RISE, TRAVEL = 0.6, 0.06  # of what an action may ask for, that goes upwards first from this far off, m
FINGERS = 20  # steps in which the fingers open or close fully: they lag behind the command, which takes 8


def reach(scene: Scene, target: Pose, grip: float, speed: float = 1.0, ahead: Vector | None = None) -> Action:
    """The action towards a pose of the grip site, from where it is now.

    Args:
        target: where the grip site is to be.
        grip: OPEN (-1.0) or CLOSED (1.0).
        speed: most of the delta along the way, 0 to 1; likewise of the turn.
        ahead: velocity to keep on arrival, m a step [3]; None to stop there.
    """
    hand = scene.hand()
    delta = GAIN * (target.position - hand.position) / METRES
    if ahead is not None:
        delta = delta + ahead / (0.3 * METRES)
    turn = TURN_GAIN * axis_angle(target.rotation @ hand.rotation.T) / RADIANS
    return np.concatenate([_rising(delta, speed), _limited(turn, min(1.0, speed + 0.2)), [grip]]).astype(np.float32)


def move(
    scene: Scene,
    target: Pose,
    grip: float,
    within: float = 0.006,
    turned: float = 0.1,
    speed: float = 1.0,
    limit: int = 80,
    stalled: int = 12,
) -> Skill:
    """Straight to a pose; true when the grip site is `within` (m) and `turned` (rad) of it, false when it can't get there.

    Take a generous `within` (0.02-0.04) for waypoints to pass by and a small one where it counts. It ends without an action
    when it is there already. It gives up after `limit` steps, or after `stalled` steps without getting nearer.
    """
    best, waited = np.inf, 0
    for _ in range(limit):
        hand = scene.hand()
        far = float(np.linalg.norm(target.position - hand.position))
        angle = float(np.linalg.norm(axis_angle(target.rotation @ hand.rotation.T)))
        if far <= within and angle <= turned:
            return True
        cost = max(far - within, 0.0) + 0.05 * max(angle - turned, 0.0)
        best, waited = (cost, 0) if cost < best - 0.0005 else (best, waited + 1)
        if waited >= stalled:
            return False
        yield reach(scene, target, grip, speed)
    return False


def follow(
    scene: Scene, way: Sequence[Pose], grip: float, within: float = 0.006, by: float = 0.03, speed: float = 1.0
) -> Skill:
    """Past all of `way` but the last `by` (m) of distance, then to the last `within`; false when that can't be reached."""
    for target in way[:-1]:
        yield from move(scene, target, grip, within=by, turned=0.4, speed=speed)
    return (yield from move(scene, way[-1], grip, within=within, speed=speed))


def hold(scene: Scene, grip: float, steps: int, target: Pose | None = None) -> Skill:
    """Stays (or servoes to `target`) for `steps`, with the fingers going to `grip`."""
    target = scene.hand() if target is None else target
    for _ in range(steps):
        yield reach(scene, target, grip)
    return True


def close_fingers(scene: Scene, target: Pose | None = None, limit: int = FINGERS) -> Skill:
    """Closes until the fingers have stopped; true when there is something between them."""
    yield from _until_still(scene, CLOSED, target, limit)
    return scene.opening() > 0.002


def open_fingers(scene: Scene, target: Pose | None = None, limit: int = FINGERS, wide: float = 0.076) -> Skill:
    """Opens until the pads are `wide` (m) apart or the fingers have stopped."""
    target = scene.hand() if target is None else target
    for _ in range(limit):
        if scene.opening() >= wide:
            return True
        yield reach(scene, target, OPEN)
    return True


def pointing_down(yaw: float) -> Rotation:
    """The gripper straight down, the fingers opening along (cos yaw, sin yaw, 0)."""
    x = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    return frame(x, np.array([0.0, 0.0, -1.0]))


def frame(opening: Vector, approach: Vector) -> Rotation:
    """The gripper's rotation whose z (out of the hand) is `approach` and whose x is `opening`, made perpendicular to it."""
    z = approach / np.linalg.norm(approach)
    x = opening - (opening @ z) * z
    x = x / np.linalg.norm(x)
    return np.column_stack([x, np.cross(z, x), z])


def nearest_twin(rotation: Rotation, to: Rotation) -> Rotation:
    """`rotation` or the same with the fingers swapped (half a turn about z), whichever needs less turning from `to`."""
    twin = rotation * np.array([-1.0, -1.0, 1.0])
    angles = [np.linalg.norm(axis_angle(item @ to.T)) for item in (rotation, twin)]
    return rotation if angles[0] <= angles[1] else twin


def axis_angle(rotation: Rotation) -> Float[np.ndarray, "3"]:
    """The rotation's axis times its angle (0 to pi), rad."""
    skew = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]]) / 2
    sin, cos = float(np.linalg.norm(skew)), (np.trace(rotation) - 1) / 2
    if sin < 1e-6 and cos < 0:  # half a turn: the skew part vanishes, the symmetric one is 2 a a' - 1
        column = int(np.argmax(np.diag(rotation)))
        axis = rotation[:, column] + np.eye(3)[column]
        return np.pi * axis / np.linalg.norm(axis)
    return skew * (np.arctan2(sin, cos) / sin if sin > 1e-9 else 1.0)


def turn_about(axis: Vector, angle: float) -> Rotation:
    """The rotation by `angle` (rad) about `axis`, which need not be of norm 1 (Rodrigues' formula)."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _until_still(scene: Scene, grip: float, target: Pose | None, limit: int) -> Skill:
    target = scene.hand() if target is None else target
    before, still = scene.opening(), 0
    for step in range(limit):
        yield reach(scene, target, grip)
        now = scene.opening()
        still = still + 1 if abs(now - before) < 0.0005 else 0
        before = now
        if still >= 2 and step >= 5:
            return True
    return True


def _rising(delta: Vector, most: float) -> Vector:
    """`delta` at a norm of at most `most`. Far from the target height goes first: a hand that turns and travels sinks."""
    limited, up = _limited(delta, most), min(float(delta[2]), RISE * most)
    if limited[2] >= up or float(np.linalg.norm(delta[:2])) < TRAVEL * GAIN / METRES:
        return limited
    return np.append(_limited(delta[:2], float(np.sqrt(most**2 - up**2))), up)


def _limited(vector: np.ndarray, most: float) -> np.ndarray:
    """`vector`, shortened to a norm of `most` where it is longer: the direction stays."""
    norm = float(np.linalg.norm(vector))
    return vector * (most / norm) if norm > most else vector
