"""`kinoise eval latency=` and `kinoise delay-sweep` by their commands, on a policy that has hardly been trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kinoise.cli import main

TASK = "env=metaworld/reach"
TINY = ["policy=mode", "policy.network.width=16", "policy.network.depth=1", "policy.network.heads=2"]
SHORT = ["train.steps=2", "train.batch_size=4", "train.tensorboard=false"]
QUICK = [TASK, "episodes=1", "horizon=12", "workers=1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A run whose plans hold three actions, and its data."""
    data, run = (str(tmp_path_factory.mktemp("sweep") / name) for name in ("data", "run"))
    assert main(["collect", TASK, "episodes=1", "workers=1", f"out={data}"]) == 0
    assert main(["train", *TINY, *SHORT, "policy.chunk=3", "policy.execute=1", f"data={data}", f"out={run}"]) == 0
    return run, data


def test_a_sweep_compares_ways_and_demonstrations(made: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    run, data = made
    assert main(["delay-sweep", run, *QUICK, "methods=[naive,ensemble,warm_prefix]", f"data={data}"]) == 0
    said = capsys.readouterr().out
    assert "left out: 2, 3, 4, 5, 6, 7, 8 steps. With execute=1 a chunk of 3 actions bridges 1 at most" in said
    found = json.loads((Path(run) / "delay" / "delay.json").read_text())
    assert found["left_out"]["delays"] == [2, 3, 4, 5, 6, 7, 8]
    assert found["demonstrations"]["episodes"] == 1
    change = found["demonstrations"]["change"]
    assert 0 < change["p50"] <= change["p99"] <= 1
    ways = [(row["method"], row["delay"]) for row in found["rows"]]
    assert ways == [(name, delay) for name in ("naive", "ensemble", "warm_prefix") for delay in (0, 1)]
    for row in found["rows"]:
        assert row["steps"] == 12
        assert row["held"] == 0
        assert row["acceleration"]["rms"] > 0
        assert row["within"] == (row["joins"]["p99"] <= change["p99"])
        assert row["success"]["n"] == 1
    jumps = {(row["method"], row["delay"]): row["joins"]["p50"] for row in found["rows"]}
    assert jumps["ensemble", 0] < jumps["naive", 0], "the mean over plans of noise moves less than they do"
    assert (Path(run) / "delay" / "delay.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("methods=[naif]", "the methods are naive, ensemble, warm, prefix, warm_prefix"),
        ("delays=[1,1]", "different numbers"),
        ("delays=[0,2]", "it can be 1 at most"),
        ("ensemble=-1", "expected at least 0"),
        ("execute=4", "execute=4"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(
    made: tuple[str, str], argument: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["delay-sweep", made[0], *QUICK, argument]) == 2
    assert text in capsys.readouterr().err


def test_the_robot_is_held_when_a_plan_is_too_late(made: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    run, times = made[0], Path(made[0]) / "times.json"
    times.write_text(json.dumps([0.0] * 60 + [0.1] * 3))
    quick = [*QUICK[:1], "episodes=4", "horizon=40", "workers=1"]
    assert main(["eval", run, *quick, f"latency={times}"]) == 0
    result = json.loads((Path(run) / "eval" / "result.json").read_text())
    assert result["decode"]["latency"] == str(times)
    assert result["motion"]["held"] > 0
    assert f"{result['motion']['held']} of {result['motion']['steps']} actions held" in capsys.readouterr().out
