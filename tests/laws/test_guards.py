"""Laws of the guards: what comes out is always safe, and what was safe comes out as it went in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from kinoise.deploy.guards import GUARDS, GuardConfig, Guards, still
from kinoise.spec import Feature, KinoiseError, Spec

LOW, HIGH, GRIPPER = (-1.0, -0.5, 0.0, -1.0), (1.0, 2.0, 0.25, 1.0), 3
RANGE = np.float32(HIGH) - np.float32(LOW)


def robot(control: str = "delta", bounded: bool = True) -> Spec:
    action = Feature((4,), low=LOW if bounded else None, high=HIGH if bounded else None)
    return Spec({"state": Feature((2,))}, action, rate=20.0, control=control, gripper=(GRIPPER,))


anything = hnp.arrays(np.float32, 4, elements=st.floats(width=32, allow_nan=True, allow_infinity=True))
finite = hnp.arrays(np.float32, 4, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
inside = hnp.arrays(np.float32, 4, elements=st.floats(0, 1, width=32)).map(lambda part: np.float32(LOW) + part * RANGE)
jumps = st.floats(0.03125, 1.0, width=32)
controls = st.sampled_from(["delta", "relative", "absolute"])

PERIOD = 0.05


def counts(**changes: int) -> dict[str, int]:
    return {**dict.fromkeys(GUARDS, 0), **changes}


@given(anything, st.none() | inside, jumps, controls)
def test_commands_are_finite_bounded_and_near_the_last(wanted, last, jump, control):
    guards = Guards(robot(control), GuardConfig(jump=jump, velocity=None))
    command = guards(wanted, last, PERIOD)
    if command is None:
        assert control == "absolute"
        assert last is None
        assert not np.isfinite(wanted).all()
        return
    assert command.dtype == np.float32
    assert np.isfinite(command).all()
    assert (command >= np.float32(LOW)).all()
    assert (command <= np.float32(HIGH)).all()
    if last is not None and np.isfinite(wanted).all():
        arm = np.arange(4) != GRIPPER
        assert (np.abs(command - last)[arm] <= (jump * RANGE * (1 + 1e-5) + 1e-6)[arm]).all()


@given(inside, inside)
def test_what_is_safe_passes_unchanged_and_uncounted(last, wanted):
    guards = Guards(robot(), GuardConfig(jump=1.5))
    np.testing.assert_array_equal(guards(wanted, last, PERIOD), wanted)
    assert guards.interventions == counts()


@given(finite, inside, jumps)
def test_guarding_twice_is_guarding_once(wanted, last, jump):
    guards = Guards(robot(), GuardConfig(jump=jump))
    once = guards(wanted, last, PERIOD)
    before = dict(guards.interventions)
    np.testing.assert_array_equal(guards(once, last, PERIOD), once)
    assert guards.interventions == before


@given(anything, inside)
def test_each_intervention_is_counted_once(wanted, last):
    guards = Guards(robot(), GuardConfig(jump=0.5))
    command = guards(wanted, last, PERIOD)
    if not np.isfinite(wanted).all():
        assert guards.interventions == counts(nan=1)
    else:
        clipped = np.clip(wanted, np.float32(LOW), np.float32(HIGH))
        assert guards.interventions == counts(bounds=int((clipped != wanted).any()), jump=int((clipped != command).any()))


@given(anything, inside, st.floats(0.03125, 10.0), st.floats(0.001, 0.5))
def test_absolute_control_moves_no_faster_than_it_may(wanted, last, velocity, seconds):
    guards = Guards(robot("absolute"), GuardConfig(velocity=velocity, jump=None))
    command = guards(wanted, last, seconds)
    assert command is not None
    arm = np.arange(4) != GRIPPER
    assert (np.abs(command - last)[arm] <= (velocity * seconds * RANGE * (1 + 1e-4) + 1e-6)[arm]).all()
    if np.isfinite(wanted).all():
        assert command[GRIPPER] == np.clip(wanted[GRIPPER], LOW[GRIPPER], HIGH[GRIPPER])
        clipped = np.clip(wanted, np.float32(LOW), np.float32(HIGH))
        assert guards.interventions["velocity"] == int((clipped != command).any())


@given(inside, inside, st.sampled_from(["delta", "relative"]))
def test_what_is_a_motion_already_has_its_bounds_for_a_speed(wanted, last, control):
    guards = Guards(robot(control), GuardConfig(velocity=1e-3, jump=None))
    np.testing.assert_array_equal(guards(wanted, last, PERIOD), wanted)


@given(st.floats(0.001, 5.0), st.floats(0.001, 5.0))
def test_ages_and_silences_are_counted_beyond_their_limits(seconds, limit):
    guards = Guards(robot(), GuardConfig(stale=limit, heartbeat=limit))
    assert guards.stale(seconds) == guards.overdue(seconds) == (seconds > limit)
    assert guards.interventions == counts(stale=int(seconds > limit), heartbeat=int(seconds > limit))
    free = Guards(robot(), GuardConfig(stale=None, heartbeat=None))
    assert not free.stale(seconds)
    assert not free.overdue(seconds)


@given(inside)
def test_the_gripper_may_switch_in_one_step(last):
    wanted = last.copy()
    wanted[GRIPPER] = -last[GRIPPER]
    np.testing.assert_array_equal(Guards(robot(), GuardConfig(jump=0.03125))(wanted, last, PERIOD), wanted)


def test_the_first_motion_is_limited_from_standing_still():
    guards = Guards(robot(), GuardConfig(jump=0.25))
    np.testing.assert_allclose(guards(np.float32(HIGH), None, PERIOD), [0.5, 0.625, 0.0625, 1.0])
    absolute = Guards(robot("absolute"), GuardConfig(jump=0.25))
    np.testing.assert_array_equal(absolute(np.float32(HIGH), None, PERIOD), np.float32(HIGH))


@given(inside)
def test_holding_keeps_the_gripper_and_stops_the_arm(last):
    np.testing.assert_array_equal(still(robot("delta"), last), [0, 0, 0, last[GRIPPER]])
    np.testing.assert_array_equal(still(robot("absolute"), last), last)


def test_holding_before_the_first_command():
    np.testing.assert_array_equal(still(robot("delta"), None), np.zeros(4))
    assert still(robot("absolute"), None) is None


def test_guards_that_need_bounds_refuse_to_do_without():
    with pytest.raises(KinoiseError, match=r"guards\.bounds=false"):
        Guards(robot(bounded=False))
    free = Guards(robot(bounded=False), GuardConfig(bounds=False, jump=None))
    np.testing.assert_array_equal(free(np.full(4, 1e6, np.float32), None, PERIOD), np.full(4, 1e6, np.float32))
    np.testing.assert_array_equal(free(np.full(4, np.nan, np.float32), None, PERIOD), np.zeros(4))


@pytest.mark.parametrize("guard", ["velocity", "jump", "stale", "heartbeat"])
@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_has_to_be_positive(guard, limit):
    with pytest.raises(KinoiseError, match=rf"guards\.{guard}"):
        GuardConfig(**{guard: limit})
