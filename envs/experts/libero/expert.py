"""The demonstrator of a LIBERO task: plans skills from what its goal still lacks, and carries them out one action a step."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...base import Values
from .articulated import articulated
from .cloud import Clouds
from .drawer import WIDE_OPEN, open_drawer, openness
from .goals import Predicate, missing, ordered
from .motion import OPEN, Action, Skill, move, reach
from .pick import pick_and_place
from .scene import Pose, Scene
from .shelve import covered, shelve
from .stow import cramped, in_drawer, sticks_out, tuck
from .travel import raised

TUCKS = 4  # tries at a thing in a drawer, after which the drawer is closed on it as it is


class LiberoExpert:
    """Acts in robosuite's environment `env` (`ControlEnv(...).env`), made right after a reset; one for each episode."""

    def __init__(self, env: Any) -> None:
        self.scene = Scene(env)
        self.clouds = Clouds(self.scene)
        self.goal = ordered(self.scene.goal, self._owner)
        self.attempts: dict[Predicate, int] = {}
        self.log: list[str] = []
        self._skill: Skill | None = None
        self._doing: Predicate | None = None
        self._rest: Pose | None = None
        self._acted = False

    def act(self, observation: Values) -> Action:
        """The next action; it reads the simulator and not `observation`."""
        for _ in range(8):
            if self._skill is None:
                self._skill = self._next()
            if self._skill is None:
                return self._resting()
            try:
                action = np.clip(next(self._skill), -1, 1)
                self._acted = True
                return action
            except StopIteration as end:
                self._finished(bool(end.value))
        return self._resting()

    def _next(self) -> Skill | None:
        wanted = missing(self.goal, self._done, self._before)
        if wanted is None:
            return None
        self._rest, self._acted, self._doing = None, False, wanted
        attempt = self.attempts.get(wanted, 0)
        return self._skill_for(wanted, attempt)

    def _skill_for(self, wanted: Predicate, attempt: int) -> Skill:
        scene, clouds = self.scene, self.clouds
        special = articulated(scene, wanted, attempt)
        if special is not None:
            return special
        if self._shut_in(wanted) and scene.holds(wanted):
            return tuck(scene, clouds, wanted, attempt)
        if self._shut_in(wanted) and openness(scene, wanted[2]) < WIDE_OPEN - 0.01 and cramped(scene, clouds, wanted):
            return open_drawer(scene, wanted[2], attempt)
        if covered(scene, clouds, wanted):
            return shelve(scene, clouds, wanted, attempt)
        shared = [item for item in self.goal if len(item) == 3 and item[2] == wanted[2] and item != wanted]
        spread = wanted[0] == "on" and any(not scene.holds(item) for item in shared)
        return pick_and_place(scene, clouds, wanted, attempt, spread)

    def _shut_in(self, predicate: Predicate) -> bool:
        """Whether it is about what goes into a drawer that is to be closed."""
        return in_drawer(self.scene, predicate) and ("close", predicate[2]) in self.goal

    def _done(self, predicate: Predicate) -> bool:
        """Whether `predicate` is true, and what is in a drawer lets it be closed (unless that had no success)."""
        if not self.scene.holds(predicate) or not self._shut_in(predicate) or self.attempts.get(predicate, 0) > TUCKS:
            return self.scene.holds(predicate)
        return self.scene.holds(("close", predicate[2])) or not sticks_out(self.scene, self.clouds, predicate)

    def _finished(self, success: bool) -> None:
        """Notes how a skill ended. Where there was no way even to begin, the hand goes up a little before the next try."""
        if self._doing is not None:
            self.log.append(f"{' '.join(self._doing)}: {'done' if success else 'failed'}")
            self.attempts[self._doing] = self.attempts.get(self._doing, 0) + (not success)
        self._skill = None
        if not success and not self._acted:
            self._skill, self._doing, self._acted = move(self.scene, raised(self.scene.hand(), 0.1), OPEN), None, True

    def _resting(self) -> Action:
        """Stays where it is, with open fingers."""
        self._rest = self._rest or self.scene.hand()
        return reach(self.scene, self._rest, OPEN)

    def _before(self, predicate: Predicate) -> Predicate | None:
        """What has to be open for `predicate` to be made true."""
        if predicate[0] != "in" or predicate[2] not in self.scene.sites:
            return None
        if self.scene.joints(predicate[2]):
            return ("open", predicate[2])
        owner = self._owner(predicate[2])
        return ("open", owner) if owner.startswith("microwave") else None

    def _owner(self, name: str) -> str:
        return (self.scene.parent(name) or name) if name in self.scene.sites else name
