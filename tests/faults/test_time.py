"""A stopped process and a wall clock that jumps, in the control loop: what docs/faults.md says of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loop_fakes import PERIOD, FakeInference, Restarting, Setup

STOPPED = 5.0


@pytest.mark.parametrize("inference", [FakeInference, Restarting])
@pytest.mark.parametrize("control", ["delta", "absolute"])
def test_after_five_seconds_without_the_processor_the_robot_holds_until_a_new_plan(control: str, inference: Any) -> None:
    def stall(count: int) -> None:
        if count == 20:
            setup.clock.time += STOPPED

    setup = Setup(before=stall, delay=2, control=control, inference=inference, hold=1.0)
    record = setup.run(200)
    away = round(STOPPED / PERIOD)
    assert record.missed == away - 1
    assert record.stops == []
    assert record.rungs["stop"] == 0
    assert [item.tick for item in record.arrivals if item.outcome == "expired"] == [20], "the answer that came too late"
    holding = [command for tick, command in setup.robot.commands.items() if 20 + away < tick < 20 + away + 4]
    for command in holding:
        still = [20, 16, 5] if control == "absolute" else [0, 0, 5]
        np.testing.assert_array_equal(command, still)
    for tick, command in setup.robot.commands.items():
        if tick > 30 + away:
            assert command[0] == tick, "plans are followed by the time that it is"
    ticks = [round((time - setup.clock.time) / PERIOD) for time, _ in setup.robot.sent]
    assert max(ticks.count(tick) for tick in set(ticks)) <= 2, "missed commands are not made up for"


def test_a_longer_fallback_than_hold_would_have_stopped_it() -> None:
    """Time without a plan counts from the first tick that lacked one: not while the process did not run."""

    def stall(count: int) -> None:
        if count == 20:
            setup.clock.time += STOPPED
            setup.inference.dead = True

    setup = Setup(before=stall, delay=2, hold=1.0)
    record = setup.run(200)
    assert len(record.stops) == 1
    since = record.stops[0].tick - 20 - round(STOPPED / PERIOD)
    assert since == pytest.approx(1.0 / PERIOD, abs=2)


def test_a_stopped_control_command_goes_on(tmp_path: Path) -> None:
    from benchmarks.kill_works import Control

    work, out = Control(tmp_path), tmp_path / "out"
    work.prepare()
    arguments = [item for item in work.arguments(out) if not item.startswith(("seconds=", "inference="))]
    command = [sys.executable, "-m", "kinoise.cli", *arguments, "seconds=8"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    trace = out / "control.trace"
    while process.poll() is None and not (trace.exists() and trace.stat().st_size > 1 << 14):  # the loop is under way
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(STOPPED)
    os.kill(process.pid, signal.SIGCONT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said
    result = json.loads((out / "control.json").read_text())
    assert result["ended_by"] is None
    assert result["missed"] >= (STOPPED - 1) * 20 - 20
    assert result["frozen"] >= (STOPPED - 2) * 20 - 20, "the simulated world makes up for a second and counts the rest"
    assert result["stops"] == []
    assert result["rungs"]["plan"] > 0
    assert result["late_ms"]["max"] > 1e3 * (STOPPED - 1)


def test_a_step_of_the_wall_clock_is_not_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop, its inference, its simulated robot and its guards ask the monotonic clock alone."""
    import torch
    from kinoise.deploy.controller import Controller, ControllerConfig
    from kinoise.deploy.guards import Guards
    from kinoise.deploy.inference import ThreadInference
    from kinoise.deploy.robot import SimRobot
    from kinoise.spec import Plan
    from line_world import make

    def stepped() -> float:
        raise AssertionError("the wall clock was asked")

    def plan(request: Any) -> Plan:
        return Plan(torch.zeros(1, 20, 1), dt=0.05, nfe=1)

    robot = SimRobot(lambda: make("line/go"), 20.0)
    controller = Controller(robot, ThreadInference(plan), Guards(robot.spec), ControllerConfig(rate=20.0), execute=4)
    monkeypatch.setattr(time, "time", stepped)
    monkeypatch.setattr(time, "time_ns", stepped)
    controller.prepare()
    record = controller.run(0.5)
    monkeypatch.undo()
    robot.close()
    assert not record.errors
    assert record.outcomes["used"] > 0
