"""Evaluations that are played in parts or stop early: the episodes are those of an unbroken run."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from kinoise.config import UsageError
from kinoise.eval.ledger import LEDGER, read_ledger
from kinoise.eval.merge import main, merge
from kinoise.eval.metrics import wilson
from kinoise.eval.player import BLOCK
from kinoise.eval.protocol import EvaluationProtocol, Shard
from kinoise.eval.shown import show
from kinoise.eval.slot import Job, Outcome, Terms
from kinoise.eval.until import Until
from kinoise.spec import KinoiseError
from rich.console import Console
from short_evaluations import EPISODES, TASKS, cut, decided, lines, on_the_line, play, unbroken, weights


@pytest.fixture(autouse=True)
def _line_world(monkeypatch: pytest.MonkeyPatch) -> None:
    on_the_line(monkeypatch)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    return unbroken(tmp_path_factory.mktemp("whole"), checkpoint)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_shards_merge_into_the_whole(tmp_path: Path, whole: Path, checkpoint: Path, count: int):
    parts = [tmp_path / str(number) for number in range(1, count + 1)]
    for number, part in enumerate(parts, 1):
        result = play(part, checkpoint, shard=f"{number}/{count}")
        assert result["shard"] == f"{number}/{count}"
        assert result["protocol"] == json.loads((whole / "result.json").read_text())["protocol"]
    (tmp_path / "result.json").write_text(json.dumps(merge(parts[::-1])[-1]))
    assert decided(tmp_path) == decided(whole)


@pytest.mark.parametrize(("tasks", "episodes", "count"), [(3, 5, 4), (10, 7, 8), (1, 9, 2), (2, 3, 6)])
def test_episodes_are_dealt_evenly(tasks: int, episodes: int, count: int):
    everything = EvaluationProtocol("e", tuple(map(str, range(tasks))), episodes, 1, 0).episode_seeds()
    shares = [Shard.parse(f"{number}/{count}").deal(everything) for number in range(1, count + 1)]
    assert sorted(item for share in shares for item in share) == sorted(everything)
    for name in (None, *map(str, range(tasks))):
        sizes = [sum(name in (None, task) for task, _, _ in share) for share in shares]
        assert max(sizes) - min(sizes) <= 1


def test_merge_says_what_is_missing_or_twice_or_other(tmp_path: Path, checkpoint: Path):
    a, b, other = tmp_path / "a", tmp_path / "b", tmp_path / "other"
    play(a, checkpoint, shard="1/2")
    play(b, checkpoint, shard="2/2")
    play(other, checkpoint, shard="2/2", execute=3)
    with pytest.raises(KinoiseError, match=r"decode\.execute: 2 against 3"):
        merge([a, other])
    with pytest.raises(KinoiseError, match=r"7 missing \(line/go 1, 3; line/raise 0, 2, 4; line/stuck 1, 3\); 8 twice"):
        merge([a, a / ".." / "a"])
    cut(b, 5)
    with pytest.raises(KinoiseError, match="2 missing"):
        merge([a, b])
    with pytest.raises(KinoiseError, match="does not exist"):
        merge([a, tmp_path])
    play(b, checkpoint, shard="2/2", resume=True)
    assert main([str(a), str(b), f"out={tmp_path / 'all'}"]) == 0
    assert json.loads((tmp_path / "all" / "result.json").read_text())["success"]["n"] == 3 * EPISODES
    joined, shards = (read_ledger(tmp_path / name / LEDGER) for name in ("all", "a"))
    assert joined is not None
    assert shards is not None
    assert len(joined[1]) == 3 * EPISODES
    assert (joined[0].shard, joined[0].differences(shards[0], "shard")) == (None, [])
    with pytest.raises(UsageError, match="is one of the parts"):
        main([str(a), str(b), f"out={a / '..' / 'b'}"])
    with pytest.raises(UsageError, match="at least two parts"):
        main([str(a), f"out={tmp_path / 'all'}"])


@pytest.mark.parametrize(("slots", "env", "asked"), [(5, "line/go", 0.22), (2, "line/all", 0.15), (9, "line/all", 0.15)])
def test_it_stops_after_the_first_round_that_is_enough(tmp_path: Path, checkpoint: Path, slots: int, env: str, asked: float):
    full = play(tmp_path / "full", checkpoint, env=env, episodes=12)
    tasks = TASKS[env]
    widths = {}
    for rounds in range(1, 13):
        found = [item["success"] for item in full["episodes"] if item["index"] < rounds]
        _, low, high = wilson(sum(found), len(found))
        widths[rounds] = (high - low) / 2
    rounds = next(rounds for rounds, width in widths.items() if width <= asked)
    assert 1 < rounds < 12
    result = play(tmp_path / "out", checkpoint, env=env, episodes=12, until=asked, slots=slots)
    assert result["stopped"] == {"until": asked, "reached": True, "rounds": rounds, "half_width": widths[rounds]}
    assert result["protocol"] == full["protocol"]
    assert Counter(item["task"] for item in result["episodes"]) == dict.fromkeys(tasks, rounds)
    assert result["episodes"] == [item for item in full["episodes"] if item["index"] < rounds]
    assert len(lines(tmp_path / "out")) - 1 <= len(tasks) * (-(-rounds // BLOCK) * BLOCK) or slots >= len(tasks)
    console = Console(record=True, width=200)
    show(result, console)
    assert f"stopped after {rounds} episodes of each task" in console.export_text()

    filmed = play(tmp_path / "films", checkpoint, env=env, episodes=12, until=asked, slots=slots, video=1)
    assert [{key: item[key] for key in item if key != "video"} for item in filmed["episodes"]] == result["episodes"]
    assert any("video" in item for item in filmed["episodes"])

    on = play(tmp_path / "out", checkpoint, env=env, episodes=12, until=0.01, resume=True)
    assert (on["stopped"]["reached"], on["stopped"]["rounds"], on["episodes"]) == (False, 12, full["episodes"])
    played = sum(item["error"] is None for item in result["episodes"])
    assert on["rollout"]["resumed"] >= played


def test_where_it_stops_depends_on_no_order():
    protocol = EvaluationProtocol("e", ("a", "b"), 50, 1, 0)
    outcomes = [Outcome(Job(*key, Terms(1, (), 1)), success=key[1] % 3 > 0) for key in protocol.episode_seeds()]
    stops = []
    for order in (outcomes, outcomes[::-1], sorted(outcomes, key=lambda item: item.job.index)):
        until = Until(0.1, protocol)
        for item in order:
            until.add(item)
        stops.append((until.rounds, sum(map(until.counts, outcomes))))
    assert len(set(stops)) == 1
    assert stops[0][1] == 2 * stops[0][0] < 100
