"""LIBERO's demonstrators from end to end: they reach their goals by the environment's own actions, and alike every time."""

from __future__ import annotations

import numpy as np
import pytest
from kinoise.envs.experts.libero.cloud import Clouds
from kinoise.envs.experts.libero.expert import LiberoExpert
from kinoise.envs.experts.libero.motion import CLOSED, FINGERS, OPEN, move
from kinoise.envs.experts.libero.pick import grasps_of, release, take
from kinoise.envs.experts.libero.place import places
from kinoise.envs.experts.libero.scene import Pose
from kinoise.envs.experts.libero.travel import approach, raised
from libero_scenes import begun, env, played

pytest.importorskip("libero", reason="LIBERO isn't installed: make libero")

# By task: the steps that a demonstration may take.
TASKS = {"libero/object-0": 160, "libero/spatial-5": 160, "libero/goal-3": 280, "libero/90-86": 200}
BOWL, PLATE = "akita_black_bowl_1", "plate_1"


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_demonstrated(task: str) -> None:
    expert = LiberoExpert(begun(task).env)
    noise = np.random.default_rng(0)
    for _ in range(TASKS[task]):
        action = expert.act({})
        assert action.shape == (7,)
        assert action.dtype == np.float32
        assert np.abs(action).max() <= 1
        *_, info = env(task).step(np.clip(action + 0.1 * noise.standard_normal(7), -1, 1).astype(np.float32))
        if info["success"]:
            break
    else:
        pytest.fail(f"{task}: {expert.log} {expert.scene.notes}")


@pytest.mark.parametrize("how", ["it is back where it was", "the fingers open"])
def test_what_was_lost_is_picked_up_again(how: str) -> None:
    task, index = "libero/object-0", 0 if how == "the fingers open" else 1
    scene = begun(task, index)
    expert, (_, thing, _) = LiberoExpert(scene.env), scene.goal[0]
    joint = scene.model.joint(scene.env.objects_dict[thing].joints[0])
    places, speeds = slice(joint.qposadr[0], joint.qposadr[0] + 7), slice(joint.dofadr[0], joint.dofadr[0] + 6)
    start, held_at, lost_at = scene.data.qpos[places].copy(), 0.0, None
    for step in range(env(task).horizon - 10):
        action, height = expert.act({}), scene.pose(thing).position[2] - start[2]
        if lost_at is None and scene.grasped(thing) and height > 0.08:
            lost_at, held_at = step, height
            if how == "it is back where it was":
                scene.data.qpos[places], scene.data.qvel[speeds] = start, 0
        if lost_at is not None and how == "the fingers open" and step < lost_at + FINGERS:
            action[6] = OPEN
        *_, info = env(task).step(action)
        if lost_at is not None and step == lost_at + FINGERS:
            assert not scene.grasped(thing), "it was never lost"
            assert scene.pose(thing).position[2] - start[2] < held_at - 0.05
        if info["success"]:
            break
    else:
        pytest.fail(f"{expert.log} {scene.notes}")
    assert lost_at is not None
    assert step > lost_at + FINGERS
    assert any("failed" in entry for entry in expert.log), "it did not notice"


def test_the_same_state_has_the_same_demonstration() -> None:
    actions = []
    for _ in range(2):
        expert = LiberoExpert(begun("libero/spatial-0").env)
        actions.append(np.stack([_acted(expert) for _ in range(30)]))
    assert np.array_equal(*actions)


def _acted(expert: LiberoExpert) -> np.ndarray:
    action = expert.act({})
    env("libero/spatial-0").step(action)
    return action


def test_a_thing_is_taken_lifted_and_let_go() -> None:
    task, scene = "libero/spatial-0", begun("libero/spatial-0")
    hand = grasps_of(scene, Clouds(scene), BOWL)[0].hand
    before = scene.pose(BOWL).position[2]
    played(task, approach(scene, Clouds(scene), hand, OPEN, ()))
    assert played(task, move(scene, hand, OPEN, within=0.012))
    assert played(task, take(scene, BOWL, hand))
    assert played(task, move(scene, raised(hand, 0.1), CLOSED, within=0.02))
    assert scene.grasped(BOWL)
    assert scene.pose(BOWL).position[2] > before + 0.05
    played(task, release(scene))
    assert not scene.grasped(BOWL)


def test_fingers_that_close_on_nothing_say_so() -> None:
    scene = begun("libero/spatial-0")
    assert not played("libero/spatial-0", take(scene, BOWL, scene.hand()))


def test_a_pose_out_of_reach_is_given_up() -> None:
    scene = begun("libero/spatial-0")
    far = Pose(scene.hand().position + np.array([2.0, 0.0, 0.0]), scene.hand().rotation)
    assert not played("libero/spatial-0", move(scene, far, OPEN))


def test_places_would_make_the_predicate_true() -> None:
    scene = begun("libero/spatial-0")
    found = places(scene, Clouds(scene), ("on", BOWL, PLATE))
    plate = scene.pose(PLATE).position
    assert found
    for item in found:
        assert np.linalg.norm(item.pose.position[:2] - plate[:2]) < 0.03
        assert 0.0 <= item.pose.position[2] - plate[2] < 0.03
    assert [item.cost for item in found] == sorted(item.cost for item in found)
