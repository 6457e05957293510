"""What every registered environment owes its callers, whatever simulator is behind it."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from acting import WithoutSpec, moved, state
from gymnasium.utils.env_checker import check_env
from kinoise.envs import ENVS, choices, make, tasks
from kinoise.envs.register import Simulator

MODULES = {name: import_module(f"kinoise.envs{module}") for name, module in ENVS.items()}
# Building one of LIBERO's scenes takes five seconds: a few stand for all 130, which upstream builds by the same rules.
SOME = {"libero": ("libero/object-0", "libero/goal-5", "libero/10-4")}
ABSENT = {"libero": find_spec("libero") is None, "robosuite": find_spec("robosuite") is None}


def named(task: str) -> Any:
    """A task to test with, left out where its simulator isn't installed."""
    simulator = task.partition("/")[0]
    return pytest.param(task, marks=pytest.mark.skipif(ABSENT.get(simulator, False), reason=f"{simulator} isn't installed"))


ALL = [named(task) for name, module in MODULES.items() for task in SOME.get(name, [f"{name}/{item}" for item in module.TASKS])]
FEW = [
    named(task)
    for name, module in MODULES.items()
    for task in SOME.get(name, tasks(f"{name}/{next(iter(module.SUITES or module.TASKS))}"))
]


@pytest.fixture(scope="module", params=FEW)
def env(request: pytest.FixtureRequest) -> Any:
    env = make(request.param)
    yield env
    env.close()


@pytest.mark.parametrize("name", ENVS)
def test_every_simulator_is_listed_and_every_suite_is_made_of_its_tasks(name):
    assert isinstance(MODULES[name], Simulator)
    assert f"{name}/" in choices()
    assert MODULES[name].TASKS
    for suite, members in MODULES[name].SUITES.items():
        assert tasks(f"{name}/{suite}") == tuple(f"{name}/{task}" for task in members)
        assert set(members) <= MODULES[name].TASKS.keys()
        assert len(set(members)) == len(members)


@pytest.mark.parametrize("name", ENVS)
def test_instructions_are_distinct_sentences(name):
    # libero/90 asks for the same in several scenes, which are told apart by what stands there.
    texts = [text for task, text in MODULES[name].TASKS.items() if (name, task.partition("-")[0]) != ("libero", "90")]
    assert len(set(texts)) == len(texts)
    assert all(text == text.strip() and len(text.split()) >= 3 for text in texts)


@pytest.mark.parametrize("task", ALL)
def test_an_episode_begins_as_its_seed_says_whatever_came_before(task):
    env = make(task)
    first = state(env, 5)
    after, initial = moved(env), env.initial()
    for _ in range(5):
        env.step(env.action_space.sample())
    assert np.abs(state(env, 6) - first).max() > 1e-3
    assert env.initial() != initial
    for _ in range(5):
        env.step(env.action_space.sample())
    np.testing.assert_array_equal(state(env, 5), first)
    np.testing.assert_array_equal(moved(env), after)
    assert env.initial() == initial
    simulator, _, name = task.partition("/")
    assert (env.task, env.instruction) == (task, MODULES[simulator].TASKS[name])
    named = [name for item in env.spec.observations.values() for name in item.names]
    goal = first[[name.startswith("goal.") for name in named]]
    assert not goal.size or np.abs(goal).max() > 0, "the goal is hidden"
    env.close()


def test_a_spec_holds_for_what_is_observed(env):
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    for key, feature in env.spec.observations.items():
        assert (observation[key].shape, observation[key].dtype) == (feature.shape, feature.dtype)
        # robomimic's files name no dimensions, and robosuite's tasks have the specs that are read from there.
        assert len(feature.names) == len(feature.unit) == (0 if env.task.startswith("robosuite/") else feature.shape[0])


@pytest.mark.filterwarnings(
    "ignore:.*Box (observation|action) space:UserWarning",
    "ignore:.*different from the unwrapped:UserWarning",
    "ignore:.*a symmetric and normalized space:UserWarning",
)
@pytest.mark.filterwarnings("error")
def test_gymnasium_finds_nothing_wrong(env):
    check_env(WithoutSpec(env), skip_render_check=True)


def acted(env, seed: int) -> tuple[list[dict[str, np.ndarray]], list[np.ndarray], bool]:
    """What the expert saw and did, up to its success or for 300 steps."""
    observation, _ = env.reset(seed=seed)
    expert, seen, actions, success = env.expert(), [observation], [], False
    while not success and len(actions) < min(env.horizon, 300):
        actions.append(expert.act(observation))
        observation, *_, info = env.step(actions[-1])
        seen.append(observation)
        success = info["success"]
    return seen, actions, success


def test_a_scripted_expert_succeeds_keeps_to_the_bounds_and_sees_the_world_change(env):
    seen = [env.reset(seed=seed)[0] for seed in range(3)]  # goals stay the same in an episode
    for seed in range(3):
        observations, actions, success = acted(env, seed)
        seen += observations
        assert all(env.action_space.contains(action) for action in actions)
        if success:
            break
    else:
        pytest.fail("no success from three seeds")
    idle = [key for key in env.spec.observations if all(np.array_equal(item[key], seen[0][key]) for item in seen)]
    assert not idle, "an observation that never changes tells a policy nothing"


def test_two_environments_of_a_task_share_nothing(env):
    """Nor does a step touch what was observed before it. LIBERO's compile a scene once for all."""
    other = make(env.task)
    first, _ = env.reset(seed=5)
    kept = {key: item.copy() for key, item in first.items()}
    beside, _ = other.reset(seed=5)
    assert not any(np.shares_memory(first[key], beside[key]) for key in first)
    after = [moved(env) for _ in range(4)]
    assert all(np.array_equal(first[key], kept[key]) for key in first)
    assert all(np.array_equal(first[key], beside[key]) for key in first)
    for found in after:
        np.testing.assert_array_equal(moved(other), found)
    other.close()
