"""`kinoise view`: what is recorded of a trace and of an evaluation is what they hold; and rerun's file holds it, too."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kinoise import envs
from kinoise.config import UsageError
from kinoise.deploy.controller import Controller
from kinoise.deploy.inference import Request
from kinoise.deploy.recording import recording
from kinoise.deploy.robot import ObservationTimeout, Reading
from kinoise.deploy.trace import TraceReader
from kinoise.eval.evaluate import evaluate
from kinoise.eval.view.command import main, source
from kinoise.eval.view.recorder import load_rerun, write_rrd
from kinoise.eval.view.result import record_result
from kinoise.eval.view.trace import record_trace
from kinoise.files import write_json
from kinoise.spec import Feature, KinoiseError, Plan, Spec
from line_world import make
from loop_fakes import CHUNK, EXECUTE, PERIOD, FakeRobot, Setup, plan_of
from walker import WalkerPolicy

TICKS, DELAY = 36, 2
SILENT = range(24, 28)
"""Ticks whose questions fail; the warm-up asks about earlier ones."""


class Taken:
    """A recorder that keeps what it is given."""

    def __init__(self) -> None:
        self.lines: dict[str, list[tuple[tuple[str, ...], np.ndarray, np.ndarray, str]]] = defaultdict(list)
        self.images: dict[str, list[tuple[float, np.ndarray]]] = defaultdict(list)
        self.films: dict[str, Path] = {}
        self.notes: list[tuple[str, float, str, str]] = []
        self.pages: dict[str, str] = {}
        self.views: tuple[Sequence[str], ...] = ()

    def series(self, path: str, names: Any, at: np.ndarray, values: np.ndarray, timeline: str = "time") -> None:
        assert (np.diff(at) > 0).all(), path
        assert values.shape == (len(at), len(names)), path
        self.lines[path].append((tuple(names), at, values, timeline))

    def image(self, path: str, at: float, pixels: np.ndarray) -> None:
        self.images[path].append((at, pixels))

    def film(self, path: str, file: Path) -> None:
        assert file.is_file()
        self.films[path] = file

    def note(self, path: str, at: float, text: str, level: str = "INFO") -> None:
        self.notes.append((path, at, text, level))

    def page(self, path: str, markdown: str) -> None:
        self.pages[path] = markdown

    def arrange(self, *views: Sequence[str]) -> None:
        self.views = views

    def only(self, path: str) -> tuple[np.ndarray, np.ndarray]:
        [(_, at, values, _)] = self.lines[path]
        return at, values


class Seeing(FakeRobot):
    """With a camera, whose pictures count, and sensors that are dark once; the scene is restarted at the 20th look."""

    def __init__(self, robot: FakeRobot) -> None:
        super().__init__(robot.clock)
        self.spec = Spec(
            {"state": Feature((1,)), "image.front": Feature((4, 6, 3), "image")},
            Feature((3,), names=("x", "y", "grip"), low=(-1e3,) * 3, high=(1e3,) * 3),
            rate=80.0,
            gripper=(2,),
        )

    def observe(self) -> Reading:
        if self.count == 12:
            self.count += 1
            raise ObservationTimeout("dark")
        state, _, _, _ = super().observe()
        values = {**state, "image.front": np.full((4, 6, 3), self.count, np.uint8)}
        return Reading(values, "fold", self.count // 20, self.clock.now() - 0.25 * PERIOD)


def answer(request: Request) -> Plan | str:
    return "no plan today" if request.tick in SILENT else plan_of(request)


def record(path: Path, setup: Setup) -> Path:
    """A run with a tape running; unlike in a real one the robot's clock stands still but for the waiting."""
    own = setup.controller.config
    header = {"policy": {"name": "mode"}, "env": "cell", "controller": asdict(own), "guards": asdict(setup.guards.config)}
    header |= {"seconds": TICKS * PERIOD, "execute": EXECUTE, "history": 2}
    with recording(path, header, setup.robot, setup.inference, setup.clock) as run:
        controller = Controller(run.robot, run.inference, setup.guards, own, execute=EXECUTE, history=2, clock=run.clock)
        controller.prepare(run.stopped(lambda: False))
        controller.run(TICKS * PERIOD, run.stopped(lambda: False))
    return path


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Setup]:
    setup = Setup(DELAY, answer=answer, history=2)
    setup.robot = Seeing(setup.robot)
    return record(tmp_path_factory.mktemp("view") / "control.trace", setup), setup


@pytest.fixture(scope="module")
def seen(trace: tuple[Path, Setup]) -> Taken:
    taken = Taken()
    record_trace(trace[0], taken)
    return taken


def test_a_trace_shows_every_command_and_what_was_seen_from_the_first_tick_on(trace, seen: Taken) -> None:
    at, values = seen.only("command")
    sent = trace[1].robot.sent
    begin = sent[0][0]
    np.testing.assert_allclose(at, [time - begin for time, _ in sent], atol=1e-9)
    np.testing.assert_array_equal(values, [action for _, action in sent])
    assert seen.lines["command"][0][0] == ("x", "y", "grip")
    looks, counts = seen.only("observation/state")
    assert looks[0] == pytest.approx(-0.25 * PERIOD)
    assert len(looks) == TICKS - 1, "one look saw nothing, those of the warm-up are left out"
    pictures = seen.images["observation/image.front"]
    np.testing.assert_allclose([time for time, _ in pictures], looks)
    assert [int(pixels[0, 0, 0]) - 1 for _, pixels in pictures] == counts[:, 0].tolist()
    assert ("log", "WARN") in {(path, level) for path, _, text, level in seen.notes if "dark" in text}
    assert [text for _, _, text, _ in seen.notes if "begins" in text] == ["episode 0 begins: fold", "episode 1 begins: fold"]
    np.testing.assert_allclose(seen.only("latency/reading")[1], 250 * PERIOD)


def test_a_trace_shows_each_plan_over_its_time_and_how_late_it_was(trace, seen: Taken) -> None:
    asked = [item for item in trace[1].inference.requests if item.time >= trace[1].robot.sent[0][0]]
    assert len(asked) > 4
    lanes = {path: lines for path, lines in seen.lines.items() if path.startswith("plan/")}
    assert len(lanes) > 1
    for lines in lanes.values():
        for (_, before, *_), (_, after, *_) in pairwise(lines):
            assert before[-1] < after[0], "on one lane plans don't overlap"
    drawn = sorted(((at, values) for lines in lanes.values() for _, at, values, _ in lines), key=lambda item: item[0][0])
    failed = [item for item in asked if item.tick in SILENT]
    answered = [item for item in asked if item.tick not in SILENT][: len(drawn)]
    assert len(drawn) in (len(asked) - len(failed), len(asked) - len(failed) - 1)  # the last may never have been answered
    begin = trace[1].robot.sent[0][0]
    for (at, values), request in zip(drawn, answered, strict=True):
        np.testing.assert_allclose(at, request.time - begin + PERIOD * np.arange(CHUNK), atol=1e-6)
        np.testing.assert_array_equal(values, plan_of(request).actions[0])
    np.testing.assert_array_equal(seen.only("latency/delay")[1], DELAY)
    np.testing.assert_allclose(seen.only("latency/plan")[1], 1e3 * DELAY * PERIOD)
    np.testing.assert_array_equal(seen.only("latency/nfe")[1], 3)
    assert len(failed) == len([text for _, _, text, level in seen.notes if (text, level) == ("no plan today", "ERROR")]) > 0
    assert f"| plans | {len(drawn)}, {len(failed)} failed |" in seen.pages["summary"]
    assert "| policy | mode |" in seen.pages["summary"]
    pages, pictures, plots, logs = seen.views
    assert pictures == ["observation/image.front"]
    assert {"command", "plan", "observation/state", "latency"} <= {*plots}
    assert (pages, logs) == (["summary"], ["log"])


def test_the_success_of_a_run_is_taken_from_what_lies_beside_its_trace(trace, tmp_path: Path) -> None:
    path = tmp_path / "control.trace"
    path.write_bytes(trace[0].read_bytes())
    about = {
        "episodes": [{"success": True, "finished": True}, {"success": False, "finished": False}],
        "interventions": {"nan": 0},
        "rungs": {"plan": 9},
        "trace": {"file": path.name, "bytes": path.stat().st_size},
    }
    for size, said in ((0, True), (1, False)):  # of another run
        about["trace"]["bytes"] += size
        write_json(tmp_path / "control.json", about)
        taken = Taken()
        record_trace(path, taken)
        assert ("| success | 1 of 1 finished episodes |" in taken.pages["summary"]) == said


def test_a_trace_that_was_cut_short_shows_what_it_has(trace, tmp_path: Path) -> None:
    path, data = tmp_path / "cut.trace", trace[0].read_bytes()
    with TraceReader(trace[0]) as whole:
        assert sum(1 for _ in whole.events()) > 100
    path.write_bytes(data[:-10])  # within the last frame, which says how the writing ended
    taken = Taken()
    record_trace(path, taken)
    assert "| trace | cut short" in taken.pages["summary"]
    assert len(taken.only("command")[0]) > 0
    path.write_bytes(data[: len(data) // 9])
    with pytest.raises(KinoiseError, match="ended before its first tick"):
        record_trace(path, Taken())


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, before = tmp_path_factory.mktemp("eval") / "line", envs.tasks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(envs, "tasks", lambda env: ["line/go", "line/raise"] if env == "line/all" else before(env))
        evaluate(WalkerPolicy().eval(), "line/all", episodes=4, seed=3, make=make, workers=1, out=out, video=1, progress=False)
    return out


def test_an_evaluation_shows_success_over_the_episodes_and_what_was_carried_out(evaluation: Path) -> None:
    taken, result = Taken(), json.loads((evaluation / "result.json").read_text())
    record_result(evaluation, taken, most=3)
    for task in ("line/go", "line/raise"):
        episodes = sorted((item for item in result["episodes"] if item["task"] == task), key=lambda item: item["index"])
        [(_, at, values, timeline)] = taken.lines[f"success/{task.replace('/', '-')}"]
        assert timeline == "episode"
        np.testing.assert_array_equal(at, range(4))
        np.testing.assert_array_equal(values[:, 0], [item["success"] for item in episodes])
        shown = [item for item in episodes if f"episodes/{task.replace('/', '-')}/{item['index']}/action" in taken.lines]
        assert len(shown) == 3
        for item in shown:
            place = f"episodes/{task.replace('/', '-')}/{item['index']}"
            at, actions = taken.only(f"{place}/action")
            assert actions.shape == (item["steps"], 1)
            np.testing.assert_allclose(at, np.arange(item["steps"]) / 40.0)
            assert (f"{place}/film" in taken.films) == ("video" in item)
            if item["steps"] <= 4:  # one plan was enough
                continue
            joins, jumps = taken.only(f"{place}/join")
            steps = np.round(joins * 40).astype(int)
            assert (steps % 4 == 0).all()
            np.testing.assert_allclose(jumps[:, 0], np.abs(actions[steps] - actions[steps - 1])[:, 0])
            assert taken.only(f"{place}/nfe")[1].tolist() == [[3.0]] * (len(joins) + 1)
    assert taken.films
    levels = {level for _, _, _, level in taken.notes}
    assert {"INFO", "ERROR"} <= levels
    assert any("broke" in text for _, _, text, level in taken.notes if level == "ERROR")
    assert f"of {result['success']['n']}" in taken.pages["summary"]


def test_what_is_not_there_is_said(evaluation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "eval").mkdir()
    with pytest.raises(KinoiseError, match=r"expected a trace .*It holds eval: take one, as in .*/eval"):
        source(tmp_path, 8)
    (tmp_path / "notes.txt").write_text("kinoise")
    with pytest.raises(KinoiseError, match="expected a trace"):
        source(tmp_path / "notes.txt", 8)
    (tmp_path / "result.json").write_bytes((evaluation / "result.json").read_bytes())
    with pytest.raises(KinoiseError, match=r"no episodes.jsonl that belongs to its result.json"):
        record_result(tmp_path, Taken(), 1)
    (tmp_path / "episodes.jsonl").write_bytes((evaluation / "episodes.jsonl").read_bytes())
    with pytest.raises(KinoiseError, match=r"\.mp4 does not exist"):
        record_result(tmp_path, Taken(), 1)
    with pytest.raises(UsageError, match=r"ends with \.rrd"):
        main([str(evaluation), "out=view.txt"])
    with pytest.raises(UsageError, match="episodes=-1"):
        main([str(evaluation), "episodes=-1"])
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(KinoiseError, match=r"rerun can't be imported .*\[rerun\]"):
        main([str(evaluation)])
    assert not (evaluation / "view.rrd").exists()


def chunks(path: Path) -> dict[str, list[Any]]:
    """By entity what rerun reads of a recording: its chunks as record batches."""
    from rerun.chunk import RrdReader

    found: dict[str, list[Any]] = defaultdict(list)
    for chunk in RrdReader(path).stream():
        found[chunk.entity_path].append(chunk.to_record_batch())
    return found


def column(batches: list[Any], name: str) -> list[Any]:
    """A component's or a timeline's values, by row."""
    return [row for batch in batches if name in batch.schema.names for row in batch.column(name).to_pylist()]


def seconds(batches: list[Any]) -> list[float]:
    """When each row was. rerun counts nanoseconds, which Python's own durations can't hold."""
    timed = [batch.column("time").cast("int64") for batch in batches if "time" in batch.schema.names]
    return [row / 1e9 for times in timed for row in times.to_pylist()]


@pytest.mark.skipif(find_spec("rerun") is None or not hasattr(load_rerun(), "chunk"), reason="rerun-sdk isn't installed")
def test_reruns_file_holds_what_was_recorded(trace, seen: Taken, evaluation: Path, tmp_path: Path) -> None:
    assert main([str(trace[0]), f"out={tmp_path / 'run.rrd'}"]) is None
    found = chunks(tmp_path / "run.rrd")
    at, values = seen.only("command")
    assert column(found["/command"], "Scalars:scalars") == values.tolist()
    np.testing.assert_allclose(seconds(found["/command"]), at, atol=1e-6)
    assert column(found["/command"], "SeriesLines:names") == [["x", "y", "grip"]]
    pictures = column(found["/observation/image.front"], "EncodedImage:media_type")
    assert pictures == [["image/jpeg"]] * len(seen.images["observation/image.front"])
    texts = [text for [text] in column(found["/log"], "TextLog:text")]
    assert sorted(texts) == sorted(text for _, _, text, _ in seen.notes)
    breaks = sum(len(lines) - 1 for path, lines in seen.lines.items() if path.startswith("plan/"))
    lanes = [batch for path, batches in found.items() if path.startswith("/plan/") for batch in batches]
    assert len(column(lanes, "Clear:is_recursive")) >= breaks > 0
    assert [text for [text] in column(found["/summary"], "TextDocument:text")] == [seen.pages["summary"]]
    main([str(evaluation), "episodes=1"])
    film = next(batches for path, batches in chunks(evaluation / "view.rrd").items() if path.endswith("/film"))
    [[blob]] = column(film, "AssetVideo:blob")
    assert bytes(blob) in {path.read_bytes() for path in (evaluation / "videos").iterdir()}
    assert len(column(film, "VideoFrameReference:timestamp")) > 3


@pytest.mark.skipif(find_spec("rerun") is None, reason="rerun-sdk isn't installed")
def test_a_recording_that_fails_leaves_no_file(tmp_path: Path) -> None:
    def fail(recorder: Any) -> None:
        recorder.note("log", 0.0, "begun")
        raise KinoiseError("the trace is damaged")

    with pytest.raises(KinoiseError, match="damaged"):
        write_rrd(tmp_path / "view.rrd", "view", fail)
    assert not list(tmp_path.iterdir())
