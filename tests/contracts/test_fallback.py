"""What the loop does without a plan: the rest of the last one, holding, a latched stop, and the way back."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from kinoise.deploy.guards import GuardConfig
from kinoise.deploy.inference import Request
from kinoise.deploy.robot import ObservationTimeout
from kinoise.spec import Plan
from loop_fakes import CHUNK, PERIOD, START, Restarting, Setup, plan_of


def test_when_the_plan_has_run_out_the_robot_holds_with_its_gripper_kept():
    setup = Setup(delay=6)
    record = setup.run(42)
    assert [request.tick for request in setup.inference.requests] == list(range(0, 42, 6))
    # Of a plan's eight actions six come too late, two are carried out, then four ticks pass until the next plan.
    for tick, command in setup.robot.commands.items():
        followed = tick >= 6 and tick % 6 < 2
        np.testing.assert_array_equal(command, [tick, tick - 6 - tick % 6, 5] if followed else [0, 0, 5 * (tick > 6)])
    assert record.rungs["hold"] == 6 + 6 * 4


def test_absolute_control_holds_by_its_last_command_and_sends_nothing_before_the_first():
    setup = Setup(delay=6, control="absolute")
    setup.run(12)
    assert min(setup.robot.commands) == 6
    np.testing.assert_array_equal(setup.robot.commands[11], [7, 0, 5])


def test_a_plan_whose_time_has_passed_is_never_executed():
    setup = Setup(delay=CHUNK)
    record = setup.run(30)
    assert {item.outcome for item in record.arrivals} == {"expired"}
    assert record.rungs["hold"] == 30
    assert not any(command.any() for command in setup.robot.commands.values())


def test_every_rung_is_taken_and_counted():
    def fail(count: int) -> None:
        setup.inference.dead = count >= 13

    setup = Setup(before=fail, hold=4 * PERIOD, guards=GuardConfig(jump=None, heartbeat=None))
    record = setup.run(40)
    # The plan of tick 8 was to be followed by that of 12 at tick 13, and ends with tick 15.
    assert [tick for tick, command in setup.robot.commands.items() if command[1] == 8] == [*range(9, 16)]
    assert record.rungs == {"hold": 1 + 4, "plan": 12, "rest": 3, "stop": 1}
    (stop,) = record.stops
    assert stop.tick == 20
    assert stop.reason == "no plan came after the last"
    assert max(setup.robot.commands) == 19
    assert record.ticks == 21


def test_a_robot_that_was_stopped_waits_for_a_reset():
    def act(count: int) -> None:
        setup.inference.dead = 13 <= count < 35
        if count == 21:
            assert setup.robot.stops == 1
        if count == 36:
            setup.inference.busy = setup.inference.dead = False
        if count == 40:
            setup.robot.stops = 0
            setup.controller.reset()

    setup = Setup(before=act, hold=4 * PERIOD, on_stop="wait", history=2, guards=GuardConfig(jump=None, heartbeat=None))
    record = setup.run(60)
    assert record.ticks == 60
    assert not {*range(20, 40)} & {*setup.robot.commands}
    assert {*range(40, 60)} <= {*setup.robot.commands}
    np.testing.assert_array_equal(setup.robot.commands[40], [0, 0, 5])
    np.testing.assert_array_equal(setup.robot.commands[59], [59, 56, 5])
    assert record.rungs["stop"] == 20
    assert len(record.stops) == 1
    # What it saw while it stood is what the first plan afterwards is made from; nothing was asked meanwhile.
    asked = [request for request in setup.inference.requests if request.tick >= 20]
    assert asked[0].tick == 40
    assert [int(item.values["state"][0]) for item in asked[0].readings] == [39, 40]
    assert asked[0].previous is None


def test_an_answer_from_before_a_reset_is_not_followed():
    def act(count: int) -> None:
        if count == 10:
            setup.controller.reset()

    setup = Setup(delay=4, before=act)
    record = setup.run(20)
    assert [item.tick for item in record.arrivals if item.outcome == "stale"] == [8]
    for tick in range(10, 16):
        np.testing.assert_array_equal(setup.robot.commands[tick], [0, 0, 5])
    np.testing.assert_array_equal(setup.robot.commands[16], [16, 12, 5])


def test_the_loop_goes_on_when_plans_return():
    def act(count: int) -> None:
        setup.inference.dead = 13 <= count < 30

    setup = Setup(before=act)
    record = setup.run(40)
    assert not record.stops
    assert setup.robot.stops == 1
    for tick in range(16, 30):
        np.testing.assert_array_equal(setup.robot.commands[tick], [0, 0, 5])
    assert [setup.robot.commands[tick][0] for tick in range(31, 40)] == [*range(31, 40)]
    assert record.rungs["rest"] == 3


def test_motion_decays_and_the_gripper_holds():
    setup = Setup(decay=0.5)
    setup.inference.answer = lambda request: replace(plan_of(request), actions=torch.tensor([[[8.0, -4.0, 5.0]] * CHUNK]))
    setup.robot.before = lambda count: setattr(setup.inference, "dead", count >= 2)
    setup.run(20)
    motion = [setup.robot.commands[tick] for tick in range(7, 15)]
    expected = [[8, -4], [4, -2], [2, -1], [1, -0.5], [0.5, -0.25], [0.25, -0.125], [0, 0], [0, 0]]
    np.testing.assert_array_equal([command[:2] for command in motion], expected)
    assert all(command[2] == 5 for tick, command in setup.robot.commands.items() if tick)


def test_a_plan_of_nan_is_refused_and_the_one_before_goes_on():
    def answer(request: Request) -> Plan:
        plan = plan_of(request)
        return replace(plan, actions=plan.actions * (math.nan if request.tick == 8 else 1))

    setup = Setup(answer=answer, pin=True)
    record = setup.run(24)
    assert setup.guards.interventions["nan"] == 1
    assert [item.tick for item in record.arrivals if item.outcome == "nan"] == [8]
    # Tick 9 asks again; until the answer, the plan of tick 4 is carried out.
    assert [setup.robot.commands[tick][1] for tick in range(8, 12)] == [4, 4, 9, 9]
    assert all(request.previous is None or request.previous.actions.isfinite().all() for request in setup.inference.requests)


def test_plans_of_nan_alone_stop_the_robot():
    setup = Setup(answer=lambda request: replace(plan_of(request), actions=torch.full((1, CHUNK, 3), math.nan)), hold=0.5)
    record = setup.run(60)
    assert record.stops[0].reason == "plans hold NaN or infinity"
    assert record.stops[0].tick == 10
    assert all(not command.any() for command in setup.robot.commands.values())


def test_plans_that_keep_coming_too_late_stop_the_robot():
    record = Setup(delay=9, hold=2.0).run(100)
    assert record.stops[0].reason == "plans of 8 actions come 9 ticks late"
    assert record.stops[0].tick == 40


def test_a_stalled_camera_stops_the_robot():
    """It shows the same picture from tick 10 on: 0.25 s later nothing is planned on it, 0.5 s later nothing is followed."""

    def see(count: int) -> None:
        setup.robot.stamp = START + min(count, 10) * PERIOD

    guards = GuardConfig(jump=None, stale=0.26)
    setup = Setup(before=see, execute=1, guards=guards, hold=5 * PERIOD)
    record = setup.run(60)
    assert max(request.tick for request in setup.inference.requests) == 10
    assert setup.guards.interventions["stale"] > 0
    commands = setup.robot.commands
    assert [commands[tick][0] for tick in range(10, 18)] == [*range(10, 18)]
    # The plan of tick 10 ends with tick 17; five ticks of holding later the robot is stopped.
    assert record.stops[0].tick == max(commands) + 1 == 23
    assert record.stops[0].reason == "the newest observation is 0.65 s old"


def test_the_rest_of_a_long_plan_is_not_followed_blindly():
    def see(count: int) -> None:
        setup.robot.stamp = START + min(count, 10) * PERIOD

    setup = Setup(before=see, execute=1, guards=GuardConfig(jump=None, stale=0.11), hold=60.0)
    setup.run(30)
    # The picture is 0.2 s old at tick 14; that at 15 it would be 0.25 s old ends what is left of the plan of tick 10.
    assert [setup.robot.commands[tick][0] for tick in range(12, 18)] == [12, 13, 14, 0, 0, 0]


def test_planning_goes_on_when_the_camera_does():
    def see(count: int) -> None:
        setup.robot.stamp = START + (10 if 10 <= count < 30 else count) * PERIOD

    setup = Setup(before=see, guards=GuardConfig(jump=None, stale=0.11), hold=60.0)
    record = setup.run(40)
    assert setup.robot.commands[39][0] == 39
    assert not record.stops


def test_a_robot_that_shows_nothing_is_never_commanded_by_a_plan():
    def see(count: int) -> None:
        raise ObservationTimeout("the camera is off")

    setup = Setup(before=see, guards=GuardConfig(jump=None, stale=0.26), hold=1.0)
    record = setup.run(60)
    assert record.unseen == record.ticks == 21
    assert not setup.inference.requests
    assert "1.00 s old" in record.stops[0].reason


def test_a_silent_inference_is_begun_again():
    def act(count: int) -> None:
        if count == 13:
            setup.inference.dead = True

    setup = Setup(before=act, inference=Restarting, guards=GuardConfig(jump=None, heartbeat=0.51), hold=60.0)
    record = setup.run(60)
    assert isinstance(setup.inference, Restarting)
    assert setup.inference.restarts == 1
    assert setup.guards.interventions["heartbeat"] == 1
    # Asked at tick 12, given up 0.55 s later, asked again at once.
    assert [request.tick for request in setup.inference.requests][2:6] == [8, 12, 23, 27]
    assert setup.robot.commands[59][0] == 59
    assert not record.stops


def test_a_dead_inference_stops_the_robot():
    setup = Setup(before=lambda count: setattr(setup.inference, "dead", count >= 13), hold=1.5)
    record = setup.run(120)
    assert setup.guards.interventions["heartbeat"] == 1
    (stop,) = record.stops
    assert stop.tick == 16 + 30
    assert "silent for 1.70 s" in stop.reason


@pytest.mark.parametrize("control", ["delta", "absolute"])
def test_holding_starts_again_with_a_new_scene_and_a_stop_does_not_end_with_it(control: str):
    def act(count: int) -> None:
        setup.inference.dead = True
        setup.robot.episode = count // 8 if count < 20 else 9 if count > 40 else 2

    setup = Setup(control=control, before=act, hold=10 * PERIOD, on_stop="wait")
    record = setup.run(60)
    assert record.stops[0].tick == 26
    assert record.rungs["stop"] == 60 - 26
