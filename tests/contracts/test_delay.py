"""How late plans come: the estimate, the plans that measure it before a run, and the runs that it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kinoise.deploy.inference import Request
from kinoise.deploy.latency import MESSAGES, OTHERS, WINDOW, DelayEstimate, Record, check_horizon, percentiles
from kinoise.deploy.robot import ObservationTimeout
from kinoise.spec import KinoiseError, Plan
from loop_fakes import CHUNK, EXECUTE, PERIOD, START, Setup, plan_of

latencies = st.lists(st.floats(1e-4, 2.0), min_size=1, max_size=3 * WINDOW)


def estimate(seconds: list[float], period: float = PERIOD) -> DelayEstimate:
    delay = DelayEstimate(period)
    for item in seconds:
        delay.add(item)
    return delay


def test_percentiles():
    assert percentiles(range(101), 10.0) == {"p50": 500, "p95": 950, "p99": 990, "max": 1000}
    assert percentiles([]) == {"p50": None, "p95": None, "p99": None, "max": None}


@given(latencies)
def test_the_estimate_covers_nineteen_of_twenty_of_the_newest_plans(seconds: list[float]):
    delay, newest = estimate(seconds), seconds[-WINDOW:]
    assert delay.seconds in newest
    assert np.mean([item <= delay.seconds for item in newest]) >= 0.95
    assert np.mean([item < delay.seconds for item in newest]) < 0.95
    assert delay.ticks >= 1
    assert (delay.ticks - 1) * PERIOD < delay.seconds + 1e-9
    assert delay.seconds <= delay.ticks * PERIOD + 1e-6


def test_what_was_slow_long_ago_is_forgotten():
    assert estimate([1.0] * WINDOW + [0.04] * WINDOW).ticks == 1
    assert estimate([]).ticks == 1


@pytest.mark.parametrize("ticks", range(1, 9))
def test_whole_ticks_are_not_rounded_up(ticks: int):
    assert estimate([ticks * PERIOD]).ticks == ticks
    assert estimate([ticks * PERIOD + 0.001]).ticks == ticks + 1


@given(latencies, st.integers(1, 40))
def test_what_is_refused_would_stand_still_and_what_is_not_would_not(seconds: list[float], chunk: int):
    delay = estimate(seconds)
    gaps = 2 * delay.ticks > chunk
    try:
        check_horizon(delay, chunk, 20.0, 60.0)
    except KinoiseError:
        assert gaps
    else:
        assert not gaps


def test_a_horizon_that_the_delay_exceeds_is_refused_with_the_numbers():
    delay = estimate([0.13] * 20, 1 / 50)
    with pytest.raises(
        KinoiseError, match=r"plans take 130 ms at p95 = 7 ticks at 50 Hz; a chunk of 6 actions is over by then"
    ):
        check_horizon(delay, 6, 50.0, 1.0)
    with pytest.raises(
        KinoiseError, match=r"comes after 14 ticks, and a chunk of 10 .* stand still 4 of every 7 ticks\. Lower rate="
    ):
        check_horizon(delay, 10, 50.0, 1.0)
    with pytest.raises(KinoiseError, match=r"stopped before its first plan comes\. Raise fallback\.hold=0\.1"):
        check_horizon(delay, 14, 50.0, 0.1)
    check_horizon(delay, 14, 50.0, 1.0)


@pytest.mark.parametrize("delay", [1, 2, 3, 4])
def test_what_preparing_lets_through_never_stands_still(delay: int):
    setup = Setup(delay, execute=8, pin=True)
    setup.controller.prepare()
    assert not setup.robot.sent
    prepared = len(setup.inference.requests)
    record = setup.run(60)
    assert record.rungs["hold"] == delay
    assert record.rungs["rest"] == 0
    first, *replans = setup.inference.requests[prepared:]
    assert first.previous is None
    assert {request.prefix for request in replans} == {delay}


@pytest.mark.parametrize("delay", [5, 8, 30])
def test_plans_that_would_come_too_late_are_refused_before_anything_moves(delay: int):
    setup = Setup(delay)
    with pytest.raises(KinoiseError, match=rf"plans take {delay * 50} ms at p95 = {delay} ticks at 20 Hz.*{CHUNK} actions"):
        setup.controller.prepare()
    assert not setup.robot.sent
    assert setup.inference.closed == 1


def test_the_first_plans_of_both_kinds_are_not_measured():
    """They may compile and allocate, for longer than any chunk lasts."""
    setup = Setup()
    ask = setup.inference.submit

    def submit(request: Request) -> None:
        setup.inference.delay = 1 if request.tick > 1 else 100
        ask(request)

    setup.inference.submit = submit
    setup.controller.prepare()
    assert len(setup.inference.requests) == 2 + 20


def test_slow_plans_are_measured_three_times():
    setup = Setup(3, hold=60.0)
    setup.inference.answer = lambda request: Plan(torch.zeros(1, 64, 3), dt=0.05, nfe=1)
    setup.inference.delay = 30
    setup.controller.prepare()
    assert len(setup.inference.requests) == 2 + 3


@pytest.mark.parametrize("pin", [False, True])
def test_replans_are_measured_as_the_loop_will_ask_for_them(pin: bool):
    setup = Setup(2, pin=pin)
    setup.controller.prepare()
    replans = [item for item in setup.inference.requests if item.previous is not None]
    assert {item.elapsed for item in replans} == {EXECUTE}
    # With pin one with a prefix and one without come before those that are measured: a compiled policy makes a graph of each.
    assert {item.prefix > 0 for item in replans[:2]} == {False, pin}
    assert {item.prefix for item in replans[3:]} == {2 if pin else 0}
    assert len(replans) == (11 if not pin else 12)


def test_replans_that_cost_more_than_the_chunk_lasts_are_refused():
    """A guided prefix takes a backward pass for each evaluation, which a first plan does not."""
    setup = Setup(1, pin=True)
    ask = setup.inference.submit

    def submit(request: Request) -> None:
        setup.inference.delay = 6 if request.prefix else 1
        ask(request)

    setup.inference.submit = submit
    with pytest.raises(KinoiseError, match=r"plans take 300 ms at p95 = 6 ticks"):
        setup.controller.prepare()


def test_settings_that_only_replans_refuse_are_named_before_anything_moves():
    setup = Setup(answer=lambda request: plan_of(request) if request.previous is None else "planning failed: start higher")
    with pytest.raises(KinoiseError, match="start higher"):
        setup.controller.prepare()
    assert not setup.robot.sent


def test_a_policy_that_can_not_plan_is_named_before_anything_moves():
    setup = Setup(answer=lambda request: "planning failed: out of memory")
    with pytest.raises(KinoiseError, match=r"could not plan on the robot's first observation: .*out of memory"):
        setup.controller.prepare()
    assert setup.inference.closed == 1


def test_plans_that_can_not_be_carried_out_are_named_before_anything_moves():
    setup = Setup(answer=lambda request: Plan(torch.zeros(1, CHUNK, 4), dt=0.05, nfe=1))
    with pytest.raises(KinoiseError, match=r"\[1, chunk, 3\].*\[1, 8, 4\]"):
        setup.controller.prepare()
    setup = Setup(answer=lambda request: Plan(torch.full((1, CHUNK, 3), math.inf), dt=0.05, nfe=1))
    with pytest.raises(KinoiseError, match="NaN or infinity"):
        setup.controller.prepare()
    assert not setup.robot.sent


def test_preparing_waits_for_sensors_that_are_starting():
    def see(count: int) -> None:
        if setup.clock.now() < START + starts:
            raise ObservationTimeout("starting")

    setup, starts = Setup(before=see), 3.0
    setup.controller.prepare()
    assert len(setup.inference.requests) == 2 + 20
    setup, starts = Setup(before=see), 30.0
    with pytest.raises(ObservationTimeout, match="starting"):
        setup.controller.prepare()


def test_preparing_ends_when_the_run_does():
    setup = Setup()
    setup.inference.dead = True
    setup.controller.prepare(lambda: setup.clock.now() > 101)
    assert math.isclose(setup.clock.now(), 101, abs_tol=0.1)


def test_a_record_does_not_grow_with_messages_that_are_never_the_same() -> None:
    record = Record(0.02)
    for number in range(2 * MESSAGES):
        record.add_error(f"joint 3 is at {number}")
    record.add_error("joint 3 is at 0")
    assert (len(record.errors), record.errors.total()) == (MESSAGES + 1, 2 * MESSAGES + 1)
    assert (record.errors["joint 3 is at 0"], record.errors[OTHERS]) == (2, MESSAGES)
