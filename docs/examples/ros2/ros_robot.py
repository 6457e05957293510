"""kinoise's robot protocol over ROS 2's topics. Which topic is what is said by parameters; see README.md."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from kinoise.deploy.guards import Action, still
from kinoise.deploy.robot import ObservationTimeout, Reading
from kinoise.spec import Feature, KinoiseError, Spec
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Bool, Float64MultiArray, String
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

SENSOR = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT, durability=DurabilityPolicy.VOLATILE)
"""The newest measurement counts; one that was lost is not sent again. Fits publishers of either reliability."""
COMMAND = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.VOLATILE)
"""The newest command counts, and has to arrive; a controller that starts later gets no old one."""
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
"""Who comes later is told what holds now."""
CHANNELS = {"rgb8": (0, 1, 2), "bgr8": (2, 1, 0), "rgba8": (0, 1, 2), "bgra8": (2, 1, 0)}
"""Where red, green and blue are, by `Image.encoding`."""
OBSERVED, COMMANDED = "observations", "outputs"
KNOWN = {"state": {"topic", "type", "joints", "fields"}, "image": {"topic"}, "output": {"topic", "type", "dims", "joints"}}
FIELDS = ("position", "velocity", "effort")
FRESH = 0.2
"""Seconds: a joint measured longer ago may be anywhere by now."""

ACKED = 0.5
"""Seconds that a controller has to confirm the last command, when nobody is left to send it again."""

Seen = tuple[np.ndarray, float]
"""What was measured, and when, seconds on the loop's clock."""


class RosRobot:
    """Callbacks run in the executor's thread; what the control loop calls takes microseconds.

    Args:
        node: has the topics.
        spec: the policy's.
        parameters: of the node, by name.
        period: seconds from one command to the next.

    Raises:
        KinoiseError: a parameter is missing, unknown, or doesn't fit the policy.
    """

    def __init__(self, node: Node, spec: Spec, parameters: Mapping[str, Any], period: float) -> None:
        self.spec = spec
        self._clock, self._period = node.get_clock(), period
        self._lock, self._trouble = threading.Lock(), ""
        self._joints: dict[str, dict[str, tuple[float, float]]] = {field: {} for field in FIELDS}
        self._arrays: dict[str, Seen] = {}
        self._instruction, self._episode = str(parameters.get("instruction") or ""), 0
        self._last: Action | None = None
        self._resting: bool | None = None
        self._states = {key: item for key, item in spec.observations.items() if item.kind == "state"}
        self._parameters = parameters
        self._wanted: dict[str, tuple[list[str], list[str]]] = {}
        for key, feature in spec.observations.items():
            self._subscribe(node, key, feature)
        for quality in (LATCHED, COMMAND):  # latched alone never hears a publisher that isn't, such as `ros2 topic pub`
            node.create_subscription(String, "~/instruction", self._guarded("~/instruction", self._on_instruction), quality)
        self._outputs = [Output(node, name, self._said(f"{COMMANDED}.{name}", "output"), spec) for name in self._names()]
        self._resting_topic = node.create_publisher(Bool, "~/resting", LATCHED)

    def observe(self) -> Reading:
        """The newest of every topic, as old as the oldest of them."""
        with self._lock:
            if self._trouble:
                raise KinoiseError(self._trouble)
            found = {key: self._joined(key) if key in self._wanted else self._arrays.get(key) for key in self.spec.observations}
            instruction, episode = self._instruction, self._episode
        absent = [f"{key} ({self._parameters[f'{OBSERVED}.{key}.topic']})" for key, item in found.items() if item is None]
        if self.spec.language and not instruction:
            absent.append("an instruction (~/instruction)")
        if absent:
            raise ObservationTimeout(f"nothing has come yet of {', '.join(absent)}: check the topics, and their joints' names")
        seen = {key: item for key, item in found.items() if item is not None}
        return Reading({key: item[0] for key, item in seen.items()}, instruction, episode, min(at for _, at in seen.values()))

    def command(self, action: Action) -> None:
        self._last = action
        self._rest(False)
        for output in self._outputs:
            output.send(action, self._period)

    def stop(self) -> None:
        """Holds the joints where they are measured, and the gripper as last told; `delta` and `relative` steps become none.

        A joint that wasn't measured just now holds its last command: moving to where it once was would be no rest.
        What is neither known nor told yet is sent nothing.
        """
        rest = still(self.spec, self._last)
        rest = np.full(self.spec.action_dim, np.nan, np.float32) if rest is None else rest
        now = time.monotonic()
        with self._lock:
            measured = {name: value for name, (value, at) in self._joints["position"].items() if now - at < FRESH}
        if self.spec.control == "absolute":
            for output in self._outputs:
                for dim, joint in zip(output.dims, output.joints, strict=False):
                    if joint in measured and (dim not in self.spec.gripper or np.isnan(rest[dim])):
                        rest[dim] = measured[joint]
        for output in self._outputs:
            if np.isfinite(rest[output.dims]).all():
                output.send(rest, self._period)
        self._rest(True)

    def settle(self) -> list[str]:
        """Waits until controllers have the last command, for a publisher that is destroyed sends nothing again.

        Returns the outputs of which nobody confirmed it.
        """
        return [output.name for output in self._outputs if not output.arrived()]

    def fail(self, reason: str) -> None:
        """Ends the run with the next observation. The first reason is the one that is told."""
        with self._lock:
            self._trouble = self._trouble or reason

    def _subscribe(self, node: Node, key: str, feature: Feature) -> None:
        place = f"{OBSERVED}.{key}"
        said = self._said(place, feature.kind)
        topic = said["topic"]
        if feature.kind == "image":
            node.create_subscription(Image, topic, self._guarded(topic, lambda message: self._on_image(key, message)), SENSOR)
        elif said.get("type", "joints") == "array":
            take = self._guarded(topic, lambda message: self._on_array(key, message))
            node.create_subscription(Float64MultiArray, topic, take, SENSOR)
        elif said.get("type", "joints") == "joints":
            joints, chosen = list(said.get("joints") or ()), list(said.get("fields") or FIELDS[:1])
            self._check_joints(place, feature, joints, chosen)
            self._wanted[key] = joints, chosen
            node.create_subscription(JointState, topic, self._guarded(topic, self._on_joints), SENSOR)
        else:
            raise KinoiseError(f"{place}.type: {said['type']}: expected joints (JointState) or array (Float64MultiArray)")

    def _said(self, place: str, kind: str) -> dict[str, Any]:
        """The parameters under `place`, less those of longer keys that begin like it (`image`, `image.wrist`)."""
        places = (f"{OBSERVED}.{key}." for key in self.spec.observations)
        longer = tuple(item for item in places if item.startswith(f"{place}.") and item != f"{place}.")
        own = [name for name in self._parameters if name.startswith(f"{place}.") and not name.startswith(longer)]
        said = {name.removeprefix(f"{place}."): self._parameters[name] for name in own}
        if unknown := sorted(said.keys() - KNOWN[kind]):
            raise KinoiseError(f"parameter {place}.{unknown[0]} is unknown: expected {', '.join(sorted(KNOWN[kind]))}")
        if not said.get("topic"):
            raise KinoiseError(f"parameter {place}.topic is missing: say which topic it is")
        return said

    def _check_joints(self, place: str, feature: Feature, joints: Sequence[str], chosen: Sequence[str]) -> None:
        if unknown := [item for item in chosen if item not in FIELDS]:
            raise KinoiseError(f"parameter {place}.fields: {unknown[0]}: expected of {', '.join(FIELDS)}")
        if len(joints) * len(chosen) != feature.shape[0]:
            raise KinoiseError(
                f"parameter {place}.joints: {len(joints)} joints with {', '.join(chosen)} are {len(joints) * len(chosen)} "
                f"numbers, the policy was trained on {feature.shape[0]}: {', '.join(feature.names) or 'unnamed'}"
            )
        if list(feature.names) != list(joints) and sorted(feature.names) == sorted(joints):
            raise KinoiseError(f"parameter {place}.joints: the policy was trained on the order {', '.join(feature.names)}")

    def _names(self) -> list[str]:
        prefix = f"{COMMANDED}."
        names = list(dict.fromkeys(name.split(".")[1] for name in self._parameters if name.startswith(prefix)))
        dims = [dim for name in names for dim in dims_of(self._said(prefix + name, "output"), self.spec)]
        if sorted(dims) != list(range(self.spec.action_dim)):
            raise KinoiseError(
                f"{prefix}*.dims: {sorted(dims)}: expected each of the action's {self.spec.action_dim} numbers, from 0, in one "
                f"output, and {prefix}NAME.topic for each"
            )
        return names

    def _guarded(self, topic: str, take: Any) -> Any:
        """A message that doesn't fit fails the run: in the executor's thread nobody would see it, and the thread would end."""

        def taken(message: Any) -> None:
            try:
                take(message)
            except KinoiseError as error:
                self.fail(str(error))
            except Exception as error:
                self.fail(f"{topic}: a message that can't be read ({type(error).__name__}: {error})")

        return taken

    def _on_joints(self, message: JointState) -> None:
        """One of several publishers' messages: each names the joints that it has."""
        at = self._measured(message.header.stamp)
        with self._lock:
            for field, known in self._joints.items():
                known.update(
                    (name, (float(value), at)) for name, value in zip(message.name, getattr(message, field), strict=False)
                )

    def _on_array(self, key: str, message: Float64MultiArray) -> None:
        values, (size,) = np.array(message.data, np.float32), self.spec.observations[key].shape
        if values.shape != (size,):
            raise KinoiseError(f"{self._parameters[f'{OBSERVED}.{key}.topic']}: {values.size} numbers, the policy sees {size}")
        with self._lock:
            self._arrays[key] = values, time.monotonic()

    def _on_image(self, key: str, message: Image) -> None:
        topic, (height, width, _) = self._parameters[f"{OBSERVED}.{key}.topic"], self.spec.observations[key].shape
        if message.encoding not in CHANNELS:
            raise KinoiseError(f"{topic}: encoding {message.encoding}: expected {', '.join(CHANNELS)}")
        if (message.height, message.width) != (height, width):
            raise KinoiseError(
                f"{topic}: {message.height} x {message.width} pixels, the policy was trained on {height} x {width}: resize "
                f"them as the training data were (image_proc's ResizeNode), and take that topic"
            )
        rows = np.frombuffer(message.data, np.uint8).reshape(height, message.step)
        pixels = rows[:, : width * len(message.encoding[:-1])].reshape(height, width, -1)[..., CHANNELS[message.encoding]]
        with self._lock:
            self._arrays[key] = np.ascontiguousarray(pixels), self._measured(message.header.stamp)

    def _on_instruction(self, message: String) -> None:
        """Another task is another episode: nothing of the plan before is followed."""
        with self._lock:
            self._episode += message.data != self._instruction
            self._instruction = message.data

    def _measured(self, stamp: Any) -> float:
        """A stamp of ROS's clock on the loop's, by its age; a message without one was measured just now."""
        nanoseconds = stamp.sec * 10**9 + stamp.nanosec
        age = (self._clock.now().nanoseconds - nanoseconds) * 1e-9 if nanoseconds else 0.0
        return time.monotonic() - age

    def _joined(self, key: str) -> Seen | None:
        """The joints' newest values, whoever published them; None while one of them is unknown."""
        joints, chosen = self._wanted[key]
        found = [self._joints[field].get(joint) for field in chosen for joint in joints]
        known = [item for item in found if item is not None]
        if len(known) < len(found):
            return None
        return np.array([value for value, _ in known], np.float32), min(at for _, at in known)

    def _rest(self, resting: bool) -> None:
        if resting != self._resting:
            self._resting = resting
            self._resting_topic.publish(Bool(data=resting))


class Output:
    """A topic that takes some of an action's numbers.

    Args:
        said: its parameters: `topic`, `type` (`array` or `trajectory`), `dims` (all if none), `joints`.

    Raises:
        KinoiseError: they are not what a controller takes.
    """

    def __init__(self, node: Node, name: str, said: Mapping[str, Any], spec: Spec) -> None:
        kind, place = said.get("type", "array"), f"{COMMANDED}.{name}"
        self.name = name
        self.dims, self.joints = dims_of(said, spec), list(said.get("joints") or ())
        if kind not in ("array", "trajectory"):
            raise KinoiseError(f"{place}.type: {kind}: expected array (Float64MultiArray) or trajectory (JointTrajectory)")
        if kind == "trajectory" and spec.control != "absolute":
            raise KinoiseError(
                f"{place}.type: a trajectory is of places, and the policy's actions are {spec.control}: take array"
            )
        if spec.control == "absolute" and len(self.joints) != len(self.dims):
            raise KinoiseError(f"{place}.joints: {len(self.joints)} joints for {len(self.dims)} numbers: name one for each")
        self._trajectory = kind == "trajectory"
        self._topic = node.create_publisher(JointTrajectory if self._trajectory else Float64MultiArray, said["topic"], COMMAND)

    def send(self, action: Action, period: float) -> None:
        """`period`: seconds in which the place shall be reached."""
        numbers = [float(action[dim]) for dim in self.dims]
        if not self._trajectory:
            self._topic.publish(Float64MultiArray(data=numbers))
            return
        point = JointTrajectoryPoint(positions=numbers, time_from_start=Duration(seconds=period).to_msg())
        self._topic.publish(JointTrajectory(joint_names=self.joints, points=[point]))  # no stamp: from now on

    def arrived(self) -> bool:
        """Whether every controller that listens has all that was sent, within ACKED seconds."""
        try:
            return self._topic.wait_for_all_acked(Duration(seconds=ACKED))
        except RuntimeError:  # RCLError: a middleware that can't tell
            return True


def dims_of(said: Mapping[str, Any], spec: Spec) -> list[int]:
    return list(said.get("dims") or range(spec.action_dim))
