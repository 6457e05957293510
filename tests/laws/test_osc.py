"""The control step that computes the physics once goes where robosuite's own goes."""

from __future__ import annotations

import numpy as np
import pytest
from kinoise.envs.osc import OscStepper
from kinoise.envs.rendering import load_mujoco
from kinoise.spec import KinoiseError

STEPS = 40


def build(controller: str = "OSC_POSE"):
    load_mujoco()
    robosuite = pytest.importorskip("robosuite", reason="robosuite isn't installed: pip install -e '.[robosuite]'")
    return robosuite.make(
        "Lift",
        robots="Panda",
        controller_configs=robosuite.load_controller_config(default_controller=controller),
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        hard_reset=False,
        ignore_done=True,
    )


def begin(env) -> None:
    np.random.seed(0)
    env.reset()
    env.robots[0].gripper.current_action = np.zeros(2)
    env.robots[0].controller.new_update = True


def test_it_moves_as_robosuite_does():
    env = build()
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1.2, 1.2, (STEPS, 7))
    actions[::3, 3:6] = 0  # the orientation is held then
    actions[:, 6] = np.sign(np.sin(np.arange(STEPS) / 6))
    begin(env)
    expected = []
    for action in actions:
        env.step(action)
        expected.append(env.sim.data.qpos.copy())
    begin(env)
    stepper, found = OscStepper(env), []
    for action in actions:
        stepper.step(action)
        found.append(env.sim.data.qpos.copy())
    assert np.ptp(expected, axis=0)[:7].max() > 0.3, "the arm has moved"
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_new_stepper_knows_nothing_of_the_grip_and_the_orientation_before():
    env = build()
    begin(env)
    stepper = OscStepper(env)
    still, state = np.zeros(7), env.sim.get_state()
    stepper.step(still)
    first = env.sim.data.qpos.copy()
    for _ in range(3):
        stepper.step(np.array([0, 0, 0, 1, 0, 0, 1.0]))
    env.sim.set_state(state)
    env.sim.data.qacc_warmstart[:] = 0
    env.sim.forward()
    OscStepper(env).step(still)
    np.testing.assert_allclose(env.sim.data.qpos, first, atol=1e-6)


def test_another_controller_is_refused():
    env = build("JOINT_VELOCITY")
    env.reset()
    with pytest.raises(KinoiseError, match="OSC_POSE"):
        OscStepper(env)
