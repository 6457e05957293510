"""Getting rid of what sticks to the thing that was picked up, as a ramekin does to the bowl that stood in it."""

from __future__ import annotations

from .motion import CLOSED, Skill, move, turn_about
from .scene import Pose, Scene
from .travel import raised

LIFT, RISEN = 0.06, 0.02  # m that the hand goes up to see what comes along; m that this is then above where it stood
SWINGS = (0.6, -0.6, 0.6, -0.6)  # rad about the line between the fingers


def neighbours(scene: Scene, thing: str) -> dict[str, float]:
    """The other movable things that `thing` touches, with the height at which each is (m)."""
    others = (name for name in scene.env.objects_dict if name != thing and scene.touching(thing, name))
    return {name: float(scene.pose(name).position[2]) for name in others}


def shake_off(scene: Scene, before: dict[str, float]) -> Skill:
    """Lifts what is held, and swings it to and fro until nothing of `before`, see `neighbours`, comes along."""
    hand = raised(scene.hand(), LIFT)
    yield from move(scene, hand, CLOSED, within=0.015)
    for swing in SWINGS:
        if not any(scene.pose(name).position[2] > height + RISEN for name, height in before.items()):
            break
        swung = Pose(hand.position, turn_about(hand.rotation[:, 1], swing) @ hand.rotation)
        yield from move(scene, swung, CLOSED, within=0.03, turned=0.15, limit=12)
    return True
