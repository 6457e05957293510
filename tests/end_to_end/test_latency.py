"""`kinoise latency` with untrained policies: what it writes, what it says, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from kinoise import cli
from kinoise.config import UsageError
from kinoise.deploy.cadence import Cadence
from kinoise.deploy.speed import computed, main
from kinoise.eval.latency import parse_latency
from kinoise.files import sha256
from kinoise.policies import POLICIES, build_policy
from kinoise.policies.base import Policy
from kinoise.policies.checkpoint import save_policy
from kinoise.policies.decode import CacheSchedule, DecodeConfig
from kinoise.policies.diffusion import DiffusionPolicy
from kinoise.spec import Feature, KinoiseError, Spec, Stats
from omegaconf import OmegaConf

SPEC = Spec({"state": Feature((5,))}, Feature((3,)), rate=20.0, language=False)
STATS = {
    key: Stats(mean=(0.1,) * n, std=(0.5,) * n, min=(-1.0,) * n, max=(1.0,) * n, q01=(-0.9,) * n, q99=(0.9,) * n, count=9)
    for key, n in (("state", 5), ("action", 3))
}
SHORT = ["plans=3", "warmup=1", "threads=1", "device=cpu"]


def policy(name: str) -> Policy:
    settings = {"network": {"width": 32, "depth": 1, "heads": 2}, "chunk": 4, "execute": 2, "goal_dropout": 0.1}
    config = OmegaConf.merge(OmegaConf.structured(POLICIES[name].config()), settings)
    return build_policy(OmegaConf.to_object(config), SPEC, STATS, ())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {name: tmp_path_factory.mktemp(name) for name in POLICIES}
    for name, path in found.items():
        save_policy(path, policy(name), {})
    return found


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", POLICIES)
def test_a_run_s_figures_agree_with_each_other_and_with_what_is_said(
    name: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "latency.json"
    threads = torch.get_num_threads()
    assert main([str(runs[name]), *SHORT, "decode.steps=4", "decode.warm=0.5", "rate=5", f"out={out}"]) == 0
    assert torch.get_num_threads() == threads
    result = json.loads(out.read_text())
    assert {"kinoise", "versions", "commit", "machine"} < result.keys()
    assert result["policy"]["sha256"] == sha256(runs[name] / "ema.safetensors")
    assert (result["decode"]["steps"], result["decode"]["warm"], result["decode"]["chunk"]) == (4, 0.5, 4)
    assert (result["batch"], result["threads"], result["machine"]["threads"], result["warmup"]) == (1, 1, 1, 1)
    assert {kind: (item["count"], item["evaluations"]) for kind, item in result["plans"].items()} == {
        "cold": (3, 4),
        "replan": (3, 2),
    }
    for item in result["plans"].values():
        assert list(item["ms"]) == ["encode", "denoise", "evaluation", "decode", "total"]
        for found in item["ms"].values():
            assert 0 < found["p50"] <= found["p95"] <= found["p99"] <= found["max"]
    assert result["floor"]["ratio"] == pytest.approx(result["plans"]["cold"]["ms"]["total"]["p50"] / result["floor"]["ms"])
    cadence = result["cadence"]
    assert cadence["of"] == "replan"
    assert cadence["p95_ms"] == result["plans"]["replan"]["ms"]["total"]["p95"]
    assert {key: item for key, item in cadence.items() if key != "of"} == Cadence(cadence["p95_ms"] / 1e3, 5.0, 4).to_json()
    shown = said(capsys)
    assert cadence["sentence"] in shown
    assert f"{name} on {result['device']}, 1 thread" in shown
    assert "4 evaluations a plan, 2 a replan" in shown
    assert "matrix products alone" in shown
    assert "transfer" not in shown
    assert str(out) in shown.replace(" ", "") or out.name in shown
    played = parse_latency(str(out))  # what was measured is what kinoise eval can play with
    assert played is not None
    assert played.values == tuple(sorted(result["latency"]["samples_s"]))


def test_without_warm_starts_there_are_no_replans_to_measure(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "latency.json"
    assert main([str(runs["mode"]), *SHORT, "batch=2", f"out={out}"]) == 0
    result = json.loads(out.read_text())
    assert list(result["plans"]) == ["cold"]
    assert (result["cadence"]["of"], result["cadence"]["rate"], result["batch"], result["floor"]) == ("cold", 20, 2, None)
    shown = said(capsys)
    assert "2 observations at once" in shown
    assert "replan p50" not in shown
    assert "matrix products" not in shown


def test_compiled_plans_are_measured_as_such(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(Policy, "compiled", lambda self: compiled.append(self) or self)
    out = tmp_path / "latency.json"
    assert main([str(runs["diffusion"]), *SHORT, "compile=true", f"out={out}"]) == 0
    assert len(compiled) == 1
    assert json.loads(out.read_text())["compile"] is True
    assert "1 thread, compiled" in said(capsys)
    monkeypatch.setattr(DiffusionPolicy, "compilable", False)
    with pytest.raises(UsageError, match="compile=true"):
        main([str(runs["diffusion"]), *SHORT, "compile=true"])
    assert len(compiled) == 1


def test_plans_that_are_over_too_soon_are_said_to_be(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(runs["mode"]), *SHORT, "rate=1000000"]) == 0
    shown = said(capsys)
    assert "kinoise control would refuse: plans take" in shown
    assert "Lower rate=, take fewer decode.steps" in shown


def test_what_a_cache_leaves_out_is_told(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(runs["diffusion"]), *SHORT, "decode.steps=5", "decode.cache=every"]) == 0
    assert "cache: 60% of the branches' outputs" in said(capsys)
    schedule = CacheSchedule(evaluations=4, refresh={"0.attention": [0, 2], "0.feedforward": [0, 1, 2]})
    assert computed(DecodeConfig(cache="fitted", schedule=schedule), 4) == 5 / 8
    assert computed(DecodeConfig(), 4) == 1


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("rate=0", "rate=0"),
        ("rate=inf", "rate=inf"),
        ("plans=0", "plans=0"),
        ("warmup=0", "warmup=0"),
        ("batch=0", "batch=0"),
        ("threads=0", "threads=0"),
        ("seed=-1", "seed=-1"),
        ("device=tpu9", "device=tpu9"),
        ("decode.steps=0", "at least 1"),
        ("decode.cache=fitted", "kinoise fit-cache"),
        ("out=.", "expected a file"),
        ("out=", "expected a file"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_measured(
    argument: str, expected: str, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=expected):
        main([str(runs["mode"]), argument])
    assert not list(tmp_path.iterdir())


def test_what_is_not_there_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KinoiseError, match="no checkpoint"):
        main([str(tmp_path)])
    assert cli.main(["latency", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("kinoise: ")
