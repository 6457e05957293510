"""Evaluations that are killed or end, and go on: the episodes are those of an unbroken run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from socket import gethostname
from typing import Any

import pytest
from kinoise.config import UsageError
from kinoise.eval.ledger import LEDGER, read_ledger
from kinoise.eval.progress import EpisodeProgress
from kinoise.eval.shown import show
from kinoise.eval.slot import Job, Outcome, Terms
from kinoise.files import claimed
from kinoise.spec import KinoiseError
from line_world import make_slow
from rich.console import Console
from short_evaluations import EPISODES, cut, decided, lines, on_the_line, play, unbroken, weights


@pytest.fixture(autouse=True)
def _line_world(monkeypatch: pytest.MonkeyPatch) -> None:
    on_the_line(monkeypatch)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    return unbroken(tmp_path_factory.mktemp("whole"), checkpoint)


@pytest.fixture
def broken(tmp_path: Path, whole: Path) -> Path:
    """The same, ended after six episodes in the middle of the seventh line."""
    out = tmp_path / "broken"
    out.mkdir()
    for name in (LEDGER, "result.json"):
        (out / name).write_bytes((whole / name).read_bytes())
    cut(out, 6, lines(whole)[7][:-9])
    return out


def test_each_finished_episode_is_a_line(whole: Path):
    result, found = json.loads((whole / "result.json").read_text()), read_ledger(whole / LEDGER)
    assert found is not None
    conditions, entries = found
    assert conditions.protocol.hash == result["protocol"]["hash"]
    assert (conditions.policy, conditions.decode) == (result["policy"], result["decode"])
    assert len(lines(whole)) == 1 + len(entries) == 1 + 3 * EPISODES
    for item in result["episodes"]:
        outcome, carried = entries[item["task"], item["index"]]
        assert (outcome.success, outcome.steps, outcome.total, outcome.error, outcome.initial, outcome.job.seed) == tuple(
            item[key] for key in ("success", "steps", "return", "error", "initial", "seed")
        )
        assert len(carried.actions) == outcome.steps
    assert any(item["error"] for item in result["episodes"])
    assert result["latency"]["delays"]["max"] > 1
    assert result["motion"]["joins"]["p99"] > 0


def test_what_is_missing_is_played_and_nothing_else(broken: Path, whole: Path, checkpoint: Path):
    before = [line for line in lines(broken)[:7] if b"the line broke" not in line]
    result = play(broken, checkpoint, resume=True, workers=2, slots=2)
    assert result["rollout"]["resumed"] == len(before) - 1
    assert result["decode_cost"]["plan_batch"]["max"] == 1, "with two slots no plan shares a batch"
    assert lines(broken)[: len(before)] == before, "the torn line is gone, the others are as they were"
    assert len(lines(broken)) == 1 + 3 * EPISODES
    assert decided(broken) == decided(whole)
    errors = json.loads((whole / "result.json").read_text())["success"]["errors"]
    again = play(broken, checkpoint, resume=True)
    assert again["rollout"]["resumed"] == 3 * EPISODES - errors < 3 * EPISODES
    assert decided(broken) == decided(whole)


def test_errors_are_played_again(tmp_path: Path, whole: Path, checkpoint: Path):
    """They may have been an accident: here a network's, in an episode that goes well."""
    content = lines(whole)
    place = next(place for place, line in enumerate(content) if b'"success": true' in line)
    value = json.loads(content[place]) | {"success": False, "error": "the network broke"}
    content[place] = json.dumps(value).encode() + b"\n"
    (tmp_path / LEDGER).write_bytes(b"".join(content))
    play(tmp_path, checkpoint, resume=True)
    assert decided(tmp_path) == decided(whole)


def test_a_simulator_that_is_gone_for_good_ends_the_evaluation(tmp_path: Path, checkpoint: Path):
    with pytest.raises(KinoiseError, match=r"line/gone was there, and can't be had again: the line was taken away"):
        play(tmp_path, checkpoint, env="line/gone", slots=1)
    assert not (tmp_path / "result.json").exists()
    found = read_ledger(tmp_path / LEDGER)
    assert found is not None
    errors = [item.outcome.error for item in found[1].values()]
    assert sum(error is not None for error in errors) == 1, "only the episode that it happened in has failed by it"


def test_two_evaluations_into_one_folder_are_refused(tmp_path: Path, checkpoint: Path):
    halves = [".episodes.jsonl.a1b2c3d4.jsonl", ".result.json.a1b2c3d4.json", f".videos.unfinished-{gethostname()}-a1b2c3d4"]
    somebodys = [".notes.json", ".result.json.bak.json", ".videos.mine"]
    for name in (*halves[:2], *somebodys):
        (tmp_path / name).touch()
    (tmp_path / halves[2]).mkdir()
    (tmp_path / ".videos.linked").symlink_to(".")
    with claimed(tmp_path, "evaluates"), pytest.raises(KinoiseError, match="another process evaluates there"):
        play(tmp_path, checkpoint, env="line/go")
    assert all((tmp_path / name).exists() for name in halves), "the other process may be writing them"
    play(tmp_path, checkpoint, env="line/go")
    assert sorted(item.name for item in tmp_path.iterdir()) == [
        *somebodys[:2],
        ".videos.linked",
        ".videos.mine",
        LEDGER,
        "result.json",
    ]


def test_where_no_episode_came_to_a_plan_the_result_is_shown(whole: Path):
    result = json.loads((whole / "result.json").read_text())
    result["decode_cost"]["nfe_per_plan"] = None
    console = Console(record=True, width=200)
    show(result, console)
    said = console.export_text()
    assert "line/go" in said
    assert "network evaluations" not in said


def test_a_killed_evaluation_goes_on(tmp_path: Path, whole: Path, checkpoint: Path):
    out = tmp_path / "out"
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import line_world, short_evaluations as t; "
        "t.envs.tasks = t.TASKS.__getitem__; t.play(Path(sys.argv[2]), Path(sys.argv[3]), make=line_world.make_slow)"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(out), str(checkpoint)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (out / LEDGER).exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == -signal.SIGKILL, said
    assert not (out / "result.json").exists()
    assert 1 < len(lines(out)) <= 3 * EPISODES, "the evaluation was over before it was killed"
    play(out, checkpoint, resume=True, make=make_slow)
    assert decided(out) == decided(whole)


def test_without_resume_it_begins_anew(broken: Path, whole: Path, checkpoint: Path):
    result = play(broken, checkpoint)
    assert result["rollout"]["resumed"] == 0
    assert len(lines(broken)) == 1 + 3 * EPISODES
    assert decided(broken) == decided(whole)


def test_where_nothing_was_begun_resume_plays_all(tmp_path: Path, whole: Path, checkpoint: Path):
    play(tmp_path / "new", checkpoint, resume=True)
    assert decided(tmp_path / "new") == decided(whole)


def test_other_settings_are_refused_with_all_that_differs(broken: Path, checkpoint: Path, tmp_path: Path):
    with pytest.raises(KinoiseError) as error:
        play(broken, checkpoint, resume=True, seed=8, horizon=29, execute=3, latency=0.05, pin=True)
    for text in ("protocol.seed: 7 against 8", "protocol.horizon: 30 against 29", "decode.execute: 2 against 3", "decode.pin"):
        assert text in str(error.value)
    assert "latency.kind" in str(error.value)
    (tmp_path / "ema.safetensors").write_bytes(b"others")
    with pytest.raises(KinoiseError, match=r"policy\.sha256"):
        play(broken, tmp_path, resume=True)
    (tmp_path / "ema.safetensors").write_bytes(b"weights")
    play(broken, tmp_path, resume=True)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"resume": True, "out": None}, "needs out="),
        ({"resume": True, "checkpoint": None}, "checkpoint"),
        ({"shard": "3/2"}, "shard=3/2"),
        ({"shard": "0/2"}, "shard=0/2"),
        ({"shard": "2"}, "shard=2"),
        ({"shard": "1/16"}, "only 15 episodes"),
        ({"shard": "1/2", "until": 0.1}, "no shard knows"),
        ({"shard": "1/2", "latency": "measured"}, "latency=FILE"),
        ({"until": 0.0}, "until=0.0"),
    ],
)
def test_unfit_arguments_are_refused(tmp_path: Path, checkpoint: Path, change: dict[str, Any], text: str):
    with pytest.raises(UsageError, match=text):
        play(**{"out": tmp_path / "out", "checkpoint": checkpoint, **change})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("line", [0, 3])
def test_other_damage_is_said(broken: Path, checkpoint: Path, line: int):
    content = lines(broken)
    content[line] = content[line].replace(b'"', b"'", 1)
    (broken / LEDGER).write_bytes(b"".join(content))
    with pytest.raises(KinoiseError, match=f"line {line + 1} "):
        play(broken, checkpoint, resume=True)


def test_measured_delays_go_on_as_they_were(tmp_path: Path, checkpoint: Path):
    first = play(tmp_path, checkpoint, latency="measured", env="line/go")
    cut(tmp_path, 2)
    again = play(tmp_path, checkpoint, latency="measured", env="line/go", resume=True)
    assert again["latency"]["samples_s"] == first["latency"]["samples_s"]
    assert again["episodes"] == first["episodes"]


def test_films_that_went_with_the_process_are_made_again(tmp_path: Path, checkpoint: Path):
    play(tmp_path, checkpoint, video=1, env="line/go")
    before = decided(tmp_path)
    cut(tmp_path, 4)
    result = play(tmp_path, checkpoint, video=1, env="line/go", resume=True)
    assert result["rollout"]["resumed"] == 4
    assert decided(tmp_path) == before
    assert (tmp_path / result["episodes"][0]["video"]).is_file()


def test_progress_begins_with_what_was_played():
    class Shown(EpisodeProgress):
        def text(self) -> str:
            (task,) = self._bar.tasks
            return f"{task.completed:g}/{task.total:g} {task.description}"

    outcomes = [Outcome(Job("line/go", index, 0, Terms(1, (), 1)), success=index < 3) for index in range(4)]
    bar, one_by_one = Shown(9, shown=False), Shown(9, shown=False)
    bar.add()
    bar.add(*outcomes)
    for item in outcomes:
        one_by_one.add(item)
    assert bar.text() == one_by_one.text() == "4/9 success 75% (30% to 95%)"
