"""robosuite's demonstrators: they succeed, waste no steps, and pick up again what they have lost."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
from kinoise.envs import episode_seed, make
from kinoise.eval.demonstration import Recipe, play

if find_spec("robosuite") is None:
    pytest.skip("robosuite isn't installed", allow_module_level=True)

RECIPE = Recipe(seed=0, noise=0.1, cameras=(), size=84)


@pytest.mark.parametrize(("task", "longest"), [("lift", 70), ("can", 200), ("square", 260)])
def test_demonstrations_succeed_with_noise_and_without_idling(task, longest):
    made = make(f"robosuite/{task}")
    for index in range(2):
        episode = play(made, RECIPE, index)
        assert episode.info["success"]
        assert episode.info["steps"] <= longest
        actions = episode.arrays["action"]
        assert np.abs(actions).max() <= 1
        assert (np.abs(actions[:, :6]).max(axis=1) < 0.01).sum() <= 3


def test_a_demonstrator_picks_up_again_what_it_has_lost():
    made = make("robosuite/lift")
    observation, _ = made.reset(seed=episode_seed(0, made.task, 0))
    expert, dropped, success = made.expert(), False, False
    cube = made._model.joint("cube_joint0").qposadr[0]
    for _ in range(200):
        if not dropped and expert._table.thing().position[2] > 0.85:
            made._data.qpos[cube : cube + 3] = (0.05, 0.08, 0.83)
            made._data.qvel[made._model.joint("cube_joint0").dofadr[0] :][:6] = 0
            dropped = True
        observation, *_, info = made.step(expert.act(observation))
        success |= dropped and info["success"] and expert._table.opening() > 0.004
    assert dropped
    assert success


@pytest.mark.parametrize("home", [1.4, 1.57, 1.75, -1.4, -1.57, -1.75])
def test_there_is_a_way_onto_the_peg_for_every_heading_of_the_nut(home):
    from kinoise.envs.experts.robosuite import _turns

    for handle in np.linspace(-np.pi, np.pi, 181):
        grip, way = _turns(float(handle), home)
        assert abs(np.cos(grip - handle)) < 1e-6, "the fingers are across the handle"
        assert way in (np.pi, -np.pi / 2, np.pi / 2)
