"""Which of two ways round to hold the hand: with the fingers swapped it does the same, but the wrist may reach its end."""

from __future__ import annotations

from .motion import nearest_twin, turn_about
from .scene import Rotation, Scene


def easy_twin(scene: Scene, rotation: Rotation) -> Rotation:
    """`rotation` or the same with the fingers swapped, whichever leaves the arm's last joint nearer to its middle."""
    last = scene.env.robots[0].robot_joints[-1]
    joint = scene.joint(last)
    hand = scene.hand().rotation
    return nearest_twin(rotation, turn_about(hand[:, 2], (joint.low + joint.high) / 2 - joint.value) @ hand)
