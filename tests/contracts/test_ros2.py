"""The ROS 2 robot of the documentation, on stand-ins of rclpy and of the messages: what comes in, what goes out, and when."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from kinoise.deploy.robot import ObservationTimeout, Robot
from kinoise.spec import Feature, KinoiseError, Spec
from ros_stubs import PARAMETERS, SPEC, StubNode, example, picture


@pytest.fixture
def ros(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    with example(monkeypatch) as modules:
        yield modules


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The loop's clock."""
    clock = SimpleNamespace(time=1000.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.time)
    return clock


def robot(ros: SimpleNamespace, spec: Spec = SPEC, **changes: Any) -> tuple[StubNode, Any]:
    """With parameters changed; None takes one away, `__` stands for `.`."""
    own = PARAMETERS | {name.replace("__", "."): value for name, value in changes.items()}
    node = StubNode({name: value for name, value in own.items() if value is not None})
    return node, ros.robot.RosRobot(node, spec, node.parameters, 0.01)


def test_readings_are_the_newest_messages_and_as_old_as_the_oldest(ros: SimpleNamespace, now: SimpleNamespace) -> None:
    node, own = robot(ros)
    assert isinstance(own, Robot)
    with pytest.raises(ObservationTimeout, match=r"state \(/joint_states\), image.wrist \(/wrist\), force \(/force\)"):
        own.observe()
    node.tell_joints(0.02, lift=0.2, other=9.0, pan=0.1)  # two publishers; names in another order, and more of them
    with pytest.raises(ObservationTimeout, match="their joints' names"):
        own.observe()
    node.tell_joints(0.05, grip=0.3)
    node.tell("/wrist", 0.03, **picture("bgr8"))
    node.tell("/force", data=array("d", [1.0, 2.0]))
    reading = own.observe()
    assert (reading.instruction, reading.episode) == ("fold", 0)
    assert reading.time == pytest.approx(1000.0 - 0.05)
    for key, item in SPEC.observations.items():
        assert (reading.values[key].shape, reading.values[key].dtype) == (item.shape, item.dtype)
    np.testing.assert_array_equal(reading.values["state"], np.float32([0.1, 0.2, 0.3]))
    np.testing.assert_array_equal(reading.values["force"], [1, 2])
    now.time, node.now = 1000.5, node.now + 10**9 // 2
    node.tell_joints(0.01, pan=0.4, lift=0.5, grip=0.6)
    node.tell("/wrist", None, **picture())  # unstamped: just now
    reading = own.observe()
    assert reading.time == pytest.approx(1000.0), "the force is the oldest"
    np.testing.assert_array_equal(reading.values["state"], np.float32([0.4, 0.5, 0.6]))


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8"])
def test_images_become_rgb(ros: SimpleNamespace, encoding: str) -> None:
    node, own = robot(ros)
    node.tell_all()
    said = picture(encoding)
    node.tell("/wrist", **said)
    channels = len(encoding) - 1
    pixels = (np.arange(4 * 6 * channels) % 251).reshape(4, 6, channels)[..., :3]
    wanted = pixels if encoding.startswith("rgb") else pixels[..., ::-1]
    np.testing.assert_array_equal(own.observe().values["image.wrist"], wanted)


def test_another_instruction_is_another_episode(ros: SimpleNamespace) -> None:
    node, own = robot(ros)
    node.tell_all()
    found = []
    for text in ("fold", "unfold", "unfold"):
        node.tell("~/instruction", data=text)
        found.append((own.observe().instruction, own.observe().episode))
    assert found == [("fold", 0), ("unfold", 1), ("unfold", 1)]
    node, own = robot(ros, instruction=None)
    node.tell_all()
    with pytest.raises(ObservationTimeout, match="~/instruction"):
        own.observe()


def test_commands_go_to_their_topics_and_rest_is_where_the_joints_are(ros: SimpleNamespace, now: SimpleNamespace) -> None:
    node, own = robot(ros)
    own.stop()
    assert not node.said["/arm"], "nothing is known, nothing is sent"
    node.tell_all()
    own.command(np.float32([0.5, 0.6, -0.5]))
    own.command(np.float32([0.6, 0.7, -0.5]))
    own.stop()
    own.stop()
    moves = [message.points[0].positions for message in node.said["/arm"]]
    np.testing.assert_allclose(moves, [[0.5, 0.6], [0.6, 0.7], [0.1, 0.2], [0.1, 0.2]], rtol=1e-6)
    np.testing.assert_allclose([message.data for message in node.said["/hand"]], [[-0.5]] * 4, rtol=1e-6)
    [message] = node.said["/arm"][:1]
    assert message.joint_names == ["pan", "lift"]
    assert message.points[0].time_from_start.seconds == 0.01
    assert all(isinstance(item, float) for item in moves[0])
    assert [message.data for message in node.said["~/resting"]] == [True, False, True]


def test_rest_is_the_last_command_where_joints_were_measured_long_ago(ros: SimpleNamespace, now: SimpleNamespace) -> None:
    node, own = robot(ros)
    node.tell_all()
    own.command(np.float32([0.5, 0.6, -0.5]))
    now.time += 0.15
    node.tell_joints(lift=0.3)
    now.time += 0.1
    own.stop()
    np.testing.assert_allclose(node.said["/arm"][-1].points[0].positions, [0.5, 0.3], rtol=1e-6)


def test_keys_may_begin_with_others(ros: SimpleNamespace) -> None:
    seen = {**SPEC.observations, "image": Feature((4, 6, 3), "image")}
    node, _ = robot(ros, replace(SPEC, observations=seen), observations__image__topic="/front")
    assert {"/front", "/wrist"} <= node.heard.keys()


def test_steps_come_to_rest_as_none(ros: SimpleNamespace) -> None:
    steps = Spec(SPEC.observations, SPEC.action, rate=20.0, control="delta", gripper=(2,))
    node, own = robot(ros, steps, outputs__arm__type="array", outputs__arm__joints=None, outputs__hand__joints=None)
    own.command(np.float32([0.5, 0.6, -0.5]))
    own.stop()
    assert [message.data for message in node.said["/arm"]][1:] == [[0.0, 0.0]]
    assert [message.data for message in node.said["/hand"]] == [[-0.5], [-0.5]]


def test_a_middleware_that_can_not_tell_what_arrived_is_no_error(ros: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(_: object) -> bool:
        raise RuntimeError("wait_for_all_acked: unsupported")

    _, own = robot(ros)
    assert own.settle() == []
    own._outputs[0]._topic.wait_for_all_acked = unsupported
    assert own.settle() == []


def test_topics_have_the_quality_of_service_that_the_page_says(ros: SimpleNamespace) -> None:
    node, _ = robot(ros)
    quality = [*node.quality.items(), *((topic, item[2]) for topic, items in node.heard.items() for item in items)]
    said = {(topic, item.reliability, item.durability, item.depth) for topic, item in quality}
    sensors = {(topic, "best effort", "volatile", 1) for topic in ("/joint_states", "/wrist", "/force")}
    commands = {(topic, "reliable", "volatile", 1) for topic in ("/arm", "/hand", "~/instruction")}
    latched = {(topic, "reliable", "transient", 1) for topic in ("~/instruction", "~/resting")}
    assert said == sensors | commands | latched


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no topic": ({"observations__force__topic": None}, r"observations.force.topic is missing"),
    "unknown": ({"observations__state__joint": "pan"}, r"observations.state.joint is unknown: expected fields, joints"),
    "too few joints": ({"observations__state__joints": ["pan"]}, r"1 joints with position are 1 numbers.* 3: pan, lift, grip"),
    "order": ({"observations__state__joints": ["lift", "pan", "grip"]}, "order pan, lift, grip"),
    "field": ({"observations__state__fields": ["torque"]}, "torque: expected of position, velocity, effort"),
    "kind of state": ({"observations__force__type": "wrench"}, r"force.type: wrench: expected joints"),
    "dims": ({"outputs__arm__dims": [0]}, r"outputs.\*.dims: \[0, 2\]: expected each of the action's 3 numbers"),
    "twice": ({"outputs__arm__dims": [0, 2]}, r"dims: \[0, 2, 2\]"),
    "kind of command": ({"outputs__arm__type": "twist"}, "twist: expected array"),
    "joints of a command": ({"outputs__hand__joints": None}, "0 joints for 1 numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_parameters_that_do_not_fit_are_refused(ros: SimpleNamespace, name: str) -> None:
    changes, said = BAD[name]
    with pytest.raises(KinoiseError, match=said):
        robot(ros, **changes)


def test_a_trajectory_of_steps_is_refused(ros: SimpleNamespace) -> None:
    with pytest.raises(KinoiseError, match="the policy's actions are delta: take array"):
        robot(ros, Spec(SPEC.observations, SPEC.action, rate=20.0, control="delta"))


@pytest.mark.parametrize(
    ("topic", "message", "said"),
    [
        ("/wrist", picture(height=8), "8 x 6 pixels, the policy was trained on 4 x 6: .*ResizeNode"),
        ("/wrist", picture() | {"encoding": "mono8"}, "encoding mono8: expected rgb8"),
        ("/force", {"data": array("d", [1.0])}, "/force: 1 numbers, the policy sees 2"),
        ("/force", {"data": [{}, 1.0]}, r"/force: a message that can't be read \(TypeError: "),
        ("/force", {}, r"/force: a message that can't be read \(AttributeError: "),
    ],
)
def test_a_message_that_does_not_fit_ends_the_run(ros: SimpleNamespace, topic: str, message: dict, said: str) -> None:
    node, own = robot(ros)
    node.tell_all()
    node.tell(topic, **message)
    node.tell_all()
    with pytest.raises(KinoiseError, match=said) as caught:
        own.observe()
    assert not isinstance(caught.value, ObservationTimeout)
