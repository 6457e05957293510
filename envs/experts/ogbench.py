"""OGBench's own oracles as demonstrators: each of them does one thing, here a goal of several is taken apart for them."""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from ..base import Values

REST = np.array([0.425, 0.0, 0.3])
"""Where an oracle takes the fingers when its work is done, m."""
ABOVE = {"cube": 0.16, "button": 0.16, "drawer": 0.18, "window": 0.28}
"""Height of the fingers, by the kind of thing they leave, from which they may go anywhere, m: the oracles' own."""
AT = 0.035
"""A cube this near to its goal is there; upstream asks for 0.04, its oracle lets go within 0.02."""
CLEAR = 0.06
"""Between the middles of two cubes side by side with the fingers between them, m."""
OPEN, IN_DRAWER, DROP = -0.16, -0.3, np.array([0.33, -0.24, 0.066])
"""How far an open drawer is out; the y beyond which a cube's goal is in the drawer; where a cube is put into the open one."""
SLIDE, EXACT = 0.03, 0.01
"""A drawer or window this near to its goal is there, upstream asks for 0.04; this near its oracle lets go, m."""


class Task(NamedTuple):
    """One thing to do: kind "cube", "button", "drawer" or "window"; which; and the place, state or position that is wanted."""

    kind: str
    which: int
    target: Any


class OracleExpert:
    """Brings one thing after the other to its goal.

    What is next is decided from the scene whenever the fingers are free, so what went wrong is done again.

    Args:
        sim: the simulator, whose goals can be asked for.
        step: what an action's numbers are at upstream's 1.
    """

    def __init__(self, sim: Any, step: np.ndarray) -> None:
        from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle
        from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
        from ogbench.manipspace.oracles.markov.drawer_markov import DrawerMarkovOracle
        from ogbench.manipspace.oracles.markov.window_markov import WindowMarkovOracle

        self._sim, self._step = sim, step
        self._puzzle = not sim.cube_goals()
        self._oracles: dict[str, Any] = {
            "cube": CubeMarkovOracle(env=sim),
            "button": ButtonMarkovOracle(env=sim, gripper_always_closed=self._puzzle),
            "drawer": DrawerMarkovOracle(env=sim),
            "window": WindowMarkovOracle(env=sim),
        }
        for oracle in self._oracles.values():
            oracle._final_pos, oracle._final_yaw, oracle._step = REST, -np.pi / 2, 0  # upstream draws them
        self._task: Task | None = None

    def act(self, observation: Values) -> Float32[np.ndarray, "action"]:
        info = self._sim.compute_ob_info()
        if self._task is None or self._left(self._task, info):
            self._task = self._next(info) or self._task
        if self._task is None:
            return np.zeros(5, np.float32)
        found = self._oracles[self._task.kind].select_action(None, info | self._told(self._task, info))
        return (np.clip(found, -1, 1) * self._step).astype(np.float32)

    def _told(self, task: Task, info: dict[str, Any]) -> dict[str, Any]:
        """What the oracle of a task wants to know beside the scene."""
        told: dict[str, Any]
        if task.kind == "cube":
            place = info[f"privileged/block_{task.which}_pos"] if self._dropped(task, info) else task.target
            told = {"target_block": task.which, "target_block_pos": place, "target_block_yaw": np.zeros(1)}
        elif task.kind == "button":
            top = self._sim.data.site_xpos[self._sim._button_site_ids[task.which]].copy()
            told = {"target_button": task.which, "target_button_state": task.target, "target_button_top_pos": top}
        else:
            axis = self._sim.data.xaxis[self._sim.model.joint(f"{task.kind}_slide").id]
            moved = (task.target - self._position(task.kind)) * axis
            told = {f"target_{task.kind}_handle_pos": info[f"privileged/{task.kind}_handle_pos"] + moved}
        return {f"privileged/{name}": item for name, item in told.items()}

    def _left(self, task: Task, info: dict[str, Any]) -> bool:
        """Whether a task is done and the fingers are out of the way."""
        return bool(info["proprio/effector_pos"][2] > ABOVE[task.kind]) and self._done(task, info, EXACT)

    def _done(self, task: Task, info: dict[str, Any], near: float = SLIDE) -> bool:
        if task.kind == "cube":
            there = np.linalg.norm(info[f"privileged/block_{task.which}_pos"] - task.target) <= AT
            return bool((there or self._dropped(task, info)) and info["proprio/gripper_contact"][0] < 0.1)
        if task.kind == "button":
            return bool(info[f"privileged/button_{task.which}_state"] == task.target)
        return abs(self._position(task.kind) - task.target) <= near

    def _dropped(self, task: Task, info: dict[str, Any]) -> bool:
        """Whether a cube that was to go into the drawer lies on its floor; it may lie anywhere there."""
        cube = info[f"privileged/block_{task.which}_pos"]
        return task.target is DROP and bool(cube[2] < DROP[2] + 0.01 and self._sim._is_in_drawer(cube))

    def _next(self, info: dict[str, Any]) -> Task | None:
        if self._puzzle:
            presses = solve(info["button_states"], self._sim.button_goals().astype(int))
            return Task("button", presses[0], 1 - info[f"privileged/button_{presses[0]}_state"]) if presses else None
        if "button_states" in info:
            return self._scene(info)
        return self._cubes(info)

    def _cubes(self, info: dict[str, Any]) -> Task | None:
        """A cube whose goal is free and has under it what it stands on; where all are in each other's way, one to the side."""
        goals = self._sim.cube_goals()
        cubes = [info[f"privileged/block_{index}_pos"] for index in range(len(goals))]
        away = [index for index, goal in enumerate(goals) if np.linalg.norm(cubes[index] - goal) > AT]
        for index in sorted(away, key=lambda item: goals[item][2]):
            others = [cube for other, cube in enumerate(cubes) if other != index]
            blocked = any(np.linalg.norm(cube - goals[index]) < CLEAR / 2 + 0.01 for cube in others)
            below = goals[index] - [0, 0, 0.04]
            stands = goals[index][2] < 0.04 or any(np.linalg.norm(cube - below) < AT for cube in others)
            if stands and not blocked:
                return Task("cube", index, goals[index])
        if not away:
            return None
        free = [np.array([x, y, 0.02]) for x, y in product((0.35, 0.425, 0.5), (-0.2, -0.1, 0.0, 0.1, 0.2))]
        taken = [*cubes, *goals]
        return Task("cube", away[0], max(free, key=lambda place: min(np.linalg.norm(place - item) for item in taken)))

    def _scene(self, info: dict[str, Any]) -> Task | None:
        """Drawer and window move only while their buttons (0 and 1) are on; the buttons' own goals come last."""
        states, slides = info["button_states"], self._sim.slide_goals()
        cube, goal = info["privileged/block_0_pos"], self._sim.cube_goals()[0]
        inside, away = goal[1] < IN_DRAWER, np.linalg.norm(cube - goal) > AT
        steps: list[Task] = []
        if inside and away and not self._sim._is_in_drawer(cube):
            steps = [Task("drawer", 0, OPEN), Task("cube", 0, DROP)]
        elif not inside and away:
            steps = [Task("cube", 0, goal)]
        steps += [Task(name, 0, position) for name, position in slides.items()]
        for task in steps:
            if not self._done(task, info):
                button = {"drawer": 0, "window": 1}.get(task.kind)
                return task if button is None or states[button] else Task("button", button, 1)
        wrong = [index for index, state in enumerate(self._sim.button_goals()) if states[index] != state]
        return Task("button", wrong[0], 1 - int(states[wrong[0]])) if wrong else None

    def _position(self, name: str) -> float:
        return float(self._sim.data.joint(f"{name}_slide").qpos[0])


def solve(states: np.ndarray, goals: np.ndarray) -> list[int]:
    """The fewest buttons of a square of lights to press, each of which switches itself and its neighbours (modulo 2)."""
    side = round(len(states) ** 0.5)
    wanted = int("".join(str(int(a != b)) for a, b in zip(states, goals, strict=True)), 2)
    masks = []
    for row, column in product(range(side), range(side)):
        near = [(row, column), (row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
        masks.append(sum(1 << (side * side - 1 - r * side - c) for r, c in near if 0 <= r < side and 0 <= c < side))
    found = None
    for presses in range(1 << len(masks)):
        chosen = [index for index in range(len(masks)) if presses >> index & 1]
        total = 0
        for index in chosen:
            total ^= masks[index]
        if total == wanted and (found is None or len(chosen) < len(found)):
            found = chosen
    return found or []
