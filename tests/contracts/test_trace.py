"""Traces: what a run leaves is enough to run its controller again, and what is not as it was is found."""

from __future__ import annotations

import errno
import struct
import threading
import zlib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kinoise.deploy.controller import Controller
from kinoise.deploy.guards import GuardConfig
from kinoise.deploy.inference import Request
from kinoise.deploy.recording import recording, require_whole
from kinoise.deploy.replay import Again, Outcome, replay
from kinoise.deploy.robot import ObservationTimeout
from kinoise.deploy.trace import FRAME, MAGIC, TraceError, TraceReader, TraceWriter, _chunks
from kinoise.spec import KinoiseError, Plan
from kinoise.wire import pack
from loop_fakes import CHUNK, EXECUTE, PERIOD, Restarting, Setup

GUARDS = GuardConfig(jump=None, velocity=None, heartbeat=0.2)


def record(path: Path, setup: Setup, ticks: int = 40, stopped: Callable[[], bool] = lambda: False, **more: Any) -> Path:
    """Runs the controller of `setup` with a tape running."""
    own, history = setup.controller.config, setup.controller._history.length
    header = {"seconds": ticks * PERIOD, "execute": EXECUTE, "history": history, "controller": asdict(own), **more}
    header["guards"] = asdict(setup.guards.config)
    with recording(path, header, setup.robot, setup.inference, setup.clock) as run:
        setup.controller = Controller(
            run.robot, run.inference, setup.guards, own, execute=EXECUTE, history=history, clock=run.clock
        )
        setup.inference.delay, delay = 0, setup.inference.delay  # thousands of looks for an answer add nothing
        setup.controller.prepare(run.stopped(stopped))
        setup.inference.delay = delay
        setup.controller.run(ticks * PERIOD, run.stopped(stopped))
    assert run.outcome is not None
    require_whole(run.outcome)
    return path


def again(path: Path, **more: Any) -> Outcome:
    with TraceReader(path) as trace:
        return replay(trace, **more)


def events(path: Path) -> list[tuple[str, Any]]:
    with TraceReader(path) as trace:
        return list(trace.events())


def rewrite(
    path: Path, place: Path, change: Callable[[list[tuple[str, Any]]], None] = lambda found: None, **header: Any
) -> Path:
    """The trace with other events, in the directory `place`."""
    with TraceReader(path) as trace:
        found, head = list(trace.events()), {**trace.header, **header}
    change(found)
    writer = TraceWriter(place / "changed.trace", head)
    for kind, value in found:
        writer.add(kind, value)
    assert not writer.close()["trouble"]
    return writer.path


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("trace") / "run.trace", Setup(2, answer=noise, history=2))


def noise(request: Request) -> Plan:
    gen = torch.Generator().manual_seed(request.tick)
    return Plan(torch.randn(1, CHUNK, 3, generator=gen), 1 / 80, 3, confidence=torch.rand(1, CHUNK, 3, generator=gen))


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


def test_a_trace_that_was_cut_anywhere_holds_what_came_before(usual: Path, tmp_path: Path) -> None:
    whole, found, cut = usual.read_bytes(), events(usual), tmp_path / "cut.trace"
    with TraceReader(usual) as trace:
        header = len(MAGIC) + FRAME.size + len(pack(trace.header))
    for size in [*range(0, header, 97), *range(header, len(whole), len(whole) // 30), len(whole) - 1]:
        cut.write_bytes(whole[:size])
        if size < header:
            with pytest.raises(TraceError, match=r"no trace|cut short"):
                TraceReader(cut)
            continue
        with TraceReader(cut) as trace:
            part = list(trace.events())
            assert trace.end is None
        assert pack({"": part}) == pack({"": found[: len(part)]})
    outcome = again(cut)
    assert outcome.difference is None
    assert outcome.counts["command"] > 0


def test_a_flipped_bit_is_damage_not_a_run(usual: Path, tmp_path: Path) -> None:
    whole, count, bad = usual.read_bytes(), len(events(usual)), tmp_path / "bad.trace"
    for place in range(0, len(whole), len(whole) // 50):
        bad.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            with TraceReader(bad) as trace:
                found = list(trace.events())
        except TraceError:
            continue
        assert len(found) < count or trace.end is None, place  # a length that is too long looks like a file that was cut short


def frame(data: bytes) -> bytes:
    return struct.pack("<II", len(data), zlib.crc32(data)) + data


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        b"\x81\xa6events\xdd\xff\xff\xff\xff",
        b"\x81\xa6events\xc9\x00\x00\x00\x01\x00\x00",
        b"\x91" * 100_000,
        pack({"events": 3}),
        pack({"events": [["now"]]}),
        pack({"events": [[3, 4]]}),
        pack({"end": 3}),
        pack({"other": 3}),
    ],
)
def test_a_hostile_trace_is_refused(data: bytes, usual: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.trace"
    with TraceReader(usual) as trace:
        head = MAGIC + frame(pack(trace.header))
    path.write_bytes(head + frame(data))
    with pytest.raises(TraceError):
        again(path)
    path.write_bytes(head + struct.pack("<II", 2**32 - 1, 0))
    with pytest.raises(TraceError, match="damaged"):
        again(path)


@pytest.mark.parametrize(
    ("kind", "value"), [("now", "noon"), ("observe", {"values": {}}), ("poll", {"plan": {}}), ("busy", 3.5), ("stopped", None)]
)
def test_events_of_the_wrong_kind_are_refused(kind: str, value: Any, usual: Path, tmp_path: Path) -> None:
    def change(found: list[tuple[str, Any]]) -> None:
        place = [place for place, item in enumerate(found) if item[0] == kind and (kind != "poll" or item[1])][-2]
        found[place] = (kind, value)

    with pytest.raises(TraceError, match="damaged"):
        again(rewrite(usual, tmp_path, change))


@pytest.mark.parametrize("header", [{"guards": {"nonsense": 1}}, {"controller": {"rate": "fast"}}, {"spec": 3}])
def test_a_header_that_is_not_understood_is_refused(header: dict[str, Any], usual: Path, tmp_path: Path) -> None:
    with pytest.raises(KinoiseError):
        again(rewrite(usual, tmp_path, **header))


def test_a_disk_that_can_not_keep_up_ends_the_trace_and_is_counted(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "slow.trace", {}, backlog=1000)
    for number in range(50):
        writer.add("now", float(number), size=100)
    outcome = writer.close()
    assert 1 <= outcome["events"] < 50
    assert outcome["events"] + outcome["lost"] == 50
    assert "keep up" in outcome["trouble"]
    assert [value for _, value in events(writer.path)] == list(range(outcome["events"]))
    with pytest.raises(KinoiseError, match=f"lacks its last {outcome['lost']} events"):
        require_whole({"file": "slow.trace", **outcome})


def test_what_can_not_be_written_ends_the_trace_and_not_the_run(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "odd.trace", {})
    writer.add("now", 1.0)
    writer.add("now", object())
    outcome = writer.close()
    assert "can't be sent" in outcome["trouble"]
    assert outcome["lost"] >= 1
    with pytest.raises(KinoiseError, match="Choose another out="):
        TraceWriter(tmp_path / "odd.trace" / "run.trace", {})


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


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_values_written_in_pieces_are_the_values_written_whole(value: Any) -> None:
    assert b"".join(_chunks({"": value})) == pack({"": value})


@pytest.mark.parametrize("shape", [(), (3,), (64, 64, 3), (1000, 0), (2, 40000)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.bool_])
def test_arrays_written_in_pieces_are_those_written_whole(shape: tuple[int, ...], dtype: type, tmp_path: Path) -> None:
    array = np.ones(shape, dtype)
    strided = np.stack([array, array], -1)[..., 0]
    for value in (array, strided):
        joined = b"".join(_chunks({"a": [value, 1]}))
        writer = TraceWriter(tmp_path / "one.trace", {})
        writer.add("a", value)
        writer.close()
        ((_, found),) = events(writer.path)
        np.testing.assert_array_equal(found, value)
        assert found.dtype == value.dtype
        assert len(joined) == len(pack({"a": [value, 1]})) or value.nbytes < 1 << 16
