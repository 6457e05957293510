"""For tests of the ROS 2 example of the documentation: stand-ins of rclpy and of the messages, and a policy's topics."""

from __future__ import annotations

import importlib
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from kinoise.spec import Feature, Spec

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
        self.waited: list[tuple[str, float]] = []
        self.deaf: set[str] = set()

    def get_parameters_by_prefix(self, prefix: str) -> dict[str, Any]:
        assert prefix == ""
        return {name: SimpleNamespace(value=value) for name, value in self.parameters.items()}

    def get_clock(self) -> Any:
        return SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=self.now))

    def get_logger(self) -> Any:
        return SimpleNamespace(info=self.log.append, warning=self.log.append, fatal=self.log.append)

    def create_subscription(self, kind: type, topic: str, callback: Callable[[Any], None], quality: Quality) -> None:
        self.heard.setdefault(topic, []).append((kind, callback, quality))

    def create_publisher(self, kind: type, topic: str, quality: Quality) -> Any:
        self.said[topic], self.quality[topic] = [], quality

        def publish(message: Any) -> None:
            assert type(message) is kind
            assert self.alive, "published after the node was destroyed"
            self.said[topic].append(message)

        def wait_for_all_acked(timeout: Any) -> bool:
            assert self.alive, "waited for after the node was destroyed"
            self.waited.append((topic, timeout.seconds))
            return topic not in self.deaf

        return SimpleNamespace(publish=publish, wait_for_all_acked=wait_for_all_acked)

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


@contextmanager
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
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
