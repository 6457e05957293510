"""The ROS 2 node of the documentation, on stand-ins of rclpy and of the messages: what comes in, what goes out, and when."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from kinoise.deploy.robot import ObservationTimeout, Robot
from kinoise.deploy.trace import TraceReader
from kinoise.policies import build_policy, choices
from kinoise.policies.checkpoint import save_policy
from kinoise.spec import Feature, KinoiseError, Spec, Stats
from omegaconf import OmegaConf

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "ros2"
JOINTS = ("pan", "lift", "grip")
SPEC = Spec(
    {"state": Feature((3,), names=JOINTS), "image.wrist": Feature((4, 6, 3), "image"), "force": Feature((2,))},
    Feature((3,), low=(-1.0,) * 3, high=(1.0,) * 3),
    rate=20.0,
    control="absolute",
    gripper=(2,),
)
PARAMETERS = {
    "instruction": "fold",
    "observations.state.topic": "/joint_states",
    "observations.state.joints": list(JOINTS),
    "observations.image.wrist.topic": "/wrist",
    "observations.force.topic": "/force",
    "observations.force.type": "array",
    "outputs.arm.topic": "/arm",
    "outputs.arm.type": "trajectory",
    "outputs.arm.dims": array("q", [0, 1]),
    "outputs.arm.joints": ["pan", "lift"],
    "outputs.hand.topic": "/hand",
    "outputs.hand.dims": array("q", [2]),
    "outputs.hand.joints": ["grip"],
}


class Message(SimpleNamespace):
    """Any message: what it is made with."""


def kinds(*names: str) -> dict[str, type]:
    return {name: type(name, (Message,), {}) for name in names}


class Quality(SimpleNamespace):
    """A QoSProfile."""


class StubNode:
    """Remembers topics and services; its clock is the test's."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        self.parameters, self.now, self.alive = parameters, 50 * 10**9, True
        self.heard: dict[str, list[tuple[type, Callable[[Any], None], Quality]]] = {}
        self.said: dict[str, list[Any]] = {}
        self.quality: dict[str, Quality] = {}
        self.services: dict[str, Callable[[Any, Any], Any]] = {}
        self.log: list[str] = []

    def get_parameters_by_prefix(self, prefix: str) -> dict[str, Any]:
        assert prefix == ""
        return {name: SimpleNamespace(value=value) for name, value in self.parameters.items()}

    def get_clock(self) -> Any:
        return SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=self.now))

    def get_logger(self) -> Any:
        return SimpleNamespace(info=self.log.append, fatal=self.log.append)

    def create_subscription(self, kind: type, topic: str, callback: Callable[[Any], None], quality: Quality) -> None:
        self.heard.setdefault(topic, []).append((kind, callback, quality))

    def create_publisher(self, kind: type, topic: str, quality: Quality) -> Any:
        self.said[topic], self.quality[topic] = [], quality

        def publish(message: Any) -> None:
            assert type(message) is kind
            assert self.alive, "published after the node was destroyed"
            self.said[topic].append(message)

        return SimpleNamespace(publish=publish)

    def create_service(self, kind: type, name: str, callback: Callable[[Any, Any], Any]) -> None:
        self.services[name] = callback

    def destroy_node(self) -> None:
        self.alive = False

    def tell(self, topic: str, age: float | None = 0.0, **fields: Any) -> None:
        """Delivers a message, measured `age` seconds ago by ROS's clock; None: without a stamp."""
        nanoseconds = 0 if age is None else self.now - round(age * 1e9)
        stamp = SimpleNamespace(sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)
        for kind, callback, _ in self.heard[topic]:
            callback(kind(header=SimpleNamespace(stamp=stamp), **fields))

    def tell_joints(self, age: float | None = 0.0, **positions: float) -> None:
        self.tell("/joint_states", age, name=list(positions), position=array("d", positions.values()), velocity=[], effort=[])

    def tell_all(self) -> None:
        self.tell_joints(pan=0.1, lift=0.2, grip=0.3)
        self.tell("/wrist", **picture())
        self.tell("/force", data=array("d", [1.0, 2.0]))


class StubExecutor:
    """Turns sensors round, as the other nodes would, until it is shut down."""

    def __init__(self) -> None:
        self.over = False

    def add_node(self, node: StubNode) -> None:
        self.node = node

    def spin(self) -> None:
        while not self.over:
            self.node.tell_all()
            time.sleep(0.005)

    def shutdown(self) -> None:
        self.over = True


def picture(encoding: str = "bgr8", height: int = 4, width: int = 6, pad: int = 2) -> dict[str, Any]:
    """Rows end with bytes that are no pixels."""
    channels = len(encoding) - 1
    rows = np.zeros((height, width * channels + pad), np.uint8) + 255
    rows[:, : width * channels] = np.arange(height * width * channels).reshape(height, -1) % 251
    data = array("B", rows.tobytes())
    return {"encoding": encoding, "height": height, "width": width, "step": rows.shape[1], "data": data}


@pytest.fixture
def ros(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The example's modules, with the parts of ROS that they import."""
    policies = SimpleNamespace(BEST_EFFORT="best effort", RELIABLE="reliable", VOLATILE="volatile", TRANSIENT_LOCAL="transient")
    trigger = SimpleNamespace(Request=Message, Response=Message)
    duration = type("Duration", (Message,), {"to_msg": lambda self: self})
    made: dict[str, dict[str, Any]] = {
        "rclpy": {"init": lambda **_: None, "try_shutdown": lambda: None},
        "rclpy.duration": {"Duration": duration},
        "rclpy.executors": {"SingleThreadedExecutor": StubExecutor},
        "rclpy.node": {"Node": StubNode},
        "rclpy.qos": {"DurabilityPolicy": policies, "ReliabilityPolicy": policies, "QoSProfile": Quality},
        "rclpy.signals": {"SignalHandlerOptions": SimpleNamespace(NO="no")},
        "sensor_msgs.msg": kinds("Image", "JointState"),
        "std_msgs.msg": kinds("Bool", "Float64MultiArray", "String"),
        "std_srvs.srv": {"Trigger": trigger},
        "trajectory_msgs.msg": kinds("JointTrajectory", "JointTrajectoryPoint"),
        "launch": {"LaunchDescription": list},
        "launch.actions": {"DeclareLaunchArgument": lambda name, **_: name, "ExecuteProcess": lambda cmd, **_: cmd},
        "launch.substitutions": {"LaunchConfiguration": lambda name: f"<{name}>"},
    }
    for name, members in made.items():
        for part in (name.split(".")[0], name):
            if part not in made or part == name:
                module = ModuleType(part)
                module.__dict__.update(members if part == name else {})
                monkeypatch.setitem(sys.modules, part, module)
    for name in ("ros_robot", "kinoise_node"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield SimpleNamespace(robot=importlib.import_module("ros_robot"), node=importlib.import_module("kinoise_node"))
    for name in ("ros_robot", "kinoise_node"):
        sys.modules.pop(name, None)


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


def checkpoint(path: Path) -> Path:
    sizes = {key: 3 if item.kind == "image" else item.shape[0] for key, item in SPEC.observations.items()}
    stats = {
        key: Stats((0.0,) * n, (0.5,) * n, (-1.0,) * n, (1.0,) * n, (-0.9,) * n, (0.9,) * n, 9)
        for key, n in {**sizes, "action": 3}.items()
    }
    small = {"network": {"width": 32, "depth": 1}, "encoder": {"shared_cameras": True, "pool": "average"}, "chunk": 16}
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(choices()["diffusion"]), small, {"execute": 4}))
    policy = build_policy(config, SPEC, stats, ("fold",), seed=0)
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for item in policy.parameters():
            item.add_(0.03 * torch.randn(item.shape, generator=gen))
    save_policy(path, policy, {})
    return path


def test_the_node_drives_and_leaves_the_robot_at_rest(
    ros: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lenient = ["guards.stale=null", "guards.heartbeat=null", "fallback.hold=60"]  # of a machine that is busy
    settings = [str(checkpoint(tmp_path / "run")), "rate=4", "servo=2", "decode.steps=1", f"trace={tmp_path / 'run.trace'}"]
    monkeypatch.setattr(ros.robot, "FRESH", 60.0)
    node = StubNode(PARAMETERS | {"settings": [*settings, *lenient]})
    record = ros.node.drive(node, lambda: len(node.said.get("/hand", ())) >= 8)
    assert record.outcomes["used"] > 0
    assert not record.errors
    assert "diffusion drives at 4 Hz" in node.log
    assert len(node.said["/arm"]) == len(node.said["/hand"]) >= 9
    assert node.said["/arm"][0].points[0].time_from_start.seconds == 1 / 8
    np.testing.assert_allclose(node.said["/arm"][-1].points[0].positions, [0.1, 0.2], rtol=1e-6)
    assert node.said["~/resting"][-1].data is True
    answer = node.services["~/reset"](Message(), Message())
    assert answer.success
    with TraceReader(tmp_path / "run.trace") as trace:
        assert sum(kind == "command" for kind, _ in trace.events()) == len(node.said["/hand"]) - 1


def test_what_cannot_run_is_said_in_the_log(ros: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes: list[StubNode] = []

    def made(name: str, **how: Any) -> StubNode:
        assert (name, how) == ("kinoise", {"automatically_declare_parameters_from_overrides": True})
        nodes.append(StubNode({"settings": [str(tmp_path / "nothing")]}))
        return nodes[-1]

    monkeypatch.setattr(ros.node, "Node", made)
    monkeypatch.setattr(ros.node.signal, "signal", lambda *_: None)
    assert ros.node.main([]) == 1
    assert "no checkpoint there" in nodes[0].log[0]
    assert not nodes[0].alive


def test_the_example_of_parameters_fits_a_policy_and_the_launch_file_starts_the_node(ros: SimpleNamespace) -> None:
    def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, item in value.items():
            found |= flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
        return found

    given = flat(yaml.safe_load((EXAMPLE / "params.yaml").read_text())["/kinoise"]["ros__parameters"])
    seen = {"state": Feature((7,)), "image.wrist": Feature((96, 96, 3), "image")}
    spec = Spec(seen, Feature((7,), low=(-3.0,) * 7, high=(3.0,) * 7), rate=20.0, control="absolute", gripper=(6,))
    ros.robot.RosRobot(StubNode(given), spec, given, 0.01)
    parsed = ros.node.parse("control", ros.node.Settings, given["settings"], positional="run")
    assert (parsed.rate, parsed.servo, parsed.fallback.on_stop, parsed.guards.velocity) == (20, 5, "wait", 1.0)
    found = importlib.util.spec_from_file_location("launched", EXAMPLE / "kinoise.launch.py")
    assert found is not None
    assert found.loader is not None
    launch = importlib.util.module_from_spec(found)
    found.loader.exec_module(launch)
    *_, command = launch.generate_launch_description()
    assert command == ["<python>", str(EXAMPLE / "kinoise_node.py"), "--ros-args", "--params-file", "<params>"]
