"""What keeps a demonstrator from having its way: noise on every action, and now and then a moment in which it isn't obeyed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from ..spec import KinoiseError, Spec

SECONDS = (0.2, 0.6)
"""How long a disturbance lasts. Fingers that open for so long lose what they hold."""
PUSH = 0.5
"""How hard the hand is pushed at most, as a share of half the action's range."""


class Disturbed:
    """Turns a demonstrator's actions into those that are executed. Both are drawn from `seed` alone.

    While a disturbance lasts, either the gripper does the opposite of what it was told when it began, or the hand is pushed in
    one direction whatever the demonstrator says. It then sees a thing that fell, or fingers that closed on nothing, and does
    what such a state calls for: a policy that was only shown what goes well carries on with empty fingers.

    Args:
        spec: of the environment.
        noise: standard deviation of the Gaussian noise on each action, in the action's units.
        chance: of a disturbance's beginning, at each step that has none.
        seed: of the episode.

    Raises:
        KinoiseError: disturbances of an action without bounds.
    """

    def __init__(self, spec: Spec, noise: float, chance: float, seed: Sequence[int] | int) -> None:
        seeds = [seed] if isinstance(seed, int) else list(seed)
        self.spec, self.noise, self.chance = spec, noise, chance
        self.low, self.high = spec.action.low, spec.action.high
        if chance and (self.low is None or self.high is None):
            raise KinoiseError("disturb= needs an action with bounds, and the environment's has none: leave it out")
        self._noise, self._chance = np.random.default_rng([*seeds, 1]), np.random.default_rng([*seeds, 2])
        self._left, self._push, self._grip = 0, np.zeros(spec.action.shape), np.zeros(0)

    def __call__(self, action: Float32[np.ndarray, "action"]) -> Float32[np.ndarray, "action"]:
        """What is executed in place of `action`."""
        executed = action + self.noise * self._noise.standard_normal(action.shape)
        if self.chance and not self._left and self._chance.random() < self.chance:
            self._begin(action)
        if self._left:
            self._left -= 1
            executed = self._instead(action, executed)
        return np.clip(executed, self.low, self.high).astype(np.float32)

    def _begin(self, action: np.ndarray) -> None:
        gen, (least, most) = self._chance, (max(1, round(item * self.spec.rate)) for item in SECONDS)
        low, high, gripper = np.asarray(self.low), np.asarray(self.high), list(self.spec.gripper)
        self._left = int(gen.integers(least, most + 1))
        self._push = PUSH * gen.uniform(-1, 1, action.shape) * (high - low) / 2
        slips = bool(gripper) and gen.random() < 0.5
        middle = (low + high) / 2
        self._grip = np.where(action > middle, low, high)[gripper] if slips else np.zeros(0)

    def _instead(self, action: np.ndarray, executed: np.ndarray) -> np.ndarray:
        gripper = list(self.spec.gripper)
        if len(self._grip):
            executed[gripper] = self._grip
            return executed
        pushed = self._push + (0 if self.spec.control == "delta" else action)
        pushed[gripper] = executed[gripper]
        return pushed
