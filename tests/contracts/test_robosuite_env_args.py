"""What files say of robosuite's environment: the same one is accepted, another is refused with all that differs."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from typing import Any

import pytest
from kinoise.envs import check_recorded
from kinoise.envs.robosuite import recorded
from kinoise.eval.evaluate import evaluate
from kinoise.policies.checkpoint import load_policy, save_policy
from kinoise.spec import KinoiseError

from .small_policies import small

if find_spec("robosuite") is None:
    pytest.skip("robosuite isn't installed", allow_module_level=True)

VERSION = "1.4.0"


def robomimic(version: str | None = None) -> dict[str, Any]:
    """What robomimic's own files say of Lift: those of robosuite 1.2 have no version, and all have its words."""
    controller = dict(recorded.ARM)
    controller |= {older: controller.pop(newer) for older, newer in recorded.OLDER.items()}
    kwargs = {
        "has_renderer": False,
        "has_offscreen_renderer": False,
        "ignore_done": True,
        "use_object_obs": True,
        "use_camera_obs": False,
        "control_freq": 20,
        "controller_configs": controller,
        "robots": ["Panda"],
        "camera_depths": False,
        "camera_heights": 84,
        "camera_widths": 84,
        "reward_shaping": False,
    }
    said = {"env_name": "Lift", "type": 1, "env_kwargs": kwargs}
    return said if version is None else {**said, "env_version": version}


@pytest.mark.parametrize(
    ("env_args", "version"),
    [
        (robomimic("1.4.1"), VERSION),
        (recorded.made("lift", VERSION), VERSION),
        (recorded.made("lift", "1.5.1"), "1.5.2"),
        (robomimic("1.5.1"), "1.5.1"),
    ],
)
def test_env_args_of_the_same_environment_are_accepted(env_args, version):
    recorded.require("lift", version, env_args)


def changed(edit: Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], object]) -> dict[str, Any]:
    said = deepcopy(robomimic("1.4.1"))
    edit(said, said["env_kwargs"], said["env_kwargs"]["controller_configs"])
    return said


@pytest.mark.parametrize(
    ("env_args", "line"),
    [
        (robomimic(), "env_version is missing, as in robomimic's files of robosuite 1.2"),
        (robomimic("1.5.1"), "env_version is 1.5.1, expected 1.4"),
        (changed(lambda said, kwargs, arm: said.update(env_version="v141")), "env_version is v141, expected 1.4"),
        (changed(lambda said, kwargs, arm: said.update(env_name="Square_D0")), "env_name is Square_D0, expected Lift"),
        (changed(lambda said, kwargs, arm: said.update(type=2)), "type is 2, expected 1"),
        (changed(lambda said, kwargs, arm: kwargs.update(control_freq=10)), "control_freq is 10, expected 20"),
        (changed(lambda said, kwargs, arm: kwargs.update(robots=["Sawyer"])), "robots is ['Sawyer'], expected Panda"),
        (
            changed(lambda said, kwargs, arm: kwargs.update(robots=["Panda"] * 2)),
            "robots is ['Panda', 'Panda'], expected Panda",
        ),
        (changed(lambda said, kwargs, arm: kwargs.pop("robots")), "robots is missing"),
        (
            changed(lambda said, kwargs, arm: kwargs.update(table_friction=[1, 0, 0])),
            "table_friction is [1, 0, 0], expected not",
        ),
        (changed(lambda said, kwargs, arm: kwargs.update(gripper_types="RethinkGripper")), "gripper_types is RethinkGripper"),
        (changed(lambda said, kwargs, arm: kwargs.pop("controller_configs")), "controller_configs is None, expected OSC_POSE"),
        (changed(lambda said, kwargs, arm: arm.update(control_delta=False)), "the controller's control_delta is False"),
        (changed(lambda said, kwargs, arm: arm.update(type="IK_POSE")), "the controller's type is IK_POSE, expected OSC_POSE"),
        (changed(lambda said, kwargs, arm: arm.update(kp=300)), "the controller's kp is 300, expected 150"),
        (changed(lambda said, kwargs, arm: arm.update(output_max=0.1)), "the controller's output_max is 0.1"),
        (changed(lambda said, kwargs, arm: arm.update(input_ref_frame="hand")), "the controller's input_ref_frame is hand"),
    ],
)
def test_env_args_of_another_environment_are_refused_with_what_differs(env_args, line):
    with pytest.raises(KinoiseError, match="kinoise collect env=robosuite/lift") as raised:
        recorded.require("lift", VERSION, env_args)
    assert line in str(raised.value)
    assert str(raised.value).count(";") == 0, "one line for one difference"


def test_env_args_are_held_against_those_of_an_environment_that_was_made():
    newer, own = recorded.made("lift", "1.5.1"), "remote/robosuite-1.5/robosuite/lift"
    for env_args in (newer, robomimic("1.5.1"), {}):
        recorded.require_same(own, newer, env_args)
    recorded.require_same("remote/sim/metaworld/push", {}, newer)
    for here, env_args, line in (
        (newer, robomimic("1.4.1"), "env_version is 1.4.1, expected 1.5"),
        (recorded.made("can", "1.5.1"), newer, "env_name is Lift, expected PickPlaceCan"),
        ({**newer, "env_kwargs": {**newer["env_kwargs"], "control_freq": 10}}, newer, "control_freq is 20, expected 10"),
        (
            {**newer, "env_kwargs": {**newer["env_kwargs"], "controller_configs": {**recorded.ARM, "kp": 99}}},
            newer,
            "expected 99",
        ),
    ):
        with pytest.raises(KinoiseError, match=f"kinoise collect env={own}") as raised:
            recorded.require_same(own, here, env_args)
        assert line in str(raised.value)
        assert str(raised.value).count(";") == 0, "one line for one difference"


def test_a_policy_of_other_demonstrations_is_refused_before_any_episode(tmp_path):
    policy = small("mode")
    assert policy.recorded == {}
    policy.recorded = robomimic()
    save_policy(tmp_path, policy, {})
    loaded = load_policy(tmp_path)
    assert loaded.recorded == robomimic()
    with pytest.raises(KinoiseError, match="env_version is missing"):
        evaluate(loaded, "robosuite/lift", episodes=1, seed=0)


def test_other_simulators_and_empty_records_are_not_compared():
    check_recorded(["metaworld/push"], robomimic())
    check_recorded(["robosuite/lift"], {})
