"""That Push-T is gym-pusht's Push-T, and what its demonstrator rests on: a model of the pushes, and ways round the block."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from gym_pusht.envs.pusht import PushTEnv
from kinoise.envs import cameras, choices, make, tasks
from kinoise.envs.experts import pusht_model, pusht_planner, pusht_ways
from kinoise.envs.experts.pusht import AHEAD
from kinoise.envs.pusht import HORIZON, VIEW_SIZE
from kinoise.spec import KinoiseError

ONE = "pusht/pusht"


@pytest.fixture
def env():
    env = make(ONE)
    yield env
    env.close()


def attempt(
    env, seed: int, noise: float = 0.0
) -> tuple[list[dict[str, np.ndarray]], list[np.ndarray], list[dict], list[float]]:
    """The expert's observations, actions, infos and rewards, up to success."""
    expert, (observation, _), gen = env.expert(), env.reset(seed=seed), np.random.default_rng(seed)
    observations, actions, infos, rewards = [observation], [], [], []
    for _ in range(env.horizon):
        actions.append(expert.act(observation))
        observation, reward, *_, info = env.step(actions[-1] + noise * gen.standard_normal(2))
        observations.append(observation)
        infos.append(info)
        rewards.append(reward)
        if info["success"]:
            break
    return observations, actions, infos, rewards


def test_the_task_has_short_names():
    assert tasks("pusht") == tasks("pusht/pusht") == tasks("PushT-v0") == (ONE,)
    assert f"; {ONE}" in choices()
    assert "pusht: top" in cameras()


def test_an_episode_is_upstreams(env):
    upstream = PushTEnv(obs_type="environment_state_agent_pos")
    for seed in (3, 4):
        observation, _ = env.reset(seed=seed)
        expected, _ = upstream.reset(seed=seed)
        gen, target = np.random.default_rng(seed), np.array([256.0, 256.0])
        for _ in range(40):
            np.testing.assert_array_equal(observation["agent"], expected["agent_pos"].astype(np.float32))
            np.testing.assert_array_equal(observation["keypoints"], expected["environment_state"].astype(np.float32))
            np.testing.assert_allclose(observation["block"][:2], observation["keypoints"][:4].reshape(2, 2).mean(0), atol=1e-3)
            target = np.clip(target + 30 * gen.standard_normal(2), 0, 512).astype(np.float32).astype(np.float64)
            observation, reward, terminated, _, info = env.step(target)
            expected, *rest = upstream.step(target)
            assert not terminated
            assert (reward, info["coverage"], info["success"]) == (rest[0], rest[3]["coverage"], rest[3]["is_success"])


def test_actions_are_places_on_the_table(env):
    spec = env.spec
    assert (spec.action.low, spec.action.high) == ((0, 0), (512, 512))
    assert (spec.rate, spec.control, spec.gripper) == (10, "absolute", ())
    env.reset(seed=0)
    for _ in range(20):
        observation, *_ = env.step(np.float32([40, 60]))
    np.testing.assert_allclose(observation["agent"], [40, 60], atol=0.5)
    for _ in range(20):
        observation, *_ = env.step(np.float32([-100, 900]))
    np.testing.assert_allclose(observation["agent"], [0, 512], atol=0.5)


def test_the_horizon_ends_an_episode(env):
    for early in (lambda: env.step(np.zeros(2)), env.initial):
        with pytest.raises(KinoiseError, match="reset"):
            early()
    env.reset(seed=0)
    ends = [env.step(np.float32([20, 20]))[2:4] for _ in range(HORIZON)]
    assert ends == [(False, False)] * (HORIZON - 1) + [(False, True)]
    with pytest.raises(KinoiseError, match="reset"):
        env.step(np.zeros(2))


# Pictures


def test_the_camera_sees_the_disc_where_it_is_and_changes_nothing(env):
    seeing = make(ONE, render=True, cameras=("top",), size=128)
    observation, _ = seeing.reset(seed=1)
    assert seeing.observation_space.contains(observation)
    assert list(seeing.spec.observations) == list(observation) == ["agent", "block", "keypoints", "image.top"]
    image = observation["image.top"].astype(int)
    assert image.shape == (128, 128, 3)
    blue = np.argwhere((image[..., 2] > 200) & (image[..., 0] < 120))
    np.testing.assert_allclose(blue.mean(0)[::-1] * 4, observation["agent"], atol=8)
    first = seeing.render()
    assert (first.shape, first.dtype) == ((VIEW_SIZE, VIEW_SIZE, 3), np.uint8)

    plain, _ = env.reset(seed=1)
    for _ in range(5):
        for key, item in plain.items():
            np.testing.assert_array_equal(item, observation[key])
        observation, plain = seeing.step(np.float32([300, 300]))[0], env.step(np.float32([300, 300]))[0]
    seeing.reset(seed=1)
    np.testing.assert_array_equal(seeing.render(), first)
    seeing.close()


def test_pictures_must_be_asked_for_and_be_there(env):
    env.reset(seed=0)
    with pytest.raises(KinoiseError, match="render=True"):
        env.render()
    with pytest.raises(KinoiseError, match="Did you mean top"):
        make(ONE, cameras=["tpo"])
    with pytest.raises(KinoiseError, match="between 1 and"):
        make(ONE, cameras=["top"], size=0)


def test_without_gym_pusht_all_works_but_to_make_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gym_pusht.envs.pusht", None)
    assert tasks("pusht") == (ONE,)
    assert ONE in choices()
    with pytest.raises(KinoiseError, match="pip install"):
        make(ONE)


def test_nothing_is_imported_or_printed_before_it_is_needed():
    code = """
import sys
from kinoise.envs import choices, make
choices()
assert not {"pygame", "pymunk", "cv2", "gym_pusht"} & sys.modules.keys()
make("pusht").close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


# The demonstrator


def test_the_expert_succeeds_calmly_and_always_in_the_same_way(env):
    observations, actions, infos, rewards = attempt(env, 3)
    assert [info["coverage"] > 0.95 for info in infos] == [info["success"] for info in infos]
    assert (infos[-1]["success"], rewards[-1]) == (True, 1.0)
    ahead = [np.linalg.norm(action - seen["agent"]) for action, seen in zip(actions, observations, strict=False)]
    speeds = [np.linalg.norm(after["agent"] - seen["agent"]) for seen, after in pairwise(observations)]
    assert max(ahead) <= AHEAD + 1e-3
    assert max(speeds) <= 15
    assert all(env.action_space.contains(action) for action in actions)
    again = attempt(env, 3)[1]
    np.testing.assert_array_equal(np.stack(again), np.stack(actions))


def test_the_expert_recovers_from_noise_and_then_leaves_the_block_alone(env):
    assert all(attempt(env, seed, noise=4.0)[2][-1]["success"] for seed in (1, 12))  # in 12 a wall is in the way
    expert, (observation, _) = env.expert(), env.reset(seed=2)
    for step in range(170):
        before = observation
        observation, *_, info = env.step(expert.act(observation))
        if step >= 150:
            np.testing.assert_array_equal(observation["block"], before["block"])
            np.testing.assert_allclose(observation["agent"], before["agent"], atol=1)
    assert info["coverage"] > 0.96


@pytest.mark.parametrize("seed", range(6))
def test_the_model_pushes_as_the_simulator_does(seed):
    upstream, gen = PushTEnv(), np.random.default_rng(seed)
    upstream.reset(seed=seed)
    upstream.block.position, upstream.block.angle = (256, 256), gen.uniform(-3, 3)
    upstream.space.reindex_shapes_for_body(upstream.block)
    pose = pusht_model.pose_of(*upstream.block.position, upstream.block.angle)
    around = gen.uniform(-np.pi, np.pi)
    begin = pose[:2] + 130 * np.array([np.cos(around), np.sin(around)])
    way = pose[:2] + gen.uniform(-30, 30, 2) - begin
    end = begin + 150 * way / np.linalg.norm(way)
    upstream.agent.position, upstream.agent.velocity = begin.tolist(), (0, 0)
    for _ in range(40):
        here = np.array(upstream.agent.position)
        upstream.step(here + (end - here) * min(1, 28 / np.linalg.norm(end - here)))
    found = pusht_model.pose_of(*upstream.block.position, upstream.block.angle)
    assert np.linalg.norm(found[:2] - pose[:2]) > 10
    model = pusht_model.push(pose[None], begin[None], (end - begin)[None] / 75, 75)[-1, 0]
    np.testing.assert_allclose(model[:2], found[:2], atol=1.5)
    np.testing.assert_allclose(model[2], found[2], atol=0.03)


def test_a_push_through_the_centre_does_not_turn_and_one_that_misses_does_nothing():
    pose = np.array([[200.0, 200.0, 0.0]])
    through = pusht_model.push(pose, np.array([[200.0, 130.0]]), np.array([[0.0, 2.0]]), 30)[-1]
    np.testing.assert_allclose(through, [[200, 200 + 130 + 60 + 15 - 155, 0]], atol=1e-6)
    missed = pusht_model.push(pose, np.array([[100.0, 130.0]]), np.array([[0.0, 2.0]]), 30)
    np.testing.assert_array_equal(missed, np.repeat(pose[None], 30, 0))


def test_ways_lead_before_every_side_and_keep_away_from_the_block():
    gen = np.random.default_rng(0)
    for pose in ([250.0, 250.0, 0.3], [300.0, 200.0, 4.0]):
        pose = np.array(pose)
        disc = pusht_model.to_world(pusht_ways.TOUCH[gen.integers(len(pusht_ways.TOUCH))], pose)
        lengths = pusht_ways.distances(pose[None], disc[None])[0]
        assert np.isfinite(lengths).all()
        for contact in range(0, len(lengths), 3):
            points = pusht_ways.way(pose, disc, contact)
            np.testing.assert_allclose(pusht_model.to_block(points[-1], pose), pusht_ways.BEFORE[contact], atol=1e-9)
            legs = np.linalg.norm(np.diff(np.concatenate([disc[None], points]), axis=0), axis=1)
            assert legs.sum() == pytest.approx(lengths[contact])
            for begin, end in pairwise(points):
                between = np.linspace(begin, end, 200)
                assert pusht_model.clearance(pusht_model.to_block(between, pose)).min() > pusht_ways.MARGIN - 1.5


def test_a_push_of_a_block_that_can_be_aligned_at_once_aligns_it():
    """The block is one straight push short of the target, the disc behind it."""
    goal = pusht_planner.GOAL
    pose = goal - np.append(40 * pusht_model.turn(np.array([0.0, 1.0]), goal[2]), 0)
    found = pusht_planner.plan(pose, pusht_model.to_world(np.array([0.0, -120.0]), pose))
    assert found is not None
    np.testing.assert_allclose(found.end, pusht_model.to_world(np.array([0.0, -60.0]), goal), atol=4)
    assert pusht_planner.error(pose) == pytest.approx(40)
    assert pusht_planner.error(goal) == 0


def test_where_no_side_can_be_reached_the_expert_waits(env):
    """The whole block is beyond the table's edge."""
    block = np.float32([900, 900, 1, 0])
    action = env.expert().act({"agent": np.float32([100, 100]), "block": block, "keypoints": np.zeros(16, np.float32)})
    np.testing.assert_array_equal(action, [100, 100])
