"""Training on several data sets: files of their own making, weights, a resume, and rollouts of robots with other numbers."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import yaml
from kinoise import cli, envs, files
from kinoise.data import Episode, write_store
from kinoise.envs.base import Env
from kinoise.eval import __main__ as eval_command
from kinoise.eval.evaluate import evaluate
from kinoise.policies.checkpoint import load_policy, resolve
from kinoise.policies.onnx import load_onnx
from kinoise.spec import KinoiseError, Spec, SpecMismatch
from kinoise.train.__main__ import main
from line_world import ExpertDriver, make, make_centimetres

TINY = ["policy=diffusion", "policy.network.width=16", "policy.network.depth=1", "policy.network.heads=2"]
TINY += ["policy.chunk=4", "policy.execute=2", "policy.observations=[state]", "policy.decode.steps=2"]
SHORT = ["train.batch_size=8", "train.warmup=1", "train.log_every=1", "train.save_every=1", "train.tensorboard=false"]


@pytest.fixture(autouse=True)
def _line_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "sync", lambda path: None)
    monkeypatch.setattr(envs, "tasks", lambda env: (env,))


def driven(world: Callable[[str], Env], seeds: range, key: str = "state") -> tuple[Spec, Iterator[Episode]]:
    """Demonstrations of a robot on the line, which calls its state `key`."""
    env = world("line/go")

    def episodes() -> Iterator[Episode]:
        for seed in seeds:
            states, actions, over = [], [], False
            # The expert counts in metres: it drives a world of its own, and this robot does the same.
            guide = make("line/go")
            obs, seen, act = env.reset(seed=seed)[0], guide.reset(seed=seed)[0], ExpertDriver(0.02).start(guide, seed)
            while not over:
                action = act(seen)
                states.append(obs["state"])
                actions.append(action * np.float32(env.spec.action.high) / np.float32(guide.spec.action.high))
                seen = guide.step(action)[0]
                obs, _, _, over, _ = env.step(actions[-1])
            yield Episode({key: np.array(states), "action": np.array(actions)}, env.instruction)

    spec = replace(env.spec, observations={key: env.spec.observations["state"]})
    return spec, episodes()


def train(data: Path, out: Path, *more: str) -> int:
    return main([*TINY, *SHORT, f"data={data}", f"out={out}", *more])


def play(run: Path, world: Any, frame: str | None = None) -> dict[str, Any]:
    policy = load_policy(run, frame=frame, device="cpu")
    return evaluate(policy, "line/go", episodes=4, seed=3, workers=1, make=world, progress=False, checkpoint=resolve(run))


def describe(folder: Path, *datasets: dict[str, Any], **settings: Any) -> Path:
    path = folder / "mixture.yaml"
    path.write_text(yaml.safe_dump({"datasets": list(datasets), **settings}))
    return path


def test_two_data_sets_are_trained_on_resumed_and_evaluated(tmp_path: Path) -> None:
    recipe = {"noise": 0.1}
    write_store(tmp_path / "a", *driven(make, range(2)), meta={"collect": recipe})
    write_store(tmp_path / "b", *driven(make, range(2, 5), "proprio"))
    other = {"path": "b", "rename": {"proprio": "state"}}
    data, whole, run = describe(tmp_path, {"path": "a", "weight": 3}, other), tmp_path / "whole", tmp_path / "run"
    assert train(data, whole, "train.steps=2") == 0
    assert json.loads((whole / "train.json").read_text())["demonstrations"]["collect"] == {"a": recipe, "b": None}
    shutil.copytree(whole, run, symlinks=True)
    shutil.rmtree(run / "checkpoints" / "2")
    assert train(data, run, "train.steps=2", "resume=true") == 0
    for name in ("model.safetensors", "ema.safetensors", "training_state/optimizer.safetensors"):
        one, two = (item / "checkpoints" / "2" / name for item in (run, whole))
        assert one.read_bytes() == two.read_bytes()
    result = play(run, make)
    assert [item["error"] for item in result["episodes"]] == [None] * 4
    describe(tmp_path, {"path": "a", "weight": 2}, other)
    with pytest.raises(KinoiseError, match=r"mixture.yaml is not what .* order, weights and normalise count"):
        train(data, run, "train.steps=3", "resume=true")


def test_a_robot_with_other_numbers_is_normalised_and_run_by_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(tmp_path / "a", *driven(make, range(6)))
    write_store(tmp_path / "cm", *driven(make_centimetres, range(6)))
    data, run = describe(tmp_path, {"path": "a"}, {"path": "cm"}, normalise="each"), tmp_path / "run"
    assert train(data, run, "train.steps=30") == 0
    assert json.loads((resolve(run) / "config.json").read_text())["frames"].keys() == {"a", "cm"}
    metres, centimetres = play(run, make), play(run, make_centimetres, "cm")
    for one, other in zip(metres["episodes"], centimetres["episodes"], strict=True):
        assert (one["error"], one["success"], one["steps"]) == (None, other["success"], other["steps"])
        assert one["return"] == pytest.approx(other["return"], abs=1e-2)
    assert centimetres["policy"]["frame"] == "cm"
    with pytest.raises(SpecMismatch, match="unit"):
        play(run, make_centimetres)
    seen = []
    monkeypatch.setattr(eval_command, "evaluate", lambda policy, *_, **__: seen.append(policy) or metres)
    assert eval_command.main([str(run), "env=line/go", "frame=cm", "device=cpu"]) == 0
    assert seen[0].frame == "cm"
    assert seen[0].spec.action.high == (10.0,)


@contextmanager
def jaxtyping_off() -> Iterator[None]:
    """What is traced has symbols for sizes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


COMMANDS = {
    "eval": ["env=line/go"],
    "delay-sweep": ["env=line/go"],
    "serve": [],
    "control": ["env=line/go"],
    "latency": [],
    "calibrate": ["data=a"],
    "fit-cache": ["data=a"],
    "export-onnx": ["out=exported"],
}


def test_every_command_that_plans_takes_a_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(tmp_path / "a", *driven(make, range(1)))
    write_store(tmp_path / "cm", *driven(make_centimetres, range(1)))
    data, run = describe(tmp_path, {"path": "a"}, {"path": "cm"}, normalise="each"), tmp_path / "run"
    assert train(data, run, "train.steps=1") == 0
    monkeypatch.chdir(tmp_path)
    for name, more in COMMANDS.items():
        seen = io.StringIO()
        with redirect_stderr(seen):
            assert cli.main([name, "run", *more, "frame=inch"]) == 2, name
        assert "one of a, cm" in seen.getvalue(), name
    with jaxtyping_off():
        assert cli.main(["export-onnx", "run", "out=exported", "frame=cm"]) == 0
    exported = load_onnx(tmp_path / "exported")
    assert exported.spec == load_policy(run, frame="cm", device="cpu").spec
    assert exported.checkpoint["frame"] == "cm"
