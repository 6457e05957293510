"""result.json: its contract, its protocol's hash, and the commands and refusals that lead to it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections import Counter
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from kinoise import envs
from kinoise.config import UsageError, termination
from kinoise.data import Episode, write_store
from kinoise.eval.__main__ import main
from kinoise.eval.evaluate import evaluate
from kinoise.eval.metrics import wilson
from kinoise.eval.protocol import EvaluationProtocol
from kinoise.eval.result import overlap
from kinoise.eval.shown import show
from kinoise.eval.slot import Job, Outcome, Terms
from kinoise.eval.sources import RESULT, read_record
from kinoise.policies import DecodeConfig, Policy
from kinoise.policies.core.random import Gen
from kinoise.policies.replan import Start
from kinoise.spec import Feature, KinoiseError, Observation, Plan, SpecMismatch
from line_world import HORIZON, SPEC, make, make_elsewhere
from rich.console import Console
from walker import ONE, WalkerConfig, WalkerPolicy

TASKS = {"line/all": ("line/go", "line/raise", "line/stuck"), "line/go": ("line/go",)}


@pytest.fixture(autouse=True)
def _line_world(monkeypatch: pytest.MonkeyPatch) -> None:
    real = envs.tasks
    monkeypatch.setattr(envs, "tasks", lambda env: TASKS.get(env) or real(env))


def play(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"episodes": 4, "seed": 7, "workers": 2, "slots": 6, "make": make, "progress": False}
    policy = (changes.pop("policy", None) or WalkerPolicy()).eval()
    return evaluate(policy, changes.pop("env", "line/all"), **{**arguments, **changes})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    (directory / "ema.safetensors").write_bytes(b"weights")
    return directory


def test_the_result_is_the_contract(tmp_path: Path, checkpoint: Path):
    out = tmp_path / "eval"
    result = play(out=out, checkpoint=checkpoint)
    assert sorted(item.name for item in out.iterdir()) == ["episodes.jsonl", "result.json"]
    assert read_record(out / "result.json", RESULT, "eval") == json.loads(json.dumps(result))
    assert {"kinoise", "versions", "commit", "machine", "wall_s", "env_steps_per_s"} <= result.keys()
    assert result["protocol"] == EvaluationProtocol("line/all", TASKS["line/all"], 4, HORIZON, 7).to_json()
    told = {item.name for item in fields(EvaluationProtocol)} - {"mappings"}  # of which there are none here
    assert result["protocol"].keys() == {*told, "hash"}
    assert result["observed"] == {"state": {"kind": "state", "shape": [3]}}
    assert result["policy"].keys() == {"name", "checkpoint", "sha256", "parameters"}
    assert (result["policy"]["name"], result["policy"]["parameters"]) == ("walker", 1)
    assert result["decode"] == {
        **asdict(DecodeConfig(steps=3)),
        "execute": 4,
        "chunk": 8,
        "latency": "0",
        "delay": 0,
        "ensemble": None,
        "pin": False,
    }
    assert result["decode_cost"]["nfe_per_plan"] == 3
    for times in (result["decode_cost"]["plan_ms"], result["decode_cost"]["plan_ms_batch1"]):
        assert 0 < times["p50"] <= times["p95"] <= times["p99"]
    assert 1 <= result["decode_cost"]["plan_batch"]["mean"] <= result["decode_cost"]["plan_batch"]["max"] <= 6
    assert result["env_steps_per_s"] > 0 < result["wall_s"]


def test_the_episodes_add_up(tmp_path: Path):
    result = play()
    episodes = result["episodes"]
    keys = {"task", "index", "seed", "success", "steps", "return", "error", "initial"}
    assert all(item.keys() == keys for item in episodes)
    assert [(item["task"], item["index"]) for item in episodes] == [(task, k) for task in TASKS["line/all"] for k in range(4)]
    assert all(item["seed"] == envs.episode_seed(7, item["task"], item["index"]) for item in episodes)
    assert all(0 < item["steps"] <= HORIZON for item in episodes)
    assert result["tasks"].keys() == set(TASKS["line/all"])
    for name, row in {**result["tasks"], "all": result["success"]}.items():
        of_it = [item for item in episodes if name in (item["task"], "all")]
        successes = sum(item["success"] for item in of_it)
        assert (row["rate"], row["low"], row["high"]) == wilson(successes, len(of_it))
        assert row["n"] == len(of_it)
        assert row["errors"] == sum(item["error"] is not None for item in of_it)
    odd = [item for item in episodes if item["task"] == "line/raise" and item["seed"] % 2]
    assert odd
    assert [item for item in episodes if item["error"]] == odd
    assert all("RuntimeError: the line broke" in item["error"] and not item["success"] for item in odd)


def test_the_same_arguments_give_the_same_episodes():
    first, again = play(), play(workers=1)
    assert first["episodes"] == again["episodes"]
    assert first["protocol"] == again["protocol"]
    other = play(seed=8)
    assert [item["initial"] for item in other["episodes"]] != [item["initial"] for item in first["episodes"]]


def test_evaluation_leaves_torchs_threads_and_generator_alone():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    play(env="line/go", threads=threads + 1)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_the_protocols_hash_is_of_everything_in_it():
    protocol = EvaluationProtocol("line/all", TASKS["line/all"], 4, HORIZON, 7)
    changes = {
        "env": "other", "tasks": ("line/go",), "episodes": 5, "horizon": 31, "seed": 8, "name": "other", "seeding": "counted",
        "stored": 50, "wait": 1, "idle": (0.0,), "success": "last step", "images": "mirrored", "size": 9,
        "perturb": {"camera": 1.0}, "mappings": {"own.yaml": "abc"},
    }  # fmt: skip
    assert changes.keys() == {item.name for item in fields(EvaluationProtocol)}
    hashes = {protocol.hash, *(replace(protocol, **{key: value}).hash for key, value in changes.items())}
    assert len(hashes) == len(changes) + 1
    assert replace(protocol).hash == protocol.hash
    assert replace(protocol, horizon=dict.fromkeys(protocol.tasks, HORIZON)).hash != protocol.hash


def test_videos_play_in_browsers_and_replace_older_ones(tmp_path: Path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "older.mp4").write_bytes(b"")
    result = play(video=2, out=tmp_path, episodes=5)
    shown = [item for item in result["episodes"] if "video" in item]
    counts = Counter((item["task"], item["success"]) for item in shown)
    there = Counter((item["task"], item["success"]) for item in result["episodes"] if item["error"] is None)
    assert counts == {key: min(2, count) for key, count in there.items()}
    assert {True, False} == {success for _, success in counts}
    for task, success in counts:  # the first ones
        alike = [item for item in result["episodes"] if (item["task"], item["success"], item["error"]) == (task, success, None)]
        assert ["video" in item for item in alike] == [place < 2 for place in range(len(alike))]
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == sorted(Path(item["video"]).name for item in shown)
    assert {path.name for path in tmp_path.iterdir()} == {"videos", "result.json", "episodes.jsonl"}
    for item in shown:
        path = tmp_path / item["video"]
        content = path.read_bytes()
        assert content.find(b"moov") < content.find(b"mdat"), "the index has to come first"
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert frames[0].shape == (64, 96, 3)
        # 40 steps a second, 20 frames: the first, every second step, and the last.
        assert len(frames) == 1 + -(-item["steps"] // 2)
        assert item["task"] == "line/stuck" or np.abs(frames[0].astype(int) - frames[-1]).max() > 100
    without = play(episodes=5)
    assert [item | {"video": 0} for item in result["episodes"]] == [item | {"video": 0} for item in without["episodes"]]


def test_demonstrations_that_began_alike_are_counted(tmp_path: Path):
    result = play(env="line/go")
    arrays = {"state": np.zeros((3, 3), np.float32), "image.top": np.zeros((3, 4, 6, 3), np.uint8)}
    episodes = [
        Episode({**arrays, "action": np.zeros((3, 1), np.float32)}, "do go", {"task": task, "initial": initial})
        for task, initial in (
            ("line/go", result["episodes"][1]["initial"]),
            ("line/other", result["episodes"][2]["initial"]),
            ("line/go", {"goal": 0.123}),
        )
    ]
    write_store(tmp_path / "data", SPEC, episodes)
    again = play(env="line/go", data=tmp_path / "data")
    assert again["overlap"] == {"data": str(tmp_path / "data"), "demonstrations": 3, "episodes": 1}
    console = Console(record=True, width=100)
    show(again, console)
    assert f"demonstration in {tmp_path / 'data'}: 1." in console.export_text().replace("\n", "")


def test_overlap_compares_nested_numbers_and_ignores_what_is_missing():
    job = Job("a", 0, 0, Terms(1, (), 1))
    outcome = Outcome(job, initial={"vec": [0.1, np.float64(1 / 3)], "name": "x"})
    assert overlap([outcome], [{"task": "a", "initial": {"name": "x", "vec": (0.1, 0.3333333333)}}]) == 1
    assert overlap([outcome], [{"task": "a", "initial": {"name": "x", "vec": [0.1, 0.3334]}}, {"task": "a"}]) == 0
    assert overlap([replace(outcome, initial=None)], [{"task": "a", "initial": None}]) == 0


def test_the_versions_of_a_simulator_elsewhere_are_recorded():
    assert "simulators" not in play(env="line/go")
    assert play(env="line/go", make=make_elsewhere)["simulators"] == {"line": {"python": "3.12.1", "mujoco": "9.9"}}


def test_a_task_overlaps_with_demonstrations_of_it_from_elsewhere():
    """Its initial states are the same in any place, and a mapping file's in any folder."""
    for task, demonstrated in (("ws://there:8100/libero/goal-0", "libero/goal-0"), ("maps/own.yaml", "own.yaml")):
        outcome = Outcome(Job(task, 0, 0, Terms(1, (), 1)), initial={"vec": [0.1]})
        assert overlap([outcome], [{"task": demonstrated, "initial": {"vec": [0.1]}}]) == 1
        assert overlap([outcome], [{"task": f"other-{demonstrated}", "initial": {"vec": [0.1]}}]) == 0


def test_a_policy_for_another_robot_is_refused_with_every_difference(tmp_path: Path):
    state = replace(SPEC.observations["state"], unit=("m", "m", "s"))
    other = replace(SPEC, rate=20.0, control="absolute", observations={**SPEC.observations, "state": state})
    with pytest.raises(SpecMismatch) as error:
        play(policy=WalkerPolicy(other), out=tmp_path / "eval", video=1)
    for word in ("rate", "control", "unit"):
        assert word in str(error.value)
    assert not (tmp_path / "eval").exists() or not list((tmp_path / "eval").iterdir())


def test_a_camera_that_the_simulator_lacks_does_not_hide_the_other_differences():
    class Looker(WalkerPolicy):
        def __init__(self) -> None:
            spec = envs.make("metaworld/push").spec
            camera = Feature((84, 84, 3), kind="image")
            Policy.__init__(
                self,
                WalkerConfig(),
                replace(spec, rate=10.0, observations={**spec.observations, "image.roof": camera}),
                dict.fromkeys(("state", "image.roof", "action"), ONE),
                (),
            )

    with pytest.raises(KinoiseError, match=r"unknown camera 'roof'.*rate: policy 10\.0, environment 80"):
        play(policy=Looker(), env="metaworld/push", make=None, workers=1)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"execute": 9}, "execute=9: expected between 1 and the plan's 8"),
        ({"episodes": 0}, "episodes=0: at least 1"),
        ({"slots": 0}, "slots=0: at least 1"),
        ({"workers": 0}, "workers=0: at least 1"),
        ({"horizon": -1}, "horizon=-1: at least 1"),
        ({"seed": -1}, "seed=-1"),
        ({"video": 1}, "out="),
        ({"env": "metaworld/pusch"}, "metaworld/push"),
    ],
)
def test_unfit_arguments_are_refused(change: dict[str, Any], text: str):
    with pytest.raises(KinoiseError, match=text):
        play(**change)


def test_termination_leaves_neither_files_nor_processes(tmp_path: Path):
    class Terminated(WalkerPolicy):
        def decode(self, obs: Observation, gen: Gen, start: Start) -> Plan:
            os.kill(os.getpid(), signal.SIGTERM)
            return super().decode(obs, gen, start)

    before, children = signal.getsignal(signal.SIGTERM), multiprocessing.active_children()
    with pytest.raises(SystemExit) as leaving, termination():
        play(policy=Terminated(), out=tmp_path / "eval", video=2)
    assert leaving.value.code == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())
    assert multiprocessing.active_children() == children
    assert signal.getsignal(signal.SIGTERM) is before


def test_where_nothing_can_be_written_nothing_is_played(tmp_path: Path):
    class Never(WalkerPolicy):
        def decode(self, obs: Observation, gen: Gen, start: Start) -> Plan:
            raise AssertionError("an episode was begun")

    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "eval"):
        with pytest.raises(KinoiseError, match="can't write"):
            play(policy=Never(), out=out)


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("decode.stepz=3", "stepz"),
        ("episode=3", "episode"),
        ("episodes=many", "many"),
        ("device=abacus", "auto"),
        ("device=meta", "auto"),
    ],
)
def test_the_command_refuses_what_it_does_not_know(tmp_path: Path, argument: str, text: str):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=text):
        main([str(tmp_path), argument])


def test_the_command_needs_a_checkpoint(tmp_path: Path):
    with pytest.raises(KinoiseError, match="no checkpoint"):
        main([str(tmp_path), "env=metaworld/push"])
