"""What is executed of a demonstrator's actions while it is disturbed."""

import itertools

import numpy as np
import pytest
from kinoise.eval.disturb import PUSH, SECONDS, Disturbed
from kinoise.spec import Feature, KinoiseError, Spec

RATE = 20.0
LOW, HIGH = (-1.0, -1.0, 0.0, -1.0), (1.0, 1.0, 10.0, 1.0)


def spec(control: str = "delta", gripper: tuple[int, ...] = (3,), low: tuple[float, ...] | None = LOW) -> Spec:
    action = Feature((4,), low=low, high=None if low is None else HIGH)
    return Spec({"state": Feature((1,))}, action, rate=RATE, control=control, gripper=gripper)


def executed(disturbed: Disturbed, steps: int = 400, action: tuple[float, ...] = (0.1, -0.2, 5.0, 1.0)) -> np.ndarray:
    return np.stack([disturbed(np.float32(action)) for _ in range(steps)])


def spells(held: np.ndarray) -> list[int]:
    """Lengths of the runs of what is true."""
    return [len(list(run)) for value, run in itertools.groupby(held) if value]


def test_without_disturbances_it_is_noise_alone():
    found = executed(Disturbed(spec(), 0.1, 0.0, 7))
    assert abs((found - (0.1, -0.2, 5.0, 0)).std(0)[:3] - 0.1).max() < 0.02
    assert (executed(Disturbed(spec(), 0.0, 0.0, 7)) == np.float32((0.1, -0.2, 5.0, 1.0))).all()


def test_the_seed_alone_decides_and_disturbances_leave_the_noise_as_it_is():
    first, again, other = (executed(Disturbed(spec(), 0.1, 0.02, seed)) for seed in (7, 7, 8))
    assert (first == again).all()
    assert (first != other).any()
    quiet = executed(Disturbed(spec(), 0.1, 0.0, 7))
    assert 0.3 < (first[:, 0] == quiet[:, 0]).mean() < 1


def test_fingers_slip_and_the_hand_is_pushed_for_a_moment_each_as_often():
    most = round(SECONDS[1] * RATE)
    found = executed(Disturbed(spec(), 0.0, 0.02, 1), 20_000)
    slips = spells(found[:, 3] == -1)
    pushes = spells(found[:, 0] != np.float32(0.1))
    assert round(SECONDS[0] * RATE) <= min(slips) <= most
    assert min(pushes) >= round(SECONDS[0] * RATE)
    assert max(slips) <= 2 * most  # one may follow upon another
    assert 0.7 < len(slips) / len(pushes) < 1.4
    assert not ((found[:, 3] == -1) & (found[:, 0] != np.float32(0.1))).any()


@pytest.mark.parametrize("control", ["delta", "absolute"])
def test_a_push_goes_one_way_whatever_the_demonstrator_says(control: str):
    middle, half = (np.array(HIGH) + np.array(LOW)) / 2, (np.array(HIGH) - np.array(LOW)) / 2
    moved, start = (0.0, 0.0) if control == "delta" else (0.25, middle)
    disturbed = Disturbed(spec(control, ()), 0.0, 1.0, 3)
    first, second = disturbed(np.float32(middle)), disturbed(np.float32(middle + 0.25))
    assert second - first == pytest.approx(np.full(4, moved), abs=1e-6)
    seeds = range(200)
    pushes = np.stack([Disturbed(spec(control, ()), 0.0, 1.0, seed)(np.float32(middle)) - start for seed in seeds])
    assert (pushes <= PUSH * half + 1e-6).all()
    assert (pushes.max(0) > 0.8 * PUSH * half).all()


def test_an_action_without_bounds_is_not_disturbed():
    with pytest.raises(KinoiseError, match="disturb= needs an action with bounds"):
        Disturbed(spec(low=None), 0.1, 0.1, 0)
    assert np.isfinite(executed(Disturbed(spec(low=None), 0.1, 0.0, 0))).all()
