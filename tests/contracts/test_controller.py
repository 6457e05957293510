"""The loop against a robot, an inference and a clock that do exactly what each test says: its time, its plans, its end."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from kinoise.config import UsageError
from kinoise.deploy.history import History
from kinoise.deploy.inference import Request
from kinoise.deploy.latency import Record
from kinoise.deploy.robot import ObservationTimeout, Reading
from kinoise.spec import KinoiseError, Plan
from loop_fakes import CHUNK, EXECUTE, PERIOD, START, Setup, plan_of


@pytest.mark.parametrize("delay", [1, 2, 3, 4])
def test_actions_are_picked_by_time(delay):
    setup = Setup(delay)
    record = setup.run(40)
    assert sorted(setup.robot.commands) == list(range(40))
    for tick, command in setup.robot.commands.items():
        if tick < delay:
            np.testing.assert_array_equal(command, [0, 0, 0])
            continue
        newest = max(request.tick for request in setup.inference.requests if request.tick + delay <= tick)
        np.testing.assert_array_equal(command, [tick, newest, 5])
    assert record.rungs["hold"] == delay
    assert {item.delay for item in record.arrivals} == {delay}
    assert {item.outcome for item in record.arrivals} == {"used"}


@pytest.mark.parametrize("delay", [1, 2, 4])
def test_plans_are_asked_for_every_execute_ticks(delay):
    setup = Setup(delay)
    setup.run(40)
    asked = [request.tick for request in setup.inference.requests]
    assert asked == list(range(0, 40, EXECUTE))
    times = [request.time for request in setup.inference.requests]
    np.testing.assert_allclose(np.diff(times), EXECUTE * PERIOD)


def test_deadlines_are_absolute():
    setup = Setup(oversleep=0.4 * PERIOD)
    record = setup.run(100)
    np.testing.assert_allclose(np.diff(record.begins)[1:], PERIOD)
    np.testing.assert_allclose(list(record.late)[1:], 0.4 * PERIOD)
    assert record.ticks == 100
    assert record.missed == 0


def test_missed_deadlines_are_counted_and_the_plan_moves_on_with_time():
    def stall(count: int) -> None:
        if count == 10:
            setup.clock.time += 2.5 * PERIOD

    setup = Setup(before=stall, history=4)
    record = setup.run(30)
    # Tick 10 ran two and a half periods over: 11 starts late, at the time of tick 12.
    assert record.missed == 1
    assert record.ticks == 29
    assert max(record.late) == pytest.approx(1.5 * PERIOD)
    for tick, command in setup.robot.commands.items():
        if tick > 13:
            assert command[0] == tick
    # Observation 11 is tick 12's; 10 stands for the tick that was missed.
    request = next(request for request in setup.inference.requests if request.tick >= 12)
    assert request.tick == 12
    assert [int(reading.values["state"][0]) for reading in request.readings] == [9, 10, 10, 11]


def test_ticks_that_are_missed_at_the_end_lead_no_further_than_it():
    def stall(count: int) -> None:
        if count == 28:
            setup.clock.time += 9.5 * PERIOD

    setup = Setup(before=stall)
    record = setup.run(30)
    assert (record.ticks, record.missed) == (29, 1)
    assert max(request.tick for request in setup.inference.requests) < 30


def test_histories_are_true_past_observations():
    setup = Setup(history=3)
    setup.run(20)
    for request in setup.inference.requests:
        states = [int(reading.values["state"][0]) for reading in request.readings]
        assert states == [max(0, request.tick - 2), max(0, request.tick - 1), request.tick]


def test_nothing_crosses_a_restart_of_the_scene():
    def restart(count: int) -> None:
        if count == 10:
            setup.robot.episode = 1

    setup = Setup(delay=3, history=3, before=restart)
    record = setup.run(20)
    # The plan asked for at tick 8 arrives at 11, for a scene that is gone.
    assert [item.tick for item in record.arrivals if item.outcome == "stale"] == [8]
    for tick in range(10, 14):
        np.testing.assert_array_equal(setup.robot.commands[tick], [0, 0, 0])
    request = next(request for request in setup.inference.requests if request.tick >= 10)
    assert request.tick == 11
    assert [int(reading.values["state"][0]) for reading in request.readings] == [10, 10, 11]


def test_a_new_episode_forgets_the_plan():
    def begin(count: int) -> None:
        setup.robot.episode = count // 10

    setup = Setup(before=begin)
    setup.run(30)
    for request in setup.inference.requests:
        if request.previous is not None:
            assert round((request.previous.t0 - 100.0) / PERIOD) // 10 == request.tick // 10


@pytest.mark.parametrize(
    "actions",
    [
        torch.zeros(CHUNK, 3),
        torch.zeros(1, CHUNK, 4),
        torch.zeros(2, CHUNK, 3),
        torch.zeros(1, CHUNK, 3).double(),
        torch.zeros(1, CHUNK, 3, device="meta"),
    ],
)
def test_a_malformed_plan_is_an_error_and_the_loop_goes_on(actions):
    setup = Setup(answer=lambda request: Plan(actions, dt=1 / 80, nfe=1))
    record = setup.run(10)
    assert record.rungs["hold"] == 10
    (message,) = record.errors
    assert "[1, chunk, 3]" in message
    assert str(list(actions.shape)) in message


def test_after_a_failure_the_next_tick_asks_again():
    setup = Setup(answer=lambda request: "no plan today")
    record = setup.run(6)
    assert [request.tick for request in setup.inference.requests] == list(range(6))
    assert record.errors == {"no plan today": 5}


def test_the_robot_is_stopped_however_the_run_ends():
    setup = Setup()
    setup.run(5)
    assert (setup.robot.stops, setup.inference.closed) == (1, 1)

    setup = Setup()
    record = setup.controller.run(1e6, lambda: len(setup.robot.sent) == 7)
    assert record.ticks == 7
    assert (setup.robot.stops, setup.inference.closed) == (1, 1)

    def fail(count: int) -> None:
        if count == 3:
            raise KinoiseError("the arm is gone")

    setup = Setup(before=fail)
    with pytest.raises(KinoiseError, match="the arm is gone"):
        setup.run(10)
    assert (setup.robot.stops, setup.inference.closed) == (1, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("execute", 0),
        ("history", 0),
        ("rate", 0.0),
        ("rate", float("nan")),
        ("servo", 0),
        ("budget", -1.0),
        ("hold", 0.0),
        ("decay", 1.0),
    ],
)
def test_settings_that_make_no_sense_are_refused(name: str, value: float):
    with pytest.raises(UsageError, match=name):
        Setup(**{name: value})


def test_an_unknown_way_to_end_is_refused():
    with pytest.raises(UsageError, match=r"on_stop=stay: expected end or wait"):
        Setup(on_stop="stay")


def test_the_record_is_json():
    for record in (Record(PERIOD), Setup(delay=2).run(30)):
        value = json.loads(json.dumps(record.to_json(), allow_nan=False))
        assert value["ticks"] == record.ticks
        assert value["plans"] == len(value["plans_timeline"])
    assert value["delay_steps"] == {"p50": 2, "p95": 2, "p99": 2, "max": 2}
    assert value["period_ms"]["p50"] == pytest.approx(50)


def test_a_record_keeps_the_newest_times_and_counts_all(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kinoise.deploy.latency.KEPT", 10)
    record = Setup(delay=2).run(60)
    assert record.ticks == 60
    assert len(record.begins) == len(record.late) == len(record.work) == 10
    np.testing.assert_allclose(np.diff(record.begins), PERIOD)
    assert record.plans == record.outcomes["used"] > len(record.arrivals) == 10
    assert record.to_json()["plans"] == record.plans


@pytest.mark.parametrize("delay", [1, 3])
@pytest.mark.parametrize("pin", [False, True])
def test_a_question_tells_what_is_being_carried_out(delay: int, pin: bool):
    setup = Setup(delay, pin=pin)
    setup.run(24)
    first, *others = setup.inference.requests
    assert (first.previous, first.elapsed, first.prefix) == (None, 0, 0)
    for request in others:
        assert request.previous is not None
        # The action that the previous plan holds for this tick is the first that is not yet carried out.
        assert request.previous.actions[0, request.elapsed, 0] == request.tick
        assert request.prefix == (min(delay, CHUNK - request.elapsed) if pin else 0)


def test_pinned_plans_join_without_a_step():
    """A plan that keeps its prefix is followed from the action after those that were carried out meanwhile."""

    def answer(request: Request) -> Plan:
        plan = plan_of(request)
        if request.previous is not None:
            plan.actions[:, : request.prefix] = request.previous.actions[:, request.elapsed : request.elapsed + request.prefix]
        return plan

    setup = Setup(delay=2, answer=answer, pin=True)
    setup.run(30)
    for tick, command in setup.robot.commands.items():
        if tick >= 2:
            assert command[0] == tick
    # From the second answer on, the two ticks that it came late were commanded by its own first two actions.
    for before, request in itertools.pairwise(setup.inference.requests):
        kept = setup.inference.answer(request).actions[0, : request.prefix, 1]
        assert (kept == before.tick).all()


def test_the_prefix_is_as_long_as_all_but_the_slowest_plans_take():
    """One plan in thirty is four ticks late: the questions go on counting on one."""

    def slow(count: int) -> None:
        setup.inference.delay = 4 if 100 <= count < 104 else 1

    setup = Setup(delay=1, before=slow, pin=True)
    record = setup.run(160)
    assert max(item.delay for item in record.arrivals) == 4
    assert {request.prefix for request in setup.inference.requests[1:]} == {1}


def test_measured_times_of_observations_count():
    """What a camera saw two ticks ago is planned on as what was there two ticks ago."""

    def lag(count: int) -> None:
        setup.robot.stamp = setup.clock.now() - 2.2 * PERIOD

    setup = Setup(delay=1, history=3, before=lag, pin=True)
    record = setup.run(24)
    for request in setup.inference.requests[2:]:
        assert request.readings[-1].values["state"] == request.tick + 2
        assert request.previous is not None
        assert request.previous.actions[0, request.elapsed, 0] == request.tick
        assert request.prefix == 3
    assert {item.delay for item in list(record.arrivals)[1:]} == {3}
    for tick, command in setup.robot.commands.items():
        assert command[0] == (tick if tick else 0)


def test_a_slow_camera_gives_true_observations_of_the_past():
    """It shows a picture every third tick; the two ticks in between hold the one before."""

    def see(count: int) -> None:
        setup.robot.stamp = START + count // 3 * 3 * PERIOD

    setup = Setup(delay=1, execute=1, history=4, before=see)
    setup.run(20)
    for request in setup.inference.requests:
        assert request.tick % 3 == 0
        ticks = [round((reading.time - START) / PERIOD) for reading in request.readings]
        assert ticks == [max(0, tick // 3 * 3) for tick in range(request.tick - 3, request.tick + 1)]


def test_sensors_that_have_nothing_to_show_leave_the_observation_before():
    def see(count: int) -> None:
        if count in (4, 5):
            setup.robot.count += 1
            raise ObservationTimeout("no picture")

    setup = Setup(delay=1, execute=2, history=3, before=see)
    record = setup.run(12)
    assert record.unseen == 2
    asked = {request.tick: [int(item.values["state"][0]) for item in request.readings] for request in setup.inference.requests}
    assert asked[3] == [1, 2, 3]
    assert asked[6] == [3, 3, 6]


def test_readings_by_another_clock_are_refused():
    setup = Setup()
    setup.robot.stamp = START + 1e6
    with pytest.raises(KinoiseError, match=r"future.*time\.monotonic"):
        setup.run(3)
    assert setup.robot.stops == 1


def test_the_budget_goes_with_every_question():
    setup = Setup(budget=0.125)
    setup.run(20)
    assert {request.budget for request in setup.inference.requests} == {0.125}


@pytest.mark.parametrize("execute", [6, 8])
def test_plans_are_asked_for_early_enough_to_follow_one_another(execute: int):
    setup = Setup(delay=3, execute=execute)
    record = setup.run(60)
    assert [request.tick for request in setup.inference.requests][1:] == list(range(5, 60, 5))
    assert record.rungs["hold"] == 3


def test_of_two_observations_of_one_tick_the_newer_stands():
    history = History(4, PERIOD)
    for tick, seen in enumerate((0.0, 0.9, 1.3, 3.0)):
        reading = Reading({"state": np.float32([seen])}, time=START + seen * PERIOD)
        history.add(reading, tick, START + tick * PERIOD, START + tick * PERIOD)
    assert [round(float(item.values["state"][0]), 1) for item in history.readings] == [0.0, 1.3, 1.3, 3.0]
    assert history.tick == 3
