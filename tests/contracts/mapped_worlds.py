"""Mapping files for tests, and Gymnasium environments that misbehave, which a file finds as a module in its own folder."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from kinoise.envs import Env

PENDULUM: dict[str, Any] = {
    "gymnasium": {"id": "Pendulum-v1"},
    "instruction": "swing the pendulum up and hold it there",
    "rate": 20,
    "horizon": 200,
    "observations": {
        "angle": {"slice": [0, 2], "names": ["cos", "sin"], "unit": 1},
        "velocity": {"slice": [2, 3], "names": "velocity", "unit": "rad/s"},
    },
    "images": {"side": {"from": "render"}},
    "action": {"control": "absolute", "names": ["torque"], "unit": "N m"},
    "success": {"reward": -0.1},
    "expert": "pendulum_expert:make",
}

REACHER: dict[str, Any] = {
    "gymnasium": {"id": "Reacher-v5", "kwargs": {"width": 96, "height": 96}},
    "instruction": "move the fingertip to the target",
    "rate": 50,
    "horizon": 50,
    "observations": {"state": {"unit": 1}, "goal": {"slice": [4, 6], "names": ["goal.x", "goal.y"], "unit": "m"}},
    "images": {"top": {"from": "render"}},
    "action": {"control": "absolute", "names": ["shoulder", "elbow"], "unit": "N m"},
    "success": {"reward": -0.05},
}

PUSHT: dict[str, Any] = {
    "gymnasium": {
        "id": "gym_pusht/PushT-v0",
        "import": "gym_pusht",
        "kwargs": {"obs_type": "pixels_agent_pos", "observation_width": 96, "observation_height": 96},
    },
    "instruction": "push the T-shaped block onto the T-shaped target",
    "rate": 10,
    "horizon": 300,
    "observations": {"agent": {"from": "agent_pos", "names": ["x", "y"], "unit": "px"}},
    "images": {"top": {"from": "pixels"}},
    "action": {"control": "absolute", "names": ["x", "y"], "unit": "px"},
    "success": {"info": "is_success"},
}

POINT: dict[str, Any] = {
    "gymnasium": {"id": "kinoise/Point-v0", "import": "point_worlds", "kwargs": {"trouble": "none"}},
    "instruction": "move the point to its goal",
    "rate": 20,
    "horizon": 30,
    "observations": {"state": {"from": "robot.place", "unit": "m"}, "goal": {"from": "goal", "names": ["goal.x"], "unit": "m"}},
    "action": {"control": "delta", "unit": "m", "low": -0.1, "high": 0.1},
    "success": {"info": "there"},
    "expert": "point_worlds:expert",
}

EXPERT = """
import numpy as np

def make(env):
    return Expert()

class Expert:
    def act(self, observation):
        (cos, sin), speed = observation["angle"], observation["velocity"][0]
        if cos > 0.9:
            return np.array([-15 * np.arctan2(sin, cos) - 3 * speed])
        energy = speed**2 / 6 + 5 * cos
        return np.array([2.0 * np.sign(speed * (5.5 - energy)) if abs(speed) > 1e-3 else 2.0])
"""

WORLDS = """
import os, time
import gymnasium, numpy as np
from gymnasium import spaces

class Point(gymnasium.Env):
    def __init__(self, trouble, half=False, render_mode=None):
        self.trouble, self.half, self.render_mode = trouble, half, render_mode
        self.noise, self.ever = np.random.default_rng(), 0  # what no reset sets anew
        self.action_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
        box = spaces.Box(-np.inf, np.inf, (1,), np.float64)
        self.observation_space = spaces.Dict({"robot": spaces.Dict({"place": box}), "goal": box})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.trouble == "short":
            np.random.seed(seed)  # refuses more than 32 bits
        gen = np.random.default_rng() if self.trouble == "unseeded" else self.np_random
        self.place, self.goal, self.steps = gen.uniform(-1, 1, 1), gen.uniform(-1, 1, 1), 0
        asked = "" if self.trouble == "speechless" else f"go {'right' if self.goal[0] > 0 else 'left'}"
        if self.trouble == "fickle":
            self.ever += 1
            asked = f"go {self.ever} times"
        return self.seen(), {"asked": asked}

    def seen(self):
        return {"robot": {"place": self.place}, "goal": self.goal}  # its own arrays, which it changes in place

    def step(self, action):
        print("a simulator that prints")
        self.steps, self.ever = self.steps + 1, self.ever + 1
        if self.steps == 3 and not (self.half and self.goal[0] < 0):  # half of the episodes may go well
            if self.trouble == "nan":
                self.place = self.place * np.nan
            if self.trouble == "raise":
                raise RuntimeError("the point is gone")
            if self.trouble == "hang":
                time.sleep(600)
            if self.trouble == "exit":
                os._exit(7)
            if self.trouble == "crash":
                import ctypes; ctypes.string_at(0)
            if self.trouble == "grow":
                self.place = np.concatenate([self.place, self.place])
        self.place += action + (1e-3 * self.noise.uniform() if self.trouble == "noisy" else 0)
        there = self.ever == 1 if self.trouble == "lucky" else bool(abs(self.place - self.goal)[0] < 0.02)
        ended = self.trouble == "ends" and self.steps == 4
        reward = -self.noise.uniform() if self.trouble == "moody" else -1.0
        return self.seen(), reward, ended, False, {} if self.trouble == "mute" else {"there": there}

gymnasium.register("kinoise/Point-v0", entry_point=Point)

def expert(env):
    class Expert:
        def act(self, observation):
            return env.goal - env.place  # the simulator's own, beyond the bounds
    return Expert()
"""

STILL = np.zeros(1, np.float32)
"""An action that leaves the point where it is."""


def write(folder: Path, content: dict[str, Any], name: str = "world.yaml", **changes: Any) -> str:
    """A mapping file in `folder`, with `changes` (`action__low=...` for nested keys; None takes a key away); its path."""
    value = copy.deepcopy(content)
    for path, item in changes.items():
        *parents, key = path.split("__")
        place = value
        for parent in parents:
            place = place.setdefault(parent, {})
        place[key] = item
        if item is None:
            del place[key]
    (folder / "pendulum_expert.py").write_text(EXPERT)
    (folder / "point_worlds.py").write_text(WORLDS)
    (folder / name).write_text(yaml.safe_dump(value))
    return str(folder / name)


def episode(env: Env, seed: int | None, steps: int) -> list[Any]:
    """What is observed, earned and said, with actions that depend on nothing but the step."""
    observation, _ = env.reset(seed=seed)
    found: list[Any] = [{key: item.tolist() for key, item in observation.items()}, env.initial()]
    low, high = np.array(env.spec.action.low), np.array(env.spec.action.high)
    for step in range(steps):
        observation, *rest = env.step((low + (0.5 + 0.4 * np.sin(step)) * (high - low)).astype(np.float32))
        found.append([{key: item.tolist() for key, item in observation.items()}, *rest])
    return found
