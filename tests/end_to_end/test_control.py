"""`kinoise control` with an untrained policy: what it writes, how it ends, what it refuses."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import av
import pytest
import torch
from kinoise import envs
from kinoise.config import UsageError
from kinoise.deploy.control import main
from kinoise.deploy.controller import Controller
from kinoise.policies import DiffusionPolicy, build_policy
from kinoise.policies.checkpoint import save_policy
from kinoise.policies.core.network import NetworkConfig
from kinoise.policies.diffusion import DiffusionConfig
from kinoise.spec import KinoiseError, SpecMismatch, Stats

TASK = "metaworld/reach"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("run"))


def save(directory: Path, **changes: object) -> Path:
    """A checkpoint of a tiny policy for the task, whose spec differs by `changes`."""
    env = envs.make(TASK)
    spec = replace(env.spec, **changes)
    sizes = {**{key: item.shape[0] for key, item in spec.observations.items()}, "action": spec.action_dim}
    stats = {
        key: Stats((0.0,) * size, (1.0,) * size, (-1.0,) * size, (1.0,) * size, (-1.0,) * size, (1.0,) * size, 10)
        for key, size in sizes.items()
    }
    config = DiffusionConfig(network=NetworkConfig(width=32, depth=1, heads=2, adaptive_norm=True))
    save_policy(directory, build_policy(config, spec, stats, (env.instruction,)), {})
    env.close()
    return directory


def test_a_run_leaves_its_figures_and_its_film(run: Path, tmp_path: Path):
    out = tmp_path / "control"
    assert main([str(run), f"env={TASK}", "rate=50", "seconds=1", f"out={out}", "video=true", "decode.steps=2"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["control.json", "control.mp4"]
    result = json.loads((out / "control.json").read_text())
    assert result["ticks"] + result["missed"] == pytest.approx(50, abs=1)
    assert result["ended_by"] is None
    assert result["errors"] == []
    assert result["decode"]["steps"] == 2
    assert result["plans"] == len(result["plans_timeline"]) >= 1
    assert {item["nfe"] for item in result["plans_timeline"]} == {2}
    assert result["policy"]["checkpoint"] == str(run)
    assert set(result["interventions"]) == {"nan", "bounds", "velocity", "jump", "stale", "heartbeat"}
    assert sum(result["rungs"].values()) == result["ticks"]
    assert result["controller"]["fallback"] == {"hold": 1.0, "decay": 0.5, "on_stop": "end"}
    assert (result["controller"]["rate"], result["controller"]["servo"], result["controller"]["budget"]) == (50, 1, None)
    seeds = [envs.episode_seed(0, TASK, index) for index in range(len(result["episodes"]))]
    assert [item["seed"] for item in result["episodes"]] == seeds
    with av.open(str(out / "control.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_cleanly(run: Path, tmp_path: Path, number: signal.Signals):
    before = signal.getsignal(number)

    def send() -> None:
        while signal.getsignal(number) is before:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    assert main([str(run), f"env={TASK}", "seconds=600", f"out={tmp_path}"]) == 128 + number
    sender.join()
    assert signal.getsignal(number) is before
    assert json.loads((tmp_path / "control.json").read_text())["ended_by"] == number.name


def clock_started(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once the plans before the run are made, of which some are replans, too."""
    started, run = threading.Event(), Controller.run

    def begin(self, *told):
        started.set()
        return run(self, *told)

    monkeypatch.setattr(Controller, "run", begin)
    return started


def test_a_policy_that_fails_on_its_way_is_an_error_with_its_figures_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, started = DiffusionPolicy.plan, clock_started(monkeypatch)

    def plan(self, obs, gen, **told):
        if started.is_set() and told["previous"] is not None:
            raise RuntimeError("out of memory")
        return whole(self, obs, gen, **told)

    monkeypatch.setattr(DiffusionPolicy, "plan", plan)
    with pytest.raises(KinoiseError, match=r"planning went wrong .* out of memory"):
        main([str(run), f"env={TASK}", "seconds=1", f"out={tmp_path}"])
    result = json.loads((tmp_path / "control.json").read_text())
    assert result["rungs"]["rest"] > 0
    assert result["errors"][0]["message"] == "planning failed: RuntimeError: out of memory"


def test_plans_of_nan_are_counted_and_end_in_a_stop(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole, broken, started = DiffusionPolicy.plan, threading.Event(), clock_started(monkeypatch)

    def plan(self, obs, gen, **told):
        made = whole(self, obs, gen, **told)
        if started.is_set() and told["previous"] is not None:
            broken.set()
        return replace(made, actions=torch.full_like(made.actions, torch.nan)) if broken.is_set() else made

    monkeypatch.setattr(DiffusionPolicy, "plan", plan)
    with pytest.raises(KinoiseError, match=r"stopped at tick \d+: .*control\.json"):
        main([str(run), f"env={TASK}", "rate=50", "seconds=30", "fallback.hold=0.2", f"out={tmp_path}"])
    result = json.loads((tmp_path / "control.json").read_text())
    assert result["interventions"]["nan"] == sum(item["outcome"] == "nan" for item in result["plans_timeline"]) > 0
    assert result["rungs"]["stop"] == len(result["stops"]) == 1


def test_plans_that_come_too_late_are_refused_with_the_numbers(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = DiffusionPolicy.plan

    def plan(self, obs, gen, **told):
        time.sleep(0.3)
        return whole(self, obs, gen, **told)

    monkeypatch.setattr(DiffusionPolicy, "plan", plan)
    with pytest.raises(KinoiseError, match=r"plans take 3\d\d ms at p95 = \d+ ticks at 50 Hz; a chunk of 12 actions is over"):
        main([str(run), f"env={TASK}", "rate=50", f"out={tmp_path}"])
    assert not (tmp_path / "control.json").exists()


def test_what_can_not_run_is_refused_before_anything_moves(run: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="one task"):
        main([str(run), "env=metaworld/mt10", f"out={tmp_path}"])
    with pytest.raises(UsageError, match="rate=0"):
        main([str(run), f"env={TASK}", "rate=0", f"out={tmp_path}"])
    with pytest.raises(UsageError, match=r"guards\.stale=-1"):
        main([str(run), f"env={TASK}", "guards.stale=-1", f"out={tmp_path}"])
    with pytest.raises(UsageError, match=r"fallback\.on_stop=stay"):
        main([str(run), f"env={TASK}", "fallback.on_stop=stay", f"out={tmp_path}"])
    with pytest.raises(UsageError, match="servo=2: a simulator takes one command a step"):
        main([str(run), f"env={TASK}", "servo=2", f"out={tmp_path}"])
    with pytest.raises(UsageError, match="device=tpu9"):
        main([str(run), f"env={TASK}", "device=tpu9", f"out={tmp_path}"])
    other = save(tmp_path / "other", control="absolute")
    with pytest.raises(SpecMismatch, match="control: policy absolute, environment delta"):
        main([str(other), f"env={TASK}", f"out={tmp_path}"])
    assert not (tmp_path / "control.json").exists()
