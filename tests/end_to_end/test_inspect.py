"""`kinoise inspect` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from kinoise.cli import main
from kinoise.data import Episode, stats, write_store
from kinoise.spec import Feature, Spec

SPEC = Spec(
    observations={"state": Feature((3,), names=("x", "y", "unused"), unit=("m",)), "image.top": Feature((2, 2, 3), "image")},
    action=Feature((2,), names=("dx", "grip"), unit=("m", "1"), low=(-0.1, -0.1), high=(0.1, 0.1)),
    rate=10.0,
)


def moving(rng: np.random.Generator, steps: int, text: str = "push the [red] puck", **info) -> Episode:
    state = rng.normal(size=(steps, 3)).astype(np.float32)
    action = rng.uniform(-0.1, 0.1, (steps, 2)).astype(np.float32)
    # The bound itself is allowed, though float32's 0.1 lies above float64's.
    action[0] = [0.1, -0.1]
    return Episode(
        {"state": state, "image.top": rng.integers(0, 256, (steps, 2, 2, 3), np.uint8), "action": action}, text, info
    )


def inspected(path: Path, capsys, *arguments: str) -> dict:
    assert main(["inspect", str(path), "json=true", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_sound_data_set(tmp_path, capsys):
    rng = np.random.default_rng(0)
    items = [moving(rng, steps, failures=index) for index, steps in enumerate((20, 30, 10))]
    write_store(tmp_path / "data", SPEC, [*items, moving(rng, 12, "open it")])
    found = inspected(tmp_path / "data", capsys)
    assert (found["format"], found["episodes"], found["steps"]) == ("kinoise", 4, 72)
    assert (found["rate"], found["duration_s"]) == (10, 7.2)
    assert found["problems"] == []
    assert found["keys"]["state"]["names"] == ["x", "y", "unused"]
    assert found["keys"]["image.top"]["shape"] == [2, 2, 3]
    push, door = found["instructions"]
    assert push["text"] == "push the [red] puck"
    assert (push["episodes"], push["length"], push["failures"]) == (3, {"min": 10, "median": 20, "max": 30}, 3)
    assert push["idle"] == {"fraction": 0, "longest": 0}
    assert door["failures"] is None

    assert main(["inspect", str(tmp_path / "data")]) == 0
    shown = capsys.readouterr().out
    for text in ("4 episodes", "72 steps at 10 Hz", "push the [red] puck", "2x2x3", "no problems found"):
        assert text in shown
    assert main(["inspect", str(tmp_path / "data"), "dimensions=true"]) == 0
    assert "unused" in capsys.readouterr().out


def test_every_problem_is_found(tmp_path, capsys):
    rng = np.random.default_rng(1)
    items = [moving(rng, 20, initial=[index]) for index in range(6)]
    for item in items:
        item.arrays["state"][:, 2] = 5
    # Still for steps 5..9 and 12..14: seven idle steps of 20, five of 20 in a row short of the tenth that moves.
    for item in items[:5]:
        for start, stop in ((5, 10), (12, 15)):
            item.arrays["state"][start:stop] = item.arrays["state"][start]
            item.arrays["action"][start:stop] = item.arrays["action"][start]
    items[1].arrays["action"][7:9, 0] = 0.2
    same = Episode(items[0].arrays, items[0].instruction, {"initial": [0]})
    other_goal = Episode(items[0].arrays, items[0].instruction, {"initial": [9]})
    failed = moving(rng, 3, success=False)
    failed.arrays["state"][:, 2] = 5
    write_store(tmp_path / "data", SPEC, [*items, same, other_goal, failed])
    found = inspected(tmp_path / "data", capsys)
    assert found["keys"]["state"]["constant"] == ["unused"]
    # Episode 1 jumps to 0.2 and back inside its first rest: steps 7 and 9 move there, 8 does not.
    idle_steps = 6 * (4 + 2) + (2 + 2)
    idle = found["instructions"][0]["idle"]
    assert idle == {"fraction": pytest.approx(idle_steps / (8 * 20 + 3)), "longest": 4}
    problems = found["problems"]
    assert len(problems) == 6
    for expected in (
        "'state': 1 of 3 dimensions never change (unused)",
        "steps are idle, up to 4 in a row",
        "'action': steps outside the spec's bounds: 2",
        "start exactly like an earlier one: 1 (episode 6 like 0)",
        "median: 1 (the first is episode 8, 3 steps)",
        "marked as failed: 1 (the first is episode 8)",
    ):
        assert any(expected in problem for problem in problems), expected

    assert main(["inspect", str(tmp_path / "data")]) == 0
    assert capsys.readouterr().out.count("problem:") == 6


def test_idle_runs_end_with_their_episode(tmp_path, capsys):
    still = np.ones((4, 1), np.float32)
    spec = Spec({"state": Feature((1,))}, Feature((1,)), rate=10.0)
    write_store(tmp_path / "data", spec, [Episode({"state": still, "action": still}, "rest")] * 2)
    assert inspected(tmp_path / "data", capsys)["instructions"][0]["idle"] == {"fraction": 6 / 8, "longest": 3}


def test_the_tolerance_of_idleness_is_a_setting(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stats, "BLOCK_BYTES", 28)
    ramp = np.linspace(0, 1, 101, dtype=np.float32)[:, None]
    spec = Spec({"state": Feature((1,))}, Feature((1,)), rate=10.0)
    write_store(tmp_path / "data", spec, [Episode({"state": ramp, "action": ramp}, "climb")])
    assert inspected(tmp_path / "data", capsys)["instructions"][0]["idle"]["fraction"] == 0
    found = inspected(tmp_path / "data", capsys, "idle=0.02")
    assert found["instructions"][0]["idle"] == {"fraction": pytest.approx(100 / 101), "longest": 100}


@pytest.mark.parametrize("case", ["absent", "empty", "truncated", "nan"])
def test_data_that_cannot_be_read_is_one_line_and_exit_code_1(case, tmp_path, capsys):
    path = tmp_path / "data"
    if case == "empty":
        path.mkdir()
    elif case != "absent":
        write_store(path, SPEC, [moving(np.random.default_rng(0), 5)])
        file = path / "data" / "action" / "0.0"
        file.write_bytes(file.read_bytes()[:-4] + (np.float32(np.nan).tobytes() if case == "nan" else b""))
    assert main(["inspect", str(path)]) == 1
    caught = capsys.readouterr()
    assert caught.out == ""
    assert caught.err.startswith("kinoise: ")
    assert caught.err.count("\n") == 1
    assert str(path) in caught.err
