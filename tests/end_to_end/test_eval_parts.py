"""`kinoise eval` with resume= and shard=, and `kinoise merge`, by their commands, on a policy that has hardly been trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kinoise.cli import main

TASK = "env=metaworld/reach"
TINY = ["policy=mode", "policy.network.width=16", "policy.network.depth=1", "policy.network.heads=2"]
SHORT = ["train.steps=2", "train.batch_size=4", "train.tensorboard=false"]
# With two slots every plan is for one observation, so that not even the last bits depend on what else is played.
ALONE = [TASK, "episodes=3", "horizon=12", "workers=1", "slots=2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    data, run = (str(tmp_path_factory.mktemp("parts") / name) for name in ("data", "run"))
    assert main(["collect", TASK, "episodes=1", "workers=1", f"out={data}"]) == 0
    assert main(["train", *TINY, *SHORT, f"data={data}", f"out={run}"]) == 0
    return run


def test_resumed_and_merged_results_are_those_of_one_process(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, merged = tmp_path / "whole", tmp_path / "merged"
    assert main(["eval", run, *ALONE, f"out={whole}"]) == 0
    expected = decided(whole)

    ledger = whole / "episodes.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-9])
    assert main(["eval", run, *ALONE, f"out={whole}", "resume=true"]) == 0
    assert json.loads((whole / "result.json").read_text())["rollout"]["resumed"] == 2
    assert decided(whole) == expected
    assert main(["eval", run, *ALONE, f"out={whole}", "resume=true", "execute=1"]) == 1
    assert "decode.execute" in capsys.readouterr().err

    assert main(["eval", run, *ALONE, "shard=1/2"]) == 0
    parts = [str(Path(run) / "eval" / name) for name in ("1-of-2", "2-of-2")]
    assert main(["merge", *parts, f"out={merged}"]) == 1
    assert main(["eval", run, *ALONE, "shard=2/2"]) == 0
    assert main(["merge", *parts, f"out={merged}"]) == 0
    assert decided(merged) == expected
    assert main(["compare", str(whole), str(merged)]) == 0

    assert main(["eval", run, *ALONE, f"out={whole}", "resume=true", "until=0.3"]) == 0
    stopped = json.loads((whole / "result.json").read_text())["stopped"]
    assert (stopped["reached"], stopped["rounds"]) == (True, 3)


def test_a_protocol_by_name(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", run, TASK, "protocol=metaworld", "episodes=2", "horizon=8", "video=1", f"out={tmp_path}"]) == 0
    assert "protocol metaworld, changed: episodes, horizon" in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["protocol"]["name"], result["protocol"]["seed"]) == ("metaworld, changed: episodes, horizon", 1000)
    assert (tmp_path / result["episodes"][0]["video"]).is_file()
    assert main(["report", run, f"eval={tmp_path}", f"out={tmp_path / 'report.html'}"]) == 0
    text = (tmp_path / "report.html").read_text()
    assert "protocol=metaworld" in text
    assert "Actions of reach, episode 0, failed" in text
    for refused in ("protocol=openvla", "protocol=metawrld", "perturb=camera:0.1", "images=sideways"):
        assert main(["eval", run, TASK, refused, f"out={tmp_path / 'none'}"]) == 2
    assert not (tmp_path / "none").exists()


def decided(out: Path) -> dict[str, Any]:
    """What of a result the episodes decide."""
    result = json.loads((out / "result.json").read_text())
    cost = {key: result["decode_cost"][key] for key in ("nfe_per_plan", "cold_share")}
    timed = ("wall_s", "env_steps_per_s", "rollout", "decode_cost")
    return {key: item for key, item in result.items() if key not in timed} | cost
