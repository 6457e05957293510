"""For tests, imported by name in worker processes: a simulator, where a point on a line has to reach a goal, and a driver.

The tasks: `line/go` works; of the others the episodes with an odd seed misbehave: `line/raise` raises in the middle,
`line/die` ends its process, `line/nan` pays NaN, `line/stuck` does not move, `line/lost` loses its own process the first time,
`line/gone` is gone for good, `line/hang` never comes back; `line/unbuildable` can't be built.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from kinoise.envs.base import Env, EnvLost, Values
from kinoise.spec import Feature, KinoiseError, Spec

SPEC = Spec(
    observations={
        "state": Feature((3,), names=("position", "goal", "clock"), unit=("m", "m", "1")),
        "image.top": Feature((4, 6, 3), kind="image"),
    },
    action=Feature((1,), low=(-0.1,), high=(0.1,)),
    rate=40.0,
)
HORIZON = 30
LOST: set[float] = set()
"""Goals of the episodes that were lost once."""
GONE: set[str] = set()
"""Tasks that can't be built again."""


class LineWorld(Env):
    def __init__(self, task: str, *, render: bool = False, jitter: float = 0.0) -> None:
        if task == "line/unbuildable":
            raise KinoiseError("no such line. Draw one.")
        if task in GONE:
            raise KinoiseError("the line was taken away")
        super().__init__(task, f"do {task.removeprefix('line/')}", SPEC, HORIZON)
        self._renders, self._jitter = render, jitter
        self._odd = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        assert seed is not None
        place, way, side = np.random.default_rng(seed).random(3)
        self._position, self._goal = 0.1 * place, (0.5 + 0.5 * way) * (1 if side < 0.5 else -1)
        self._odd, self._clock = seed % 2 == 1, 0
        return self._observation(), {}

    def step(self, action: np.ndarray):
        self._clock += 1
        if self._jitter:
            time.sleep(self._jitter * np.random.default_rng().random())
        if self._odd and self._clock == 3:
            if self.task == "line/raise":
                raise RuntimeError("the line\nbroke")
            if self.task == "line/gone":
                GONE.add(self.task)
                raise RuntimeError("the line is being taken away")
            if self.task == "line/die":
                os._exit(7)
            if self.task == "line/hang":
                time.sleep(1e6)
            if self.task == "line/lost" and self._goal not in LOST:
                LOST.add(self._goal)
                raise EnvLost("the line is gone")
        if not (self._odd and self.task == "line/stuck"):
            self._position += float(np.clip(action, -0.1, 0.1)[0])
        distance = abs(self._position - self._goal)
        reward = np.nan if self._odd and self.task == "line/nan" else -distance
        return self._observation(), reward, False, self._clock >= HORIZON, {"success": bool(distance < 0.02)}

    def render(self) -> np.ndarray:
        assert self._renders
        frame = np.full((65, 96, 3), 32, np.uint8)
        frame[:, int((self._position + 2) / 4 * 95)] = 255
        return frame

    def initial(self) -> dict[str, Any]:
        return {"goal": float(self._goal)}

    def expert(self) -> LineExpert:
        return LineExpert()

    def _observation(self) -> dict[str, np.ndarray]:
        state = np.array([self._position, self._goal, self._clock], np.float32)
        return {"state": state, "image.top": np.full((4, 6, 3), self._clock, np.uint8)} if self.drawn else {"state": state}


class LineExpert:
    def act(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        position, goal, _ = observation["state"]
        return np.clip(np.array([goal - position], np.float32), -0.1, 0.1)


@dataclass(frozen=True)
class ExpertDriver:
    """Any simulator's scripted expert as a `Driver`, with Gaussian noise on its actions that depends on the episode's seed."""

    noise: float = 0.0

    def start(self, env: Env, seed: int) -> Callable[[Values], np.ndarray]:
        expert, feature, gen = env.expert(), env.spec.action, np.random.default_rng([seed, 1])

        def act(observation: Values) -> np.ndarray:
            action = expert.act(observation) + self.noise * gen.standard_normal(feature.shape)
            return np.clip(action, feature.low, feature.high).astype(feature.dtype)

        return act


def make(task: str, *, render: bool = False) -> LineWorld:
    return LineWorld(task, render=render)


def make_slow(task: str, *, render: bool = False) -> LineWorld:
    """Takes random times, which nothing may depend on."""
    return LineWorld(task, render=render, jitter=0.004)


def make_sleepy(task: str, *, render: bool = False) -> LineWorld:
    """An episode takes longer than a second, and no step of it does."""
    return LineWorld(task, render=render, jitter=0.1)


def make_elsewhere(task: str, *, render: bool = False) -> LineWorld:
    """Says what an environment in another process says."""
    world = LineWorld(task, render=render)
    world.versions = {"python": "3.12.1", "mujoco": "9.9"}
    return world


class CountingWorld(LineWorld):
    """The picture's second channel holds how many of them were drawn."""

    _drawings = 0

    def _observation(self) -> dict[str, np.ndarray]:
        found = super()._observation()
        if "image.top" in found:
            self._drawings += 1
            found["image.top"][..., 1] = self._drawings
        return found


def make_counting(task: str, *, render: bool = False) -> CountingWorld:
    return CountingWorld(task, render=render)


class CentimetreWorld(LineWorld):
    """The same world, whose robot counts in centimetres from a place one metre to the left."""

    def __init__(self, task: str, *, render: bool = False) -> None:
        super().__init__(task, render=render)
        self.spec = replace(
            SPEC,
            observations={**SPEC.observations, "state": replace(SPEC.observations["state"], unit=("cm", "cm", "1"))},
            action=Feature((1,), low=(-10.0,), high=(10.0,)),
        )

    def step(self, action: np.ndarray):
        return super().step(action / 100)

    def _observation(self) -> dict[str, np.ndarray]:
        found = super()._observation()
        return {**found, "state": found["state"] * np.float32([100, 100, 1]) + np.float32([100, 100, 0])}


def make_centimetres(task: str, *, render: bool = False) -> CentimetreWorld:
    return CentimetreWorld(task, render=render)
