"""The ROS 2 node of the documentation, on stand-ins of ROS: it drives, rests, logs, and is launched with the example's file."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from kinoise.deploy.trace import TraceReader
from kinoise.policies import build_policy, choices
from kinoise.policies.checkpoint import save_policy
from kinoise.spec import Feature, KinoiseError, Spec, Stats
from omegaconf import OmegaConf
from ros_stubs import EXAMPLE, PARAMETERS, SPEC, Message, StubNode, example


@pytest.fixture
def ros(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    with example(monkeypatch) as modules:
        yield modules


def checkpoint(path: Path) -> Path:
    sizes = {key: 3 if item.kind == "image" else item.shape[0] for key, item in SPEC.observations.items()}
    stats = {
        key: Stats((0.0,) * n, (0.5,) * n, (-1.0,) * n, (1.0,) * n, (-0.9,) * n, (0.9,) * n, 9)
        for key, n in {**sizes, "action": 3}.items()
    }
    small = {"network": {"width": 32, "depth": 1}, "encoder": {"shared_cameras": True, "pool": "average"}, "chunk": 16}
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(choices()["diffusion"]), small, {"execute": 4}))
    policy = build_policy(config, SPEC, stats, ("fold",), seed=0)
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for item in policy.parameters():
            item.add_(0.03 * torch.randn(item.shape, generator=gen))
    save_policy(path, policy, {})
    return path


def test_the_node_drives_and_leaves_the_robot_at_rest(
    ros: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lenient = ["guards.stale=null", "guards.heartbeat=null", "fallback.hold=60"]  # of a machine that is busy
    settings = [str(checkpoint(tmp_path / "run")), "rate=4", "servo=2", "decode.steps=1", f"trace={tmp_path / 'run.trace'}"]
    monkeypatch.setattr(ros.robot, "FRESH", 60.0)
    node = StubNode(PARAMETERS | {"settings": [*settings, *lenient]})
    node.deaf.add("/hand")
    record = ros.node.drive(node, lambda: len(node.said.get("/hand", ())) >= 8)
    assert record.outcomes["used"] > 0
    assert not record.errors
    assert "diffusion drives at 4 Hz" in node.log
    assert len(node.said["/arm"]) == len(node.said["/hand"]) >= 9
    assert node.said["/arm"][0].points[0].time_from_start.seconds == 1 / 8
    np.testing.assert_allclose(node.said["/arm"][-1].points[0].positions, [0.1, 0.2], rtol=1e-6)
    assert node.said["~/resting"][-1].data is True
    assert node.waited == [("/arm", 0.5), ("/hand", 0.5)]
    assert "outputs.hand: nobody confirmed the last command; the robot may not be at rest" in node.log
    answer = node.services["~/reset"](Message(), Message())
    assert answer.success
    with TraceReader(tmp_path / "run.trace") as trace:
        assert sum(kind == "command" for kind, _ in trace.events()) == len(node.said["/hand"]) - 1


def test_what_ends_the_executor_is_said(ros: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spin(self: Any) -> None:
        self.node.tell_all()
        raise MemoryError("no room for a picture")

    monkeypatch.setattr(ros.node.SingleThreadedExecutor, "spin", spin)
    node = StubNode(PARAMETERS | {"settings": [str(checkpoint(tmp_path / "run")), "rate=4", "decode.steps=1"]})
    with pytest.raises(KinoiseError, match="ROS's executor ended by MemoryError: no room for a picture"):
        ros.node.drive(node, lambda: False)


def test_what_cannot_run_is_said_in_the_log(ros: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes: list[StubNode] = []

    def made(name: str, **how: Any) -> StubNode:
        assert (name, how) == ("kinoise", {"automatically_declare_parameters_from_overrides": True})
        nodes.append(StubNode({"settings": [str(tmp_path / "nothing")]}))
        return nodes[-1]

    monkeypatch.setattr(ros.node, "Node", made)
    monkeypatch.setattr(ros.node.signal, "signal", lambda *_: None)
    assert ros.node.main([]) == 1
    assert "no checkpoint there" in nodes[0].log[0]
    assert not nodes[0].alive


def test_the_example_of_parameters_fits_a_policy_and_the_launch_file_starts_the_node(ros: SimpleNamespace) -> None:
    def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, item in value.items():
            found |= flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {prefix + key: item}
        return found

    given = flat(yaml.safe_load((EXAMPLE / "params.yaml").read_text())["/kinoise"]["ros__parameters"])
    seen = {"state": Feature((7,)), "image.wrist": Feature((96, 96, 3), "image")}
    spec = Spec(seen, Feature((7,), low=(-3.0,) * 7, high=(3.0,) * 7), rate=20.0, control="absolute", gripper=(6,))
    ros.robot.RosRobot(StubNode(given), spec, given, 0.01)
    parsed = ros.node.parse("control", ros.node.Settings, given["settings"], positional="run")
    assert (parsed.rate, parsed.servo, parsed.fallback.on_stop, parsed.guards.velocity) == (20, 5, "wait", 1.0)
    found = importlib.util.spec_from_file_location("launched", EXAMPLE / "kinoise.launch.py")
    assert found is not None
    assert found.loader is not None
    launch = importlib.util.module_from_spec(found)
    found.loader.exec_module(launch)
    *_, command = launch.generate_launch_description()
    assert command == ["<python>", str(EXAMPLE / "kinoise_node.py"), "--ros-args", "--params-file", "<params>"]
