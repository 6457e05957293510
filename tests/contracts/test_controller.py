"""The loop against a robot, an inference and a clock that do exactly what each test says."""

from __future__ import annotations

import itertools
import json
import math
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from kinoise.deploy.controller import Controller
from kinoise.deploy.guards import GuardConfig, Guards
from kinoise.deploy.inference import PolicyPlanner, Reply, Request, ThreadInference
from kinoise.deploy.latency import Record, percentiles
from kinoise.deploy.robot import Reading
from kinoise.policies import Policy, PolicyConfig
from kinoise.spec import Feature, KinoiseError, Observation, Plan, Spec, Stats

RATE, CHUNK, EXECUTE = 20.0, 8, 4
PERIOD = 1 / RATE


def make_spec(control: str = "delta") -> Spec:
    action = Feature((3,), low=(-1e3,) * 3, high=(1e3,) * 3)
    return Spec({"state": Feature((1,))}, action, rate=80.0, control=control, gripper=(2,), language=False)


class FakeClock:
    """Time passes by sleeping, `oversleep` seconds too long each time, and when a test adds to `time`."""

    def __init__(self, oversleep: float = 0.0) -> None:
        self.time, self.oversleep = 100.0, oversleep

    def now(self) -> float:
        return self.time

    def sleep_until(self, deadline: float) -> None:
        if deadline > self.time:
            self.time = deadline + self.oversleep


class FakeRobot:
    """Observes a count of its observations; `before` runs at each, with that count."""

    def __init__(self, clock: FakeClock, control: str = "delta", before: Callable[[int], None] = lambda count: None) -> None:
        self.spec = make_spec(control)
        self.clock, self.before = clock, before
        self.count, self.episode, self.stops = 0, 0, 0
        self.commands: dict[int, np.ndarray] = {}

    def observe(self) -> Reading:
        self.before(self.count)
        reading = Reading({"state": np.float32([self.count])}, "", self.episode)
        self.count += 1
        return reading

    def command(self, action: np.ndarray) -> None:
        assert not self.stops
        tick = round((self.clock.now() - 100.0) / PERIOD)
        self.commands[tick] = action.copy()

    def stop(self) -> None:
        self.stops += 1


def plan_of(request: Request) -> Plan:
    """Each action names the tick that it is for, and the tick that its plan was asked at; the gripper is 5."""
    steps = torch.arange(request.tick, request.tick + CHUNK, dtype=torch.float32)
    actions = torch.stack([steps, torch.full_like(steps, request.tick), torch.full_like(steps, 5.0)], -1)
    return Plan(actions[None], dt=1 / 80, nfe=3)


class FakeInference:
    """Answers `delay` ticks after the question."""

    def __init__(self, clock: FakeClock, delay: int, answer: Callable[[Request], Plan] = plan_of) -> None:
        self.clock, self.delay, self.answer = clock, delay, answer
        self.requests: list[Request] = []
        self.busy = False
        self.closed = 0

    def submit(self, request: Request) -> None:
        assert not self.busy
        self.requests.append(request)
        self.busy = True

    def poll(self) -> Reply | None:
        if not self.busy or self.clock.now() < self.requests[-1].time + (self.delay - 0.5) * PERIOD:
            return None
        self.busy = False
        return Reply(self.requests[-1], self.answer(self.requests[-1]), "", self.delay * PERIOD)

    def close(self) -> str:
        self.closed += 1
        return ""


class Setup:
    """A controller with its fakes."""

    def __init__(self, delay=1, control="delta", history=1, oversleep=0.0, before=lambda count: None, answer=plan_of):
        self.clock = FakeClock(oversleep)
        self.robot = FakeRobot(self.clock, control, before)
        self.inference = FakeInference(self.clock, delay, answer)
        self.guards = Guards(self.robot.spec, GuardConfig(jump=None))
        self.controller = Controller(
            self.robot, self.inference, self.guards, rate=RATE, execute=EXECUTE, history=history, clock=self.clock
        )

    def run(self, ticks: int) -> Record:
        return self.controller.run(ticks * PERIOD)


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
    assert record.holds == delay
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


def test_when_the_plan_has_run_out_the_robot_holds_with_its_gripper_kept():
    setup = Setup(delay=6)
    record = setup.run(42)
    assert [request.tick for request in setup.inference.requests] == list(range(0, 42, 6))
    # Of a plan's eight actions six come too late, two are carried out, then four ticks pass until the next plan.
    for tick, command in setup.robot.commands.items():
        followed = tick >= 6 and tick % 6 < 2
        np.testing.assert_array_equal(command, [tick, tick - 6 - tick % 6, 5] if followed else [0, 0, 5 * (tick > 6)])
    assert record.holds == 6 + 6 * 4


def test_absolute_control_holds_by_its_last_command_and_sends_nothing_before_the_first():
    setup = Setup(delay=6, control="absolute")
    setup.run(12)
    assert min(setup.robot.commands) == 6
    np.testing.assert_array_equal(setup.robot.commands[11], [7, 0, 5])


def test_a_plan_whose_time_has_passed_is_never_executed():
    setup = Setup(delay=CHUNK)
    record = setup.run(30)
    assert {item.outcome for item in record.arrivals} == {"expired"}
    assert record.holds == 30
    assert not any(command.any() for command in setup.robot.commands.values())


def test_deadlines_are_absolute():
    setup = Setup(oversleep=0.4 * PERIOD)
    record = setup.run(100)
    np.testing.assert_allclose(np.diff(record.begins)[1:], PERIOD)
    np.testing.assert_allclose(record.late[1:], 0.4 * PERIOD)
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


def test_plans_with_nan_are_held_and_counted():
    def answer(request: Request) -> Plan:
        plan = plan_of(request)
        plan.actions[0, 3, 0] = torch.nan
        return plan

    setup = Setup(answer=answer)
    record = setup.run(20)
    assert setup.guards.interventions["nan"] == 5
    assert all(np.isfinite(command).all() for command in setup.robot.commands.values())
    np.testing.assert_array_equal(setup.robot.commands[7], [0, 0, 5])
    assert record.holds == 1


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
    assert record.holds == 10
    (message,) = record.errors
    assert "[1, chunk, 3]" in message
    assert str(list(actions.shape)) in message


def test_the_robot_is_stopped_however_the_run_ends():
    setup = Setup()
    setup.run(5)
    assert (setup.robot.stops, setup.inference.closed) == (1, 1)

    setup = Setup()
    record = setup.controller.run(1e6, lambda: len(setup.robot.commands) == 7)
    assert record.ticks == 7
    assert (setup.robot.stops, setup.inference.closed) == (1, 1)

    def fail(count: int) -> None:
        if count == 3:
            raise KinoiseError("the arm is gone")

    setup = Setup(before=fail)
    with pytest.raises(KinoiseError, match="the arm is gone"):
        setup.run(10)
    assert (setup.robot.stops, setup.inference.closed) == (1, 1)


@pytest.mark.parametrize(("name", "value"), [("rate", 0.0), ("execute", 0), ("history", 0)])
def test_settings_that_make_no_sense_are_refused(name, value):
    setup = Setup()
    settings = {"rate": RATE, "execute": EXECUTE, "history": 1, name: value}
    with pytest.raises(KinoiseError, match=name):
        Controller(setup.robot, setup.inference, setup.guards, **settings)


class Threaded:
    """A controller whose planner runs in its thread; `pace` can make a tick wait for it, since the clock doesn't."""

    def __init__(
        self, planner: Callable[[Request], Plan], patience: float, pace: Callable[[int], None] = lambda count: None
    ) -> None:
        self.clock = FakeClock()
        self.robot = FakeRobot(self.clock, before=pace)
        self.inference = ThreadInference(planner, patience=patience)
        guards = Guards(self.robot.spec, GuardConfig(jump=None))
        self.controller = Controller(self.robot, self.inference, guards, rate=RATE, execute=1, clock=self.clock)

    def run(self, ticks: int) -> Record:
        return self.controller.run(ticks * PERIOD)


def test_the_planner_runs_in_a_thread_of_its_own():
    planned, threads = threading.Event(), set()

    def planner(request: Request) -> Plan:
        threads.add(threading.get_ident())
        planned.set()
        return plan_of(request)

    record = Threaded(planner, 10.0, pace=lambda count: count == 0 or planned.wait(10)).run(5)
    assert not record.errors
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_a_planner_that_raises_does_not_stop_the_loop():
    def planner(request: Request) -> Plan:
        raise RuntimeError("no plan today")

    setup = Threaded(planner, 10.0)
    record = setup.run(20)
    assert record.ticks == record.holds == len(setup.robot.commands) == 20
    assert list(record.errors) == ["planning failed: RuntimeError: no plan today"]


def test_after_a_failure_the_next_tick_asks_again():
    setup = Setup()
    setup.inference.poll = lambda: failed(setup.inference)
    record = setup.run(6)
    assert [request.tick for request in setup.inference.requests] == list(range(6))
    assert record.errors == {"no plan today": 6}


def failed(inference: FakeInference) -> Reply | None:
    if not inference.busy:
        return None
    inference.busy = False
    return Reply(inference.requests[-1], None, "no plan today", 0.0)


def test_a_planner_that_never_returns_does_not_stop_the_loop():
    never = threading.Event()

    def planner(request: Request) -> Plan:
        never.wait()
        return plan_of(request)

    setup = Threaded(planner, 0.05)
    record = setup.run(20)
    assert record.ticks == record.holds == len(setup.robot.commands) == 20
    assert setup.robot.stops == 1
    (message,) = record.errors
    assert "did not return" in message
    never.set()


class StubPolicy(Policy):
    """Remembers what it was asked; its plan is noise."""

    def __init__(self, language: bool) -> None:
        observations = {"state": Feature((2,)), "image.front": Feature((4, 4, 3), "image"), "unused": Feature((1,))}
        spec = Spec(observations, Feature((3,)), rate=80.0, language=language)
        stats = {key: Stats((0.0,), (1.0,), (0.0,), (1.0,), (0.0,), (1.0,), 1) for key in [*observations, "action"]}
        super().__init__(PolicyConfig("stub", ["state", "image.front"], history=2), spec, stats, ("push",))

    def loss(self, batch, gen):
        raise NotImplementedError

    def decode(self, obs: Observation, gen: torch.Generator, pinned: None, guess: None) -> Plan:
        self.seen = obs
        return Plan(torch.randn(1, CHUNK, 3, generator=gen), dt=1 / 80, nfe=1)


@pytest.mark.parametrize("language", [True, False])
def test_a_policy_is_asked_in_its_own_terms(language):
    readings = tuple(
        Reading(
            {
                "unused": np.zeros(1, np.float32),
                "image.front": np.full((4, 4, 3), step, np.uint8),
                "state": np.float32([step, -step]),
            },
            "push",
        )
        for step in (1, 2)
    )
    policy = StubPolicy(language).eval()
    plan = PolicyPlanner(policy, seed=3)(Request(0, 0.0, readings))
    assert list(policy.seen.values) == ["state", "image.front"]
    assert policy.seen.values["state"].tolist() == [[[1, -1], [2, -2]]]
    assert policy.seen.values["image.front"].shape == (1, 2, 4, 4, 3)
    assert policy.seen.values["image.front"].dtype == torch.uint8
    assert policy.seen.texts == (("push",) if language else ())
    assert (policy.seen.text is not None) == language
    again = PolicyPlanner(policy, seed=3)(Request(0, 0.0, readings))
    assert torch.equal(plan.actions, again.actions)


def test_the_record_is_json():
    for record in (Record(PERIOD), Setup(delay=2).run(30)):
        value = json.loads(json.dumps(record.to_json(), allow_nan=False))
        assert value["ticks"] == record.ticks
        assert value["plans"] == len(value["plans_timeline"])
    assert value["delay_steps"] == {"p50": 2, "p95": 2, "p99": 2, "max": 2}
    assert value["period_ms"]["p50"] == pytest.approx(50)


def test_percentiles():
    assert percentiles(range(101), 10.0) == {"p50": 500, "p95": 950, "p99": 990, "max": 1000}
    assert percentiles([]) == {"p50": None, "p95": None, "p99": None, "max": None}


@pytest.mark.parametrize("delay", [1, 3])
@pytest.mark.parametrize("pin", [False, True])
def test_a_question_tells_what_is_being_carried_out(delay: int, pin: bool):
    setup = Setup(delay)
    setup.controller.pin = pin
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

    setup = Setup(delay=2, answer=answer)
    setup.controller.pin = True
    setup.run(30)
    for tick, command in setup.robot.commands.items():
        if tick >= 2:
            assert command[0] == tick
    # From the second answer on, the two ticks that it came late were commanded by its own first two actions.
    for before, request in itertools.pairwise(setup.inference.requests):
        kept = setup.inference.answer(request).actions[0, : request.prefix, 1]
        assert (kept == before.tick).all()


def test_a_new_episode_forgets_the_plan():
    def begin(count: int) -> None:
        setup.robot.episode = count // 10

    setup = Setup(before=begin)
    setup.run(30)
    for request in setup.inference.requests:
        if request.previous is not None:
            assert round((request.previous.t0 - 100.0) / PERIOD) // 10 == request.tick // 10


def test_a_plan_of_nan_is_no_plan_to_go_on_from():
    def answer(request: Request) -> Plan:
        plan = plan_of(request)
        return replace(plan, actions=plan.actions * (math.nan if request.tick < 8 else 1))

    setup = Setup(answer=answer)
    setup.controller.pin = True
    setup.run(24)
    for request in setup.inference.requests:
        assert (request.previous is not None) == (request.tick >= 12)
        assert request.previous is None or request.previous.actions.isfinite().all()
