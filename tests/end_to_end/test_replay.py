"""`kinoise control` from a thread, a process and a server, and `kinoise replay` of the traces that they leave."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from kinoise import envs
from kinoise.config import UsageError
from kinoise.deploy.control import main as control
from kinoise.deploy.messages import Served
from kinoise.deploy.replay import main as replay
from kinoise.deploy.server import Options, PolicyServer, background
from kinoise.deploy.trace import TraceReader, TraceWriter
from kinoise.policies import build_policy
from kinoise.policies.checkpoint import load_policy, save_policy
from kinoise.policies.core.network import NetworkConfig
from kinoise.policies.diffusion import DiffusionConfig
from kinoise.spec import KinoiseError, Stats

TASK = "metaworld/reach"
SHORT = [f"env={TASK}", "seconds=1", "trace=true", "decode.steps=2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny untrained policy, whose plans are noise."""
    directory, env = tmp_path_factory.mktemp("run"), envs.make(TASK)
    sizes = {**{key: item.shape[0] for key, item in env.spec.observations.items()}, "action": env.spec.action_dim}
    stats = {
        key: Stats((0.0,) * size, (1.0,) * size, (-1.0,) * size, (1.0,) * size, (-1.0,) * size, (1.0,) * size, 10)
        for key, size in sizes.items()
    }
    config = DiffusionConfig(network=NetworkConfig(width=32, depth=1, heads=2, adaptive_norm=True))
    policy = build_policy(config, env.spec, stats, (env.instruction,))
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():  # fresh weights end in zeros, which would make all plans alike
        for item in policy.parameters():
            item.add_(0.1 * torch.randn(item.shape, generator=gen))
    save_policy(directory, policy, {})
    env.close()
    return directory


@pytest.fixture(scope="module")
def trace(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    assert control([str(run), *SHORT, f"out={out}"]) == 0
    return out / "control.trace"


def commands(path: Path) -> int:
    with TraceReader(path) as reader:
        return sum(kind == "command" for kind, _ in reader.events())


def changed(path: Path, place: Path, places: slice, by: float) -> Path:
    """The trace with other commands at these places."""
    with TraceReader(path) as reader:
        header, events = reader.header, list(reader.events())
    own = [index for index, (kind, _) in enumerate(events) if kind == "command"][places]
    writer = TraceWriter(place / "changed.trace", header)
    for index, (kind, value) in enumerate(events):
        writer.add(kind, value + np.float32(by) if index in own else value)
    writer.close()
    return writer.path


def test_a_run_and_its_replay_agree_bit_for_bit(run: Path, trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads(trace.with_name("control.json").read_text())
    assert result["inference"] == "thread"
    assert result["trace"]["lost"] == 0
    assert result["trace"]["bytes"] == trace.stat().st_size
    assert replay([str(trace)]) == 0
    printed = capsys.readouterr().out
    assert f"{commands(trace)}" in printed
    assert replay([str(trace), f"run={run}"]) == 0
    assert "bit for bit, 0 not" in capsys.readouterr().out


def test_a_process_plans_what_a_thread_plans(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert control([str(run), *SHORT, "inference=process", f"out={tmp_path}"]) == 0
    result = json.loads((tmp_path / "control.json").read_text())
    assert (result["inference"], result["decode"]["steps"], result["policy"]["checkpoint"]) == ("process", 2, str(run))
    assert replay([str(tmp_path / "control.trace"), f"run={run}"]) == 0
    assert "bit for bit, 0 not" in capsys.readouterr().out


def test_what_differs_is_found(run: Path, trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay([str(changed(trace, tmp_path, slice(-3, -2), 1e-6))]) == 1
    assert "wanted command [" in capsys.readouterr().err
    cut = tmp_path / "cut.trace"
    cut.write_bytes(trace.read_bytes()[:-100])
    assert replay([str(cut)]) == 0
    assert "cut short" in capsys.readouterr().out
    cut.write_bytes(trace.read_bytes()[:200])
    with pytest.raises(KinoiseError, match="cut short within its header"):
        replay([str(cut)])
    with pytest.raises(KinoiseError, match="no trace can be read"):
        replay([str(tmp_path / "none")])
    with pytest.raises(KinoiseError, match="is no trace"):
        replay([str(run / "config.json")])


def test_another_policy_is_refused(run: Path, trace: Path, tmp_path: Path) -> None:
    policy = load_policy(run)
    with torch.no_grad():
        next(policy.parameters()).add_(1.0)
    save_policy(tmp_path, policy, {})
    with pytest.raises(KinoiseError, match="has the weights"):
        replay([str(trace), f"run={tmp_path}"])


def test_the_loop_runs_on_a_server(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = load_policy(run)
    with background(PolicyServer(policy, Served.of(policy), Options())) as url:
        asked = [f"server={url}", f"env={TASK}", "seconds=1", "trace=true", f"out={tmp_path}"]
        assert control(asked) == 0
        with pytest.raises(UsageError, match=r"decode.steps= is settled where the server was started"):
            control([*asked, "decode.steps=2"])
    result = json.loads((tmp_path / "control.json").read_text())
    assert (result["inference"], result["policy"]["server"]) == ("server", url)
    assert replay([str(tmp_path / "control.trace")]) == 0
    with pytest.raises(KinoiseError, match="came from a server"):
        replay([str(tmp_path / "control.trace"), f"run={run}"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run": None}, "expected a run"),
        ({"server": "ws://127.0.0.1:1"}, "not both"),
        ({"run": None, "server": "ws://127.0.0.1:1"}, "give out=DIR"),
        ({"token": "secret"}, "token= is a server's"),
        ({"inference": "elsewhere"}, "inference=elsewhere"),
        ({"threads": 0}, "threads=0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, object], words: str) -> None:
    given = {"run": "RUN", "env": TASK, **changes}
    arguments = [f"{key}={value}" for key, value in given.items() if value is not None]
    with pytest.raises(UsageError, match=words):
        control(arguments)
