"""Traces: what a run leaves is enough to run its controller again, and what is not as it was is found."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kinoise.deploy.guards import GuardConfig
from kinoise.deploy.inference import Request
from kinoise.deploy.recording import recording
from kinoise.deploy.replay import Again
from kinoise.deploy.robot import ObservationTimeout
from kinoise.spec import KinoiseError, Plan
from loop_fakes import PERIOD, Restarting, Setup
from traces import again, events, noise, record, rewrite

GUARDS = GuardConfig(jump=None, velocity=None, heartbeat=0.2)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("trace") / "run.trace", Setup(2, answer=noise, history=2))


def failing(request: Request) -> Plan | str:
    return "no plan today" if request.tick > 21 and request.tick % 4 else noise(request)


def blink(count: int) -> None:
    if count in (7, 8, 20):
        raise ObservationTimeout("dark")


def scenes(setup: Setup) -> Callable[[int], None]:
    def before(count: int) -> None:
        setup.robot.episode = count // 15
        setup.clock.time += 2.5 * PERIOD if count == 30 else 0.0

    return before


def broken(setup: Setup) -> Callable[[int], None]:
    def before(count: int) -> None:
        setup.inference.dead = setup.inference.dead or count == 12

    return before


RUNS: dict[str, Callable[[], Setup]] = {
    "usual": lambda: Setup(2, answer=noise, history=3),
    "pinned": lambda: Setup(2, answer=noise, pin=True, budget=0.1),
    "servo": lambda: Setup(1, "absolute", answer=noise, servo=3),
    "errors": lambda: Setup(1, answer=failing),
    "blinking": lambda: Setup(1, answer=noise, before=blink, history=2),
    "late": lambda: Setup(2, answer=noise, oversleep=0.3 * PERIOD),
    "scenes": lambda: _with(Setup(2, answer=noise), scenes),
    "restarted": lambda: _with(Setup(1, answer=noise, inference=Restarting, guards=GUARDS), broken),
    "stopped": lambda: _with(Setup(1, answer=noise, hold=0.5, guards=GUARDS), broken),
}


def _with(setup: Setup, before: Callable[[Setup], Callable[[int], None]]) -> Setup:
    setup.robot.before = before(setup)
    return setup


@pytest.mark.parametrize("name", RUNS)
def test_a_recorded_run_repeats_itself(name: str, tmp_path: Path) -> None:
    setup = RUNS[name]()
    path = record(tmp_path / "run.trace", setup)
    outcome, own = again(path), setup.controller.record
    assert outcome.difference is None
    assert outcome.counts["command"] == len(setup.robot.sent) > 5
    assert outcome.counts["submit"] == len(setup.inference.requests) > 5
    assert outcome.record.to_json() == own.to_json()
    assert outcome.interventions == setup.guards.interventions
    assert bool(own.stops) == (name == "stopped")
    assert getattr(setup.inference, "restarts", 0) == (name == "restarted") == outcome.counts["restart"]


def test_what_ended_a_run_ends_it_again(tmp_path: Path) -> None:
    setup = Setup(1, answer=noise)

    def fail(count: int) -> None:
        if count == 10:
            raise OSError(errno.EIO, "the arm is gone")

    setup.robot.before = fail
    with pytest.raises(OSError, match="the arm is gone"):
        record(tmp_path / "run.trace", setup)
    outcome = again(tmp_path / "run.trace")
    assert "the arm is gone" in outcome.raised
    assert outcome.difference is None
    assert outcome.counts["stop"] == 1

    setup = Setup(1, answer=noise)
    path = record(tmp_path / "stopped.trace", setup, stopped=lambda: setup.robot.count > 9)
    assert again(path).record.ticks == setup.controller.record.ticks == 9

    with pytest.raises(KinoiseError, match="no plan today"):
        record(tmp_path / "refused.trace", Setup(1, answer=lambda request: "no plan today"))
    outcome = again(tmp_path / "refused.trace")
    assert "no plan today" in outcome.raised
    assert (outcome.record.ticks, outcome.difference) == (0, None)


@pytest.mark.parametrize("kind", ["command", "submit", "sleep", "observe", "poll", "now", "busy"])
def test_a_changed_event_is_found(kind: str, usual: Path, tmp_path: Path) -> None:
    """Of what the controller was told, only what bears on its commands has to be found: checksums do the rest."""

    def change(found: list[tuple[str, Any]]) -> None:
        matters = {"now": lambda place: found[place - 1][0] == "sleep", "busy": lambda place: found[place + 2][0] == "submit"}
        places = [
            place
            for place in range(len(found) // 2, len(found) - 2)  # the first half is about plans before the loop
            if found[place][0] == kind and (kind != "poll" or found[place][1])
            if kind not in matters or matters[kind](place)
        ]
        place = places[len(places) // 2]
        value = found[place][1]
        if kind == "command":
            value = np.nextafter(value, np.float32(np.inf), dtype=np.float32)  # one bit
        elif kind == "submit":
            value = {**value, "previous": None, "elapsed": 0}
        elif kind == "poll":
            value["plan"]["actions"] = value["plan"]["actions"] + np.float32(1)
        elif kind == "observe":
            value = {**value, "episode": 5}
        else:
            value = not value if kind == "busy" else value + 3 * PERIOD
        found[place] = (kind, value)

    outcome = again(rewrite(usual, tmp_path, change))
    assert outcome.difference is not None
    assert "wanted" in str(outcome.difference)
    if kind == "command":
        assert "wanted command [" in str(outcome.difference)
        assert "commands in" in str(outcome.difference)
    if kind == "submit":
        assert str(outcome.difference).endswith(": previous, elapsed differ")


def test_events_that_are_missing_or_left_over_are_found(usual: Path, tmp_path: Path) -> None:
    assert again(rewrite(usual, tmp_path, lambda found: found.pop(len(found) // 2))).difference is not None
    assert again(rewrite(usual, tmp_path, lambda found: found.append(("now", 1.0)))).difference is not None
    assert again(rewrite(usual, tmp_path, lambda found: found.insert(40, ("stop", None)))).difference is not None


def test_calls_from_other_threads_leave_no_trace(tmp_path: Path) -> None:
    setup = Setup()
    with recording(tmp_path / "run.trace", {}, setup.robot, setup.inference, setup.clock) as run:
        run.clock.now()
        other = threading.Thread(target=run.clock.now)
        other.start()
        other.join()
    assert [kind for kind, _ in events(tmp_path / "run.trace")] == ["now"]


def test_plans_are_made_again_from_the_questions_that_were_recorded(tmp_path: Path) -> None:
    path = record(tmp_path / "run.trace", Setup(2, answer=noise, pin=True, history=2))
    seen: list[Request] = []

    def planner(request: Request) -> Plan:
        seen.append(request)
        return noise(request)

    same = Again(planner)
    assert again(path, answered=same).difference is None
    assert (same.equal, same.different, same.largest) == (len(seen), 0, 0.0)
    assert any(request.previous is not None and request.prefix > 0 and request.elapsed > 0 for request in seen)
    assert all(len(request.readings) == 2 for request in seen)

    other = Again(lambda request: replace(noise(request), actions=noise(request).actions + 0.25))
    again(path, answered=other)
    assert (other.equal, other.different) == (0, len(seen))
    assert other.largest == pytest.approx(0.25)

    budgeted = record(tmp_path / "budget.trace", Setup(2, answer=noise, budget=0.1))
    cut = Again(lambda request: replace(noise(request), nfe=4))
    again(budgeted, answered=cut)
    assert (cut.equal, cut.different) == (0, 0)
    assert cut.cut > 5
