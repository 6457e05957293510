"""Laws of the control loop: whatever comes of planning and of the sensors, what is sent is safe, and a stop is a stop."""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from kinoise.deploy.clock import Clock
from kinoise.deploy.controller import Controller, ControllerConfig
from kinoise.deploy.fallback import FallbackConfig, Ladder
from kinoise.deploy.guards import GuardConfig, Guards
from kinoise.deploy.inference import Reply, Request
from kinoise.deploy.robot import ObservationTimeout, Reading
from kinoise.spec import Feature, Plan, Spec

LOW, HIGH, GRIPPER = np.float32([-1, 0, -2]), np.float32([1, 4, 2]), 2
RATE, CHUNK, JUMP, VELOCITY = 20.0, 6, 0.25, 3.0
CONTROLS = ("absolute", "relative", "delta")


@pytest.fixture(scope="module", autouse=True)
def _no_collection():
    """A run begins with a full collection, of all that the test suite holds: here it takes longer than the run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "collect", lambda: 0)
        yield


def make_spec(control: str) -> Spec:
    action = Feature((3,), low=tuple(LOW.tolist()), high=tuple(HIGH.tolist()))
    return Spec({"state": Feature((1,))}, action, rate=RATE, control=control, gripper=(GRIPPER,), language=False)


class World(Clock):
    """Clock, robot and inference at once; `script` says what becomes of each tick."""

    def __init__(self, spec: Spec, script: list[tuple], actions: np.ndarray) -> None:
        self.spec, self.script, self.actions = spec, script, actions
        self.time, self.tick = 10.0, -1
        self.seen, self.stop_at = 10.0, math.inf
        self.sent: list[tuple[float, np.ndarray]] = []
        self.request: Request | None = None

    def now(self) -> float:
        return self.time

    def sleep_until(self, deadline: float) -> None:
        self.time = max(self.time, deadline)

    def observe(self) -> Reading:
        self.tick += 1
        sight, _, late = self.script[self.tick % len(self.script)]
        self.time += late
        if sight == "timeout":
            raise ObservationTimeout("nothing")
        if sight == "new":
            self.seen = self.time
        return Reading({"state": np.float32([self.tick])}, "", 0, self.seen)

    def command(self, action: np.ndarray) -> None:
        assert self.stop_at == math.inf, "commanded after a stop"
        self.sent.append((self.time, action.copy()))

    def stop(self) -> None:
        self.stop_at = min(self.stop_at, self.time)

    @property
    def busy(self) -> bool:
        return self.request is not None

    def submit(self, request: Request) -> None:
        assert self.request is None
        self.request = request

    def poll(self) -> Reply | None:
        outcome = self.script[self.tick % len(self.script)][1]
        if self.request is None or outcome == "none":
            return None
        request, self.request = self.request, None
        if outcome == "error":
            return Reply(request, None, "no plan", 0.01)
        actions = torch.from_numpy(np.roll(self.actions, request.tick, 0)[None, :CHUNK].copy())
        return Reply(request, Plan(actions, dt=0.05, nfe=1), "", 0.01)

    def close(self) -> str:
        return ""


ticks = st.tuples(
    st.sampled_from(["new", "new", "new", "old", "timeout"]),
    st.sampled_from(["plan", "plan", "none", "error"]),
    st.sampled_from([0.0, 0.0, 0.0, 0.02, 0.12]),
)
wild = st.floats(width=32, allow_nan=True, allow_infinity=True) | st.floats(-4, 4, width=32)
plans = hnp.arrays(np.float32, (2 * CHUNK, 3), elements=wild)


@settings(max_examples=200)
@given(st.lists(ticks, min_size=1, max_size=30), plans, st.sampled_from(CONTROLS), st.integers(1, 3), st.booleans())
def test_no_command_is_outside_its_limits_whatever_the_plans(script, actions, control, servo, pin):
    spec = make_spec(control)
    world = World(spec, script, actions)
    guards = Guards(spec, GuardConfig(jump=JUMP, velocity=VELOCITY, stale=0.15, heartbeat=0.3))
    config = ControllerConfig(RATE, servo, pin, fallback=FallbackConfig(hold=0.3, decay=0.5))
    record = Controller(world, world, guards, config, execute=2, history=2, clock=world).run(3.0)
    if not world.sent:
        return
    sent, arm = np.stack([action for _, action in world.sent]), np.arange(3) != GRIPPER
    assert np.isfinite(sent).all()
    assert (sent >= LOW).all()
    assert (sent <= HIGH).all()
    if control == "absolute":
        furthest = min(JUMP, VELOCITY / RATE / servo) * (HIGH - LOW) * (1 + 1e-4) + 1e-6
        assert (np.abs(np.diff(sent, axis=0)) <= furthest)[:, arm].all()
    # The gripper moves with a plan's action alone: never where the robot holds or is stopped.
    changes = (np.diff(sent[:, GRIPPER]) != 0).sum() + (sent[0, GRIPPER] != 0)
    assert changes <= record.rungs["plan"] + record.rungs["rest"]
    assert sum(record.rungs.values()) == record.ticks
    assert len(record.stops) == min(1, record.rungs["stop"])


supplies = st.lists(st.tuples(st.sampled_from(["new", "old", "none"]), st.integers(1, 3)), min_size=1, max_size=80)


@given(supplies, st.integers(1, 12))
def test_the_stop_comes_in_time_and_stays(supplied, patience):
    """Each tick comes one to three periods after the one before."""
    ladder = Ladder(make_spec("delta"), FallbackConfig(hold=patience * 0.05))
    tick, since, stopped = 0, None, False
    for plan, step in supplied:
        tick += step
        rung = ladder.step(tick * 0.05, plan)
        since = None if plan != "none" else tick if since is None else since
        stopped = stopped or (since is not None and tick - since >= patience)
        assert (rung == "stop") == stopped
        if not stopped:
            assert rung == {"new": "plan", "old": "rest", "none": "hold"}[plan]
    ladder.reset()
    assert ladder.step(tick * 0.05, "none") == "hold"


@given(hnp.arrays(np.float32, 3, elements=st.floats(0, 1, width=32)), st.sampled_from(CONTROLS), st.floats(0, 0.875))
def test_holding_comes_to_rest_with_the_gripper_kept(part, control, decay):
    last = first = LOW + part * (HIGH - LOW)
    ladder = Ladder(make_spec(control), FallbackConfig(hold=60.0, decay=decay))
    for _ in range(40):
        before, last = last, ladder.hold(last)
        assert last is not None
        assert last[GRIPPER] == first[GRIPPER]
        assert (np.abs(last) <= np.abs(before)).all()
    np.testing.assert_array_equal(last[:GRIPPER], first[:GRIPPER] if control == "absolute" else [0, 0])
