"""A ROS 2 node that drives a robot by a kinoise policy: topics in, kinoise's control loop, topics out. See README.md."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import rclpy
from kinoise.config import UsageError, check_seed, parse
from kinoise.deploy.controller import Controller, ControllerConfig
from kinoise.deploy.guards import GuardConfig, Guards
from kinoise.deploy.inferences import Planning, PlanningConfig, planning
from kinoise.deploy.latency import Record
from kinoise.deploy.recording import recording
from kinoise.policies.base import check_execute
from kinoise.provenance import origin
from kinoise.spec import KinoiseError
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from ros_robot import RosRobot
from std_srvs.srv import Trigger

SETTINGS = "settings"
YEARS = 1e9
"""Seconds: until somebody ends it."""


@dataclass
class Settings(ControllerConfig, PlanningConfig):
    """What `kinoise control` has for its loop and its planning, as `key=value` in the parameter `settings`."""

    seconds: float = field(default=YEARS, metadata={"help": "how long to run"})
    seed: int = field(default=0, metadata={"help": "of the plans' noise"})
    execute: int | None = field(default=None, metadata={"help": "control steps from plan to plan; the policy's if null"})
    trace: str | None = field(default=None, metadata={"help": "a file that kinoise replay and kinoise view read"})
    guards: GuardConfig = field(default_factory=GuardConfig)

    def __post_init__(self) -> None:
        ControllerConfig.__post_init__(self)
        PlanningConfig.__post_init__(self)
        if not 0 < self.seconds < float("inf"):
            raise UsageError(f"seconds={self.seconds}: expected a number above 0")
        check_seed(self.seed)

    @property
    def controller(self) -> ControllerConfig:
        return ControllerConfig(**{item.name: getattr(self, item.name) for item in fields(ControllerConfig)})


def drive(node: Node, stopped: Callable[[], bool]) -> Record:
    """Runs the policy that the node's parameters name, until `stopped()` or the time is up; the robot is at rest then.

    Raises:
        KinoiseError: wrong parameters, no policy, sensors that stay silent or don't fit it, plans that are too late.
    """
    parameters = {name: item.value for name, item in node.get_parameters_by_prefix("").items()}
    settings = parse("control", Settings, list(parameters.get(SETTINGS) or ()), positional="run")
    with planning(settings, settings.seed) as plans:
        robot = RosRobot(node, plans.served.spec, parameters, 1 / (settings.rate * settings.servo))
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        threading.Thread(target=_spin, args=(executor, robot), name="ros", daemon=True).start()
        try:
            return _run(node, settings, plans, robot, stopped)
        finally:
            for name in robot.settle():
                node.get_logger().warning(f"outputs.{name}: nobody confirmed the last command; the robot may not be at rest")
            executor.shutdown()


def _spin(executor: SingleThreadedExecutor, robot: RosRobot) -> None:
    """Without this thread no message comes: what ends it ends the run, which else would only say that sensors are silent."""
    try:
        executor.spin()
    except Exception as error:
        robot.fail(f"ROS's executor ended by {type(error).__name__}: {error}")


def _run(node: Node, settings: Settings, plans: Planning, robot: RosRobot, stopped: Callable[[], bool]) -> Record:
    served = plans.served
    execute = served.execute if settings.execute is None else settings.execute
    check_execute(execute, served.chunk)
    told = {"seconds": settings.seconds, "execute": execute, "history": served.history}
    told |= {"controller": asdict(settings.controller), "guards": asdict(settings.guards)}
    header = {**told, "env": "ros2", "policy": plans.policy, "planning": plans.repeat, "origin": origin()}
    with recording(settings.trace and Path(settings.trace), header, robot, plans.inference) as run:
        controller = Controller(
            run.robot,
            run.inference,
            Guards(robot.spec, settings.guards),
            settings.controller,
            execute=execute,
            history=served.history,
            clock=run.clock,
        )

        def reset(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
            """By who has looked at the robot: releases a stop (`fallback.on_stop=wait`)."""
            controller.reset()
            response.success, response.message = True, "the loop begins anew with its next tick"
            return response

        node.create_service(Trigger, "~/reset", reset)
        controller.prepare(run.stopped(stopped))
        node.get_logger().info(f"{plans.policy['name']} drives at {settings.rate:g} Hz")
        return controller.run(settings.seconds, run.stopped(stopped))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 well, also after Ctrl-C; 1 when the run could not start, or ended with an error or a stop."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    # rclpy's own handlers would close the publishers before the robot is told to rest.
    rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    node = Node("kinoise", automatically_declare_parameters_from_overrides=True)
    try:
        record = drive(node, ended.is_set)
    except KinoiseError as error:
        node.get_logger().fatal(str(error))
        return 1
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    for stop in record.stops:
        print(f"kinoise: stopped at tick {stop.tick}: {stop.reason}", file=sys.stderr)
    for message, count in record.errors.items():
        print(f"kinoise: {count} times: {message}", file=sys.stderr)
    return int(bool(record.stops or record.errors))


if __name__ == "__main__":
    sys.exit(main())
