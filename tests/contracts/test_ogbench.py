"""That OGBench's tasks are upstream's with all randomness from the seed, and that the demonstrator reaches their goals."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from kinoise.envs import Env, make, tasks
from kinoise.envs.experts.ogbench import solve
from kinoise.envs.ogbench import GOALS, HORIZONS, TASKS
from kinoise.eval.collect import main as collect
from kinoise.spec import KinoiseError, SpecMismatch

pytest.importorskip("ogbench", reason="OGBench is optional: pip install -c constraints.txt -e '.[ogbench]'")

IDLE = np.zeros(5, np.float32)
# Of each task the goals that ask most of the demonstrator: two cubes to be swapped or stacked, a cube into the locked drawer.
HARD = {"cube-single": (4,), "cube-double": (3, 4), "scene": (4,), "puzzle-3x3": (2,)}


@cache
def env_of(task: str) -> Env:
    return make(f"ogbench/{task}")


@pytest.mark.parametrize("task", TASKS)
def test_the_tasks_are_upstreams(task: str) -> None:
    import ogbench.manipspace  # noqa: F401 (registers them)

    env = env_of(task)
    assert tasks(f"ogbench/{task}-v0") == (f"ogbench/{task}",) == (env.task,)
    assert gymnasium.spec(f"{task}-v0").max_episode_steps == HORIZONS[task]
    assert env._sim.num_tasks == GOALS == env.stored
    env.reset(seed=0, options={"index": 2})
    assert env.initial()["goal"] == env._sim.cur_task_id == 3


def test_tasks_that_see_different_things_are_not_collected_into_one_data_set(tmp_path: Path) -> None:
    with pytest.raises(SpecMismatch, match="cube-double"):
        collect([f"out={tmp_path / 'data'}", "env=ogbench/cube-single,cube-double", "episodes=2", "workers=1"])
    assert not list(tmp_path.iterdir()), "before any work"


@pytest.mark.parametrize("task", TASKS)
def test_what_is_observed_is_what_upstream_scales(task: str) -> None:
    env = env_of(task)
    env.reset(seed=1)
    for _ in range(3):
        observation, *_ = env.step(np.float32([1, 2, -3, 0.1, 0.5]))
    theirs = env._sim.compute_observation()
    mine = observation["proprio"]
    np.testing.assert_allclose(mine[:12], theirs[:12], rtol=1e-6)
    np.testing.assert_allclose((mine[12:15] - [0.425, 0, 0]) * 10, theirs[12:15], atol=1e-5)
    np.testing.assert_allclose(mine[15:19] * [1, 1, 3, 1], theirs[15:19], atol=1e-6)
    if task.startswith("cube"):
        cubes = observation["objects"].reshape(-1, 9)
        np.testing.assert_allclose((cubes[:, :3] - [0.425, 0, 0]) * 10, theirs[19:].reshape(-1, 9)[:, :3], atol=1e-5)
        np.testing.assert_allclose(cubes[:, 3:], theirs[19:].reshape(-1, 9)[:, 3:], atol=1e-6)
    names = env.spec.observations["goal"].names
    assert all(name.startswith("goal.") for name in names)
    assert len(set(names)) == len(observation["goal"])


@pytest.mark.parametrize("task", TASKS)
def test_success_is_that_all_things_are_where_the_goal_says(task: str) -> None:
    env = env_of(task)
    for index in HARD[task]:
        observation, _ = env.reset(seed=index, options={"index": index})
        expert = env.expert()
        for _ in range(env.horizon):
            action = expert.act(observation)
            assert env.action_space.contains(action)
            observation, _, terminated, _, info = env.step(action)
            assert not terminated
            if info["success"]:
                break
        assert info["success"], index
    seen: dict[str, float] = {}
    for key, feature in env.spec.observations.items():
        seen |= dict(zip(feature.names, observation[key], strict=True))
    wanted = {name.removeprefix("goal."): value for name, value in seen.items() if name.startswith("goal.")}
    for name, value in wanted.items():
        assert abs(seen[name] - value) <= 0.041, name


def test_episodes_are_drawn_from_the_seed_and_goals_by_the_index() -> None:
    env = env_of("cube-double")
    goals = {env.reset(seed=seed)[1]["goal"] for seed in range(30)}
    assert goals == set(range(1, GOALS + 1))
    first = [env.reset(seed=3, options={"index": 7})[0], *(env.step(IDLE)[0] for _ in range(3))]
    env.reset(seed=4)
    for _ in range(5):
        env.step(np.float32([5, 5, -5, 0.3, 1]))
    again = [env.reset(seed=3, options={"index": 7})[0], *(env.step(IDLE)[0] for _ in range(3))]
    for one, other in zip(first, again, strict=True):
        for key, item in one.items():
            np.testing.assert_array_equal(item, other[key])
    assert not np.array_equal(env.reset(seed=5, options={"index": 7})[0]["objects"], first[0]["objects"])
    env.horizon = 2
    env.reset(seed=0)
    assert [env.step(IDLE)[3] for _ in range(2)] == [False, True]
    with pytest.raises(KinoiseError, match="call reset"):
        env.step(IDLE)
    env.horizon = HORIZONS["cube-double"]


def test_pictures_are_upright_and_change_nothing_else() -> None:
    plain, seeing = env_of("scene"), make("ogbench/scene", cameras=["front"], size=64, render=True)
    expected, found = plain.reset(seed=2)[0], seeing.reset(seed=2)[0]
    assert all(np.array_equal(found[key], item) for key, item in expected.items())
    picture = found["image.front"].astype(float)
    assert picture.shape == (64, 64, 3)
    arm, floor = picture[:24].std(), picture[56:].std()
    assert arm > floor, "the arm stands in the upper half, the floor before it is plain"
    assert seeing.render().shape == (384, 384, 3)
    with pytest.raises(KinoiseError, match="Did you mean front"):
        make("ogbench/scene", cameras=["frnt"])
    seeing.close()


def test_lights_are_switched_by_the_fewest_presses() -> None:
    off, gen = np.zeros(9, int), np.random.default_rng(0)
    neighbours = [[i for i in range(9) if abs(i // 3 - j // 3) + abs(i % 3 - j % 3) <= 1] for j in range(9)]
    assert solve(off, off) == []
    for _ in range(5):
        pressed = sorted(gen.choice(9, 4, replace=False).tolist())
        lights = off.copy()
        for button in pressed:
            lights[neighbours[button]] ^= 1
        assert solve(off, lights) == pressed  # on 3 x 3 there is one way to each pattern
