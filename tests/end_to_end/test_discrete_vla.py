"""The discrete-diffusion VLA by the console commands: it sees, plans, is calibrated, and runs in the loop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kinoise.cli import main

TASKS = "metaworld/reach,button-press-topdown"
TINY = ["policy.network.width=16", "policy.network.depth=1", "policy.network.heads=2", "policy.bins.count=16"]
SHORT = ["train.steps=3", "train.batch_size=4", "train.tensorboard=false"]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_from_pictures_to_the_control_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = str(tmp_path / "data"), str(tmp_path / "run")
    assert main(["collect", f"env={TASKS}", "cameras=[corner3]", "size=32", "episodes=1", "workers=2", f"out={data}"]) == 0
    see = "policy.observations=[proprio,image.corner3]"
    assert main(["train", "policy=discrete_vla", *TINY, *SHORT, see, f"data={data}", f"out={run}"]) == 0
    last = json.loads((Path(run) / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 <= last["clipped"] <= 0.02
    assert main(["eval", run, f"env={TASKS}", "episodes=1", "horizon=6", "workers=1", "decode.adaptive=0.1", "execute=2"]) == 0
    result = json.loads((Path(run) / "eval" / "result.json").read_text())
    assert result["protocol"]["tasks"] == ["metaworld/reach", "metaworld/button-press-topdown"]
    assert 1 <= result["decode_cost"]["nfe_per_plan"] <= 12
    capsys.readouterr()
    calibrate = ["calibrate", run, f"data={data}", "windows=4", "levels=[0.5]", "steps=[2]"]
    assert main([*calibrate, "within=1e-9"]) in (0, 1)
    assert main([*calibrate, "within=100"]) == 0
    assert "decode.warm=0.5 decode.warm_steps=2" in said(capsys)
    decode = json.loads((Path(run) / "checkpoints" / "last" / "config.json").read_text())["policy"]["decode"]
    assert (decode["warm"], decode["warm_steps"]) == (0.5, 2)
    assert main(["control", run, "env=metaworld/reach", "seconds=1", "pin=true", f"out={tmp_path / 'control'}"]) == 0
    assert main(["eval", run, "env=metaworld/reach", "episodes=1", "horizon=6", "workers=1", "execute=1", "decode.gate=0"]) == 0
    result = json.loads((Path(run) / "eval" / "result.json").read_text())
    assert result["decode_cost"]["cold_share"] > 0
    sweep = ["delay-sweep", run, "env=metaworld/reach", "delays=[2]", "methods=[naive,warm_prefix]"]
    assert main([*sweep, "episodes=1", "horizon=6", "workers=1", "execute=2"]) == 0
    rows = json.loads((Path(run) / "delay" / "delay.json").read_text())["rows"]
    assert [(row["method"], row["delay"]) for row in rows] == [("naive", 2), ("warm_prefix", 2)]
    assert rows[1]["nfe_per_plan"] < rows[0]["nfe_per_plan"]
    assert rows[0]["joins"]["p99"] >= rows[0]["joins"]["p50"] >= 0
    assert (Path(run) / "delay" / "delay.png").read_bytes().startswith(b"\x89PNG")
    assert main([*sweep, "episodes=1", "workers=1", "execute=7"]) == 2
    assert "it can be 1 at most" in capsys.readouterr().err
