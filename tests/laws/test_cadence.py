"""How often a robot can replan: laws of the arithmetic, beside the loop that it is about."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from kinoise.deploy.cadence import Cadence, hertz
from kinoise.deploy.latency import DelayEstimate, check_horizon
from kinoise.spec import KinoiseError

SECONDS = st.floats(1e-4, 10)
RATES = st.floats(0.1, 1000)
CHUNKS = st.integers(1, 64)


@given(SECONDS, RATES, CHUNKS)
def test_a_loop_that_makes_one_plan_at_a_time_gets_them_so_often(seconds: float, rate: float, chunk: int):
    assume(abs(seconds * rate - round(seconds * rate)) > 1e-5)  # between two ticks, where rounding has no say
    assume(seconds * rate < 2000)
    asked, arrivals = 0, []
    for tick in range(1, 6 * math.ceil(seconds * rate) + 1):
        if (tick - asked) / rate >= seconds:
            arrivals.append((asked, tick))
            asked = tick
    found = Cadence(seconds, rate, chunk)
    assert {tick - question for question, tick in arrivals} == {found.delay}
    assert {later[1] - sooner[1] for sooner, later in pairwise(arrivals)} == {found.every}
    stale = [tick for question, tick in arrivals if tick + found.every - question > chunk]  # over before the next one comes
    assert found.lasts == (not stale)


@given(SECONDS, RATES, CHUNKS)
def test_what_the_controller_refuses_is_refused_in_its_words(seconds: float, rate: float, chunk: int):
    found, delay = Cadence(seconds, rate, chunk), DelayEstimate(1 / rate)
    delay.add(seconds)
    if found.lasts:
        check_horizon(delay, chunk, rate, math.inf)
    else:
        with pytest.raises(KinoiseError):
            check_horizon(delay, chunk, rate, math.inf)
        assert found.refusal
    assert found.refusal in found.sentence
    assert found.sentence.startswith("kinoise control would refuse") == bool(found.refusal)


@given(SECONDS, RATES, st.integers(2, 64))
def test_the_highest_rates_are_the_highest(seconds: float, rate: float, chunk: int):
    found = Cadence(seconds, rate, chunk)
    assert found.fastest is not None
    assert found.sustained is not None
    assert Cadence(seconds, found.fastest, chunk).delay == 1
    assert Cadence(seconds, found.fastest * 1.001, chunk).delay == 2
    assert Cadence(seconds, found.sustained, chunk).lasts
    assert not Cadence(seconds, found.sustained * 1.001, chunk).lasts
    assert found.fastest <= found.sustained


@given(SECONDS, SECONDS, RATES, RATES, CHUNKS)
def test_slower_plans_and_faster_loops_never_help(a: float, b: float, slow: float, fast: float, chunk: int):
    (a, b), (slow, fast) = sorted((a, b)), sorted((slow, fast))
    assert Cadence(a, slow, chunk).delay <= Cadence(b, slow, chunk).delay
    assert Cadence(a, slow, chunk).delay <= Cadence(a, fast, chunk).delay
    assert Cadence(a, slow, chunk).lasts or not Cadence(b, fast, chunk).lasts


@given(st.floats(0.001, 1e5))
def test_a_rate_is_never_shown_higher_than_it_is(rate: float):
    value, unit = hertz(rate).split()
    assert unit == "Hz"
    assert 0 < float(value) <= rate
    assert float(value) > rate * 0.49 or rate < 0.01


def test_the_sentence_by_example():
    assert Cadence(0.07, 20.0, 12).sentence == (
        "at 20 Hz you can replan every 2 steps with delay 2; every step with delay 1 at up to 14 Hz. "
        "A plan lasts until the next one comes at up to 85 Hz."
    )
    assert Cadence(0.07, 10.0, 12).sentence.startswith(
        "at 10 Hz you can replan every step with delay 1; the same at up to 14 Hz."
    )
    late = Cadence(0.13, 50.0, 6).sentence
    assert late.startswith("kinoise control would refuse: plans take 130 ms at p95 = 7 ticks at 50 Hz")
    assert late.endswith("A plan lasts until the next one comes at up to 23 Hz.")
    assert "Raise fallback.hold" in Cadence(1.5, 20.0, 100).sentence
    assert Cadence(0.01, 20.0, 1).fastest is Cadence(0.01, 20.0, 1).sustained is None


@pytest.mark.parametrize("wrong", [(0.0, 20.0, 12), (math.inf, 20.0, 12), (0.1, 0.0, 12), (0.1, math.nan, 12), (0.1, 20.0, 0)])
def test_what_no_loop_has_is_refused(wrong: tuple[float, float, int]):
    with pytest.raises(KinoiseError, match="expected all of it above 0"):
        Cadence(*wrong)
