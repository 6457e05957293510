"""The demonstrators' skills for LIBERO's drawers, doors, knobs and pushes: each does its part alone and leaves it done."""

from __future__ import annotations

import numpy as np
import pytest
from kinoise.envs.experts.libero.articulated import articulated
from kinoise.envs.experts.libero.drawer import openness
from kinoise.envs.experts.libero.scene import Scene
from libero_scenes import begun, env

pytest.importorskip("libero", reason="LIBERO isn't installed: make libero")

# By what is done: a task, the predicate, the steps that it may take, and how often it may be tried.
SKILLS = {
    "open the middle drawer": ("libero/goal-5", ["open", "wooden_cabinet_1_middle_region"], 110, 1),
    "open the top drawer": ("libero/goal-5", ["open", "wooden_cabinet_1_top_region"], 110, 1),
    "open the bottom drawer": ("libero/90-6", ["open", "wooden_cabinet_1_bottom_region"], 110, 1),
    "close the bottom drawer": ("libero/90-22", ["close", "white_cabinet_1_bottom_region"], 90, 1),
    "close the microwave": ("libero/90-33", ["close", "microwave_1"], 110, 1),
    "open the microwave": ("libero/90-35", ["open", "microwave_1"], 160, 1),
    "turn on the stove": ("libero/goal-5", ["turnon", "flat_stove_1"], 110, 1),
    "turn off the stove": ("libero/90-39", ["turnoff", "flat_stove_1"], 140, 1),
    "push the plate": ("libero/goal-5", ["on", "plate_1", "main_table_stove_front_region"], 140, 3),
}


def played(task: str, scene: Scene, predicate: list[str], attempt: int = 0) -> tuple[bool, np.ndarray]:
    """What the skill for `predicate` returned, and its actions, [steps, 7]."""
    skill = articulated(scene, predicate, attempt)
    assert skill is not None
    actions = []
    while True:
        try:
            actions.append(next(skill))
        except StopIteration as end:
            return bool(end.value), np.stack(actions)
        env(task).step(actions[-1])


@pytest.mark.parametrize("index", [0, 31])
@pytest.mark.parametrize("skill", SKILLS)
def test_a_skill_does_its_part_and_leaves_the_hand_clear(skill, index):
    task, predicate, most, tries = SKILLS[skill]
    scene = begun(task, index)
    assert not scene.holds(predicate)
    success = False
    for attempt in range(tries):
        success, actions = played(task, scene, predicate, attempt)
        assert np.abs(actions).max() <= 1 + 1e-6
        assert set(actions[:, 6]) <= {-1.0, 1.0}
        assert len(actions) <= most
        if success:
            break
    assert success
    assert scene.holds(predicate)
    assert not scene.hand_touches()
    for _ in range(10):
        env(task).step(env(task).idle_action())
    assert scene.holds(predicate), "it is done only as long as the hand holds it"


def test_an_opened_drawer_is_open_wide_enough_to_be_filled():
    scene = begun("libero/goal-5", 5)
    drawer = "wooden_cabinet_1_top_region"
    played("libero/goal-5", scene, ["open", drawer])
    assert openness(scene, drawer) > 0.93


def test_another_attempt_goes_another_way():
    ways = []
    for attempt in range(2):
        scene = begun("libero/goal-5", 0)
        _, actions = played("libero/goal-5", scene, ["turnon", "flat_stove_1"], attempt)
        ways.append(actions[:30])
    assert np.abs(ways[0] - ways[1]).max() > 0.02


def test_what_is_to_be_picked_up_is_left_to_others():
    scene = begun("libero/goal-5", 0)
    assert articulated(scene, ["on", "akita_black_bowl_1", "plate_1"]) is None
    assert articulated(scene, ["in", "akita_black_bowl_1", "wooden_cabinet_1_top_region"]) is None
    assert articulated(scene, ["on", "akita_black_bowl_1", "wooden_cabinet_1_top_side"]) is None
