"""Which skill makes a predicate about an articulated thing, or a push over the table, true."""

from __future__ import annotations

from collections.abc import Sequence

from .door import close_door, open_door
from .drawer import close_drawer, open_drawer
from .knob import turn_knob
from .motion import Skill
from .push import push_to
from .scene import Scene

ON, OFF = 0.7, -0.001  # rad: LIBERO's stoves count as on from 0.5 and as off below 0


def articulated(scene: Scene, predicate: Sequence[str], attempt: int = 0) -> Skill | None:
    """The skill that makes `predicate` true, another way on each further `attempt`; None for one that is about no such thing.

    Args:
        scene: what there is.
        predicate: ["open" or "close", drawer's region or fixture], ["turnon" or "turnoff", fixture], or ["on", plate, region of
            the table], since plates are pushed.
        attempt: from 0.
    """
    verb, name = predicate[0], predicate[1]
    if verb in ("open", "close"):
        if name in scene.sites:
            return (open_drawer if verb == "open" else close_drawer)(scene, name, attempt)
        return (open_door if verb == "open" else close_door)(scene, name, attempt)
    if verb in ("turnon", "turnoff"):
        return turn_knob(scene, name, ON if verb == "turnon" else OFF, attempt)
    if verb == "on" and name.startswith("plate") and predicate[2] in scene.sites and scene.parent(predicate[2]) is None:
        return push_to(scene, name, predicate[2], attempt)
    return None
