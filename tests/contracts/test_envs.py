"""That Metaworld is upstream's Metaworld, and what is the same for all simulators, tried on it: names, actions, pictures."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from acting import play, state
from kinoise.envs import episode_seed, make, tasks
from kinoise.envs import metaworld as ours
from kinoise.envs.pictured import VIEW_SIZE
from kinoise.spec import KinoiseError

MT10 = tasks("metaworld/mt10")
ONE = "metaworld/push"


@pytest.fixture(scope="module")
def env():
    env = make(ONE)
    yield env
    env.close()


@cache
def pictured():
    return make("metaworld/window-close", render=True, cameras=("topview", "corner", "corner2", "corner4"), size=48)


def test_without_a_seed_episodes_differ_and_follow_from_the_last_seed(env):
    def three() -> list[bytes]:
        return [env.reset(seed=seed)[0]["state"].tobytes() for seed in (3, None, None)]

    assert len(set(three())) == 3
    assert three() == three()


def test_actions_beyond_the_bounds_are_clipped(env):
    state(env, 0)
    within = env.step(np.float32([1, -1, 1, -1]))[0]["state"]
    state(env, 0)
    np.testing.assert_array_equal(env.step(np.float32([7, -7, 7, -7]))[0]["state"], within)


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (np.float32([0, np.nan, 0, 0]), "finite"),
        (np.float32([0, np.inf, 0, 0]), "finite"),
        (np.zeros(3), "shape"),
        (np.zeros((1, 4)), "shape"),
    ],
)
def test_what_is_no_action_is_refused(env, action, said):
    env.reset(seed=0)
    with pytest.raises(KinoiseError, match=said):
        env.step(action)


def test_success_does_not_end_an_episode_and_the_horizon_does():
    env = make("metaworld/reach")
    for early in (lambda: env.step(np.zeros(4)), env.initial):
        with pytest.raises(KinoiseError, match="reset"):
            early()
    expert, (observation, _) = env.expert(), env.reset(seed=0)
    ends, succeeded = [], []
    for _ in range(env.horizon):
        observation, _, terminated, truncated, info = env.step(expert.act(observation))
        ends.append((terminated, truncated))
        succeeded.append(info["success"])
    assert succeeded[-1] is True
    assert succeeded.index(True) < 200
    assert ends == [(False, False)] * (env.horizon - 1) + [(False, True)]
    with pytest.raises(KinoiseError, match="reset"):
        env.step(np.zeros(4))
    env.close()


def test_physics_that_blow_up_are_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env = make(ONE)
    env.reset(seed=0)
    env._sim.data.qvel[:] = 1e12
    with pytest.raises(KinoiseError, match="unstable"):
        env.step(np.zeros(4))
    env.reset(seed=0)
    env.step(np.zeros(4))
    env.close()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("metaworld/psuh", "metaworld/push"),
        ("metaword/push", "metaworld/push"),
        ("metaworld/mt11", "metaworld/mt10"),
        ("pushh", "metaworld/push"),
        ("", "metaworld/mt10"),
        ("metaworld", "metaworld/mt10"),
    ],
)
def test_an_unknown_env_is_refused_with_what_was_perhaps_meant(name, said):
    with pytest.raises(KinoiseError, match=said):
        tasks(name)


def test_other_names_for_a_task():
    assert tasks("metaworld/push-v3") == tasks("push-v3") == tasks("push") == tasks(ONE) == (ONE,)


def test_several_tasks_are_named_with_commas_in_the_order_given():
    assert tasks("metaworld/reach,push-v3") == ("metaworld/reach", ONE)
    assert tasks("push,reach") == tasks("metaworld/push,metaworld/reach") == (ONE, "metaworld/reach")
    assert tasks("metaworld/mt10,assembly") == (*MT10, "metaworld/assembly")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("metaworld/push,reach,push", "named twice"),
        ("metaworld/push,push-v3", "named twice"),
        ("metaworld/mt10,push", "named twice"),
        ("metaworld/reach,psuh", "metaworld/push"),
        ("metaworld/push,", "unknown env"),
        ("push,metaworld/push", "named twice"),
    ],
)
def test_a_list_of_tasks_names_each_once_and_only_tasks(name, said):
    with pytest.raises(KinoiseError, match=said):
        tasks(name)


def test_a_suite_and_a_list_are_no_environment():
    with pytest.raises(KinoiseError, match="unknown env"):
        make("metaworld/push,reach")
    with pytest.raises(KinoiseError, match="suite"):
        make("metaworld/mt10")


def test_episode_seeds_depend_on_everything_and_on_nothing_else():
    seeds = {episode_seed(seed, task, index) for seed in range(4) for task in MT10 for index in range(20)}
    assert len(seeds) == 4 * 10 * 20
    assert all(0 <= seed < 2**53 for seed in seeds)
    code = f"from kinoise.envs import episode_seed; print(episode_seed(3, {ONE!r}, 7))"
    elsewhere = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": "1"}, capture_output=True)
    assert int(elsewhere.stdout) == episode_seed(3, ONE, 7)
    with pytest.raises(KinoiseError, match="at least 0"):
        episode_seed(-1, ONE, 0)


# Pictures


def test_images_are_as_the_spec_says():
    env = pictured()
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert list(observation) == ["state", "proprio", "image.topview", "image.corner", "image.corner2", "image.corner4"]
    assert list(env.spec.observations) == list(observation)
    assert observation["image.corner"].shape == (48, 48, 3)
    frame = env.render()
    assert frame.shape == (VIEW_SIZE, VIEW_SIZE, 3)
    assert frame.dtype == np.uint8


def test_with_cameras_there_is_what_a_robot_knows_without_looking(env):
    """Hand and gripper, as the state has them; without cameras there is nothing to leave out."""
    seeing = pictured()
    seeing.reset(seed=0)
    observation = seeing.step(np.float32([1, -1, 1, 1]))[0]
    np.testing.assert_array_equal(observation["proprio"], observation["state"][:4])
    assert not np.shares_memory(observation["proprio"], observation["state"])
    feature, state = seeing.spec.observations["proprio"], seeing.spec.observations["state"]
    assert (feature.shape, feature.names, feature.unit) == ((4,), state.names[:4], state.unit[:4])
    assert "proprio" not in env.spec.observations
    assert "proprio" not in env.reset(seed=0)[0]


@pytest.mark.parametrize("camera", ["corner", "corner2", "corner4"])
def test_pictures_are_the_right_way_up(camera):
    """The sky is at the top. Upstream's cameras hang upside down."""
    image = pictured().reset(seed=0)[0][f"image.{camera}"]
    sky = np.abs(image.astype(int) - np.array([127, 126, 122])).max(axis=-1) < 4
    assert sky[:12].mean() > 0.5
    assert sky[-12:].mean() < 0.1


def test_the_first_picture_shows_where_things_are():
    """The window's pane is moved to its place by the reset: upstream's first picture shows it elsewhere."""
    env = pictured()
    first = env.reset(seed=0)[0]["image.corner4"].astype(int)
    second = env.step(np.zeros(4))[0]["image.corner4"].astype(int)
    assert (np.abs(first - second).max(axis=-1) > 40).mean() < 0.005


def test_pictures_change_nothing_but_the_pictures():
    plain = make("metaworld/window-close")
    (seen, *others), (states, *rest) = play(pictured(), 4, 40), play(plain, 4, 40)
    np.testing.assert_array_equal(seen[:, : states.shape[1]], states)  # what is more is "proprio", of the same numbers
    assert others == rest
    plain.close()


def test_rendering_must_be_asked_for(env):
    env.reset(seed=0)
    with pytest.raises(KinoiseError, match="render=True"):
        env.render()


def test_an_unknown_camera_is_refused():
    with pytest.raises(KinoiseError, match="Did you mean corner"):
        make(ONE, cameras=["cornr"])


def python(code: str, **variables: str) -> str:
    rest = {key: value for key, value in os.environ.items() if key != "MUJOCO_GL"}
    done = subprocess.run([sys.executable, "-c", code], env={**rest, **variables}, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def test_opengl_is_chosen_where_nothing_is_said():
    code = f"from kinoise.envs import make; env = make({ONE!r}, render=True); env.reset(seed=0); print(env.render().std() > 9)"
    assert python(code) == "True\n"


def test_without_opengl_states_are_had_and_pictures_are_refused_with_the_remedy():
    code = f"""
from kinoise.envs import make
from kinoise.spec import KinoiseError
print(len(make({ONE!r}).reset(seed=0)[0]["state"]))
try:
    make({ONE!r}, cameras=["corner"])
except KinoiseError as error:
    print(error)
"""
    length, error = python(code, MUJOCO_GL="disable").splitlines()
    assert length == "39"
    assert "libegl1" in error
    assert "MUJOCO_GL=disable" in error


# Metaworld


@pytest.mark.parametrize("task", MT10)
def test_one_policy_fits_all_tasks(task, env):
    other = make(task)
    assert other.spec == env.spec
    assert other.spec.rate == 80
    other.close()


def test_cameras_are_the_models():
    model = make(ONE).unwrapped._sim.model
    assert tuple(model.camera(index).name for index in range(model.ncam)) == ours.CAMERAS
    with pytest.raises(KinoiseError, match="between 1 and"):
        make(ONE, cameras=("corner",), size=100_000)


def test_tasks_are_upstreams():
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS, MT10_V3

    assert [f"{task}-v3" for task in ours.TASKS] == list(ALL_V3_ENVIRONMENTS)
    assert len(tasks("metaworld/mt50")) == 50
    assert [f"{task}-v3" for task in ours.SUITES["mt10"]] == list(MT10_V3)


@pytest.mark.parametrize("task", [*MT10, "metaworld/dial-turn", "metaworld/basketball", "metaworld/stick-push"])
def test_an_episode_is_upstreams_in_a_fresh_environment_with_the_same_draw(task):
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    env = make(task)
    play(env, 1, 5)
    states, rewards, _ = play(env, 2, 60)
    fresh = ALL_V3_ENVIRONMENTS[f"{task.removeprefix('metaworld/')}-v3"]()
    fresh._partially_observable, fresh._set_task_called = False, True
    del fresh.sawyer_observation_space
    fresh._last_rand_vec = np.array(env.initial()["rand_vec"])
    expert, (observation, _) = env.expert(), fresh.reset()
    for step, reward in enumerate(rewards):
        np.testing.assert_array_equal(observation.astype(np.float32), states[step])
        observation, found, *_ = fresh.step(expert.act({"state": states[step]}))
        assert found == reward
    env.close()


def test_touching_is_judged_as_upstream_does():
    from metaworld.sawyer_xyz_env import SawyerXYZEnv

    env = make("metaworld/pick-place")
    expert, (observation, _) = env.expert(), env.reset(seed=0)
    judged = []
    for _ in range(80):
        observation, *_ = env.step(expert.act(observation))
        geom = env._sim._get_id_main_object()
        judged.append(env._sim.touching_object(geom))
        assert judged[-1] == SawyerXYZEnv.touching_object(env._sim, geom)
    assert set(judged) == {False, True}
    env.close()


def test_closing_one_environment_leaves_the_pictures_of_another():
    kept, other = make("metaworld/reach", render=True), make("metaworld/push", render=True)
    kept.reset(seed=0)
    other.reset(seed=0)
    other.render()
    before = kept.render()  # its context is the current one when the other is closed
    other.close()
    np.testing.assert_array_equal(kept.render(), before)
    kept.close()
