"""More commands than control steps: on the line between actions, or equal shares of a motion."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kinoise.deploy.guards import GuardConfig
from kinoise.deploy.inference import Request
from kinoise.spec import Plan
from loop_fakes import CHUNK, GRIPPER, PERIOD, START, Setup

SERVO = 4


def walk(request: Request) -> Plan:
    """Up in steps of two; the gripper changes at every third tick."""
    ticks = torch.arange(request.tick, request.tick + CHUNK, dtype=torch.float32)
    return Plan(torch.stack([2 * ticks, -ticks, ticks // 3 % 2], -1)[None], dt=1 / 80, nfe=1)


@pytest.mark.parametrize("control", ["absolute", "delta", "relative"])
def test_commands_come_at_absolute_times(control: str):
    setup = Setup(control=control, answer=walk, servo=SERVO, oversleep=0.3 * PERIOD / SERVO)
    record = setup.run(40)
    times = [time for time, _ in setup.robot.sent]
    np.testing.assert_allclose(np.diff(times)[SERVO:], PERIOD / SERVO)
    assert record.ticks == 40
    assert record.missed == record.missed_commands == 0
    assert len(times) == SERVO * (39 if control == "absolute" else 40)


def test_positions_lie_on_the_line_between_actions_and_the_gripper_steps():
    setup = Setup(control="absolute", answer=walk, servo=SERVO)
    setup.run(40)
    for time, command in setup.robot.sent:
        moment = (time - START) / PERIOD
        np.testing.assert_allclose(command[:GRIPPER], [2 * moment, -moment], rtol=1e-4, atol=1e-4)
        assert command[GRIPPER] == int(moment + 1e-6) // 3 % 2


def test_with_the_last_action_the_line_ends():
    setup = Setup(
        control="absolute", answer=walk, servo=SERVO, before=lambda count: setattr(setup.inference, "dead", count > 1)
    )
    setup.run(CHUNK + 4)
    last = [command for time, command in setup.robot.sent if time > START + (CHUNK - 1.1) * PERIOD]
    assert len(last) == 5 * SERVO
    np.testing.assert_array_equal(last, [[2 * (CHUNK - 1), 1 - CHUNK, 0]] * len(last))


@pytest.mark.parametrize("control", ["delta", "relative"])
@pytest.mark.parametrize("servo", [1, 2, 5])
def test_shares_of_a_motion_make_the_whole_one(control: str, servo: int):
    whole, shared = (Setup(control=control, answer=walk, servo=count) for count in (1, servo))
    for setup in (whole, shared):
        setup.run(20)
    for tick, command in whole.robot.commands.items():
        shares = [item for time, item in shared.robot.sent if int((time - START) / PERIOD + 1e-6) == tick]
        assert len(shares) == servo
        np.testing.assert_allclose(np.sum(shares, 0)[:GRIPPER], command[:GRIPPER], rtol=1e-5)
        assert {item[GRIPPER] for item in shares} == {command[GRIPPER]}


def test_the_guards_look_at_every_command():
    """Two tenths of a unit a tick are asked for; a tenth a second of the range of 2000 is allowed: 2.5 between two commands."""
    setup = Setup(control="absolute", servo=SERVO, guards=GuardConfig(velocity=0.1, jump=None))
    setup.inference.answer = lambda request: Plan(walk(request).actions * 20, dt=1 / 80, nfe=1)
    setup.run(30)
    sent = np.stack([command for _, command in setup.robot.sent])
    assert np.abs(np.diff(sent, axis=0))[:, :GRIPPER].max() <= 0.1 * 2000 * PERIOD / SERVO * (1 + 1e-4)
    assert setup.guards.interventions["velocity"] > 0


def test_a_late_tick_leaves_out_the_commands_whose_time_has_passed():
    def stall(count: int) -> None:
        if count == 10:
            setup.clock.time += 0.6 * PERIOD

    setup = Setup(control="absolute", answer=walk, servo=SERVO, before=stall)
    record = setup.run(20)
    # At 0.6 of tick 10 the command for 0.25 is past, and that for 0.5 is sent late.
    assert record.missed_commands == 1
    assert record.missed == 0
    sent = {round((time - START) / PERIOD, 2): command[0] for time, command in setup.robot.sent}
    assert sent[10.75] == pytest.approx(21.5)
    assert sent[11.0] == pytest.approx(22.0)


def test_a_stopped_robot_gets_no_command_in_between():
    setup = Setup(control="absolute", servo=SERVO, hold=2 * PERIOD, on_stop="wait", answer=walk)
    setup.robot.before = lambda count: setattr(setup.inference, "dead", count > 1)
    record = setup.run(30)
    assert record.rungs["stop"] == 30 - CHUNK - 2
    assert max(time for time, _ in setup.robot.sent) < START + (CHUNK + 2) * PERIOD - 1e-6
