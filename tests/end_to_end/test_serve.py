"""`kinoise serve` as a process: what it prints, how signals end it, what it refuses before it loads anything."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from kinoise.cli import main
from kinoise.deploy.client import PolicyClient
from kinoise.deploy.serving import is_loopback
from kinoise.files import sha256
from kinoise.policies import build_policy
from kinoise.policies.checkpoint import save_policy
from kinoise.policies.core.network import NetworkConfig
from kinoise.policies.diffusion import DiffusionConfig
from kinoise.spec import Feature, Spec, Stats

SPEC = Spec({"state": Feature((5,))}, Feature((3,), low=(-1.0,) * 3, high=(1.0,) * 3), rate=20.0, language=False)
STATS = {
    key: Stats((0.0,) * n, (1.0,) * n, (-1.0,) * n, (1.0,) * n, (-1.0,) * n, (1.0,) * n, 10)
    for key, n in (("state", 5), ("action", 3))
}

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    config = DiffusionConfig(network=NetworkConfig(width=32, depth=1, heads=2, adaptive_norm=True))
    save_policy(directory, build_policy(config, SPEC, STATS, ()), {})
    return directory


@pytest.fixture
def start(run: Path) -> Iterator[Start]:
    """Starts the command; kills what a test leaves behind."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "kinoise.cli", "serve", str(run), *arguments]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env={**os.environ, **environment}, **streams))  # type: ignore[call-overload]
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def url_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"ws://\S+:\d+", line)
    assert found, line
    return found[0]


def test_it_serves_until_a_signal_ends_it_whatever_comes_by(run: Path, start: Start) -> None:
    process = start("port=0", "token=${oc.env:SECRET}", "decode.steps=2", SECRET="open sesame")
    url = url_of(process)
    for garbage in (b"garbage\r\n\r\n", b"\x16\x03\x01" + b"\xff" * 300, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b""):
        with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=5) as connection:
            connection.sendall(garbage)
    with PolicyClient(url, "open sesame") as client:
        assert client.served.sha256 == sha256(run / "ema.safetensors")
        plan = client.plan({"state": np.zeros(5, np.float32)})
        assert plan.actions.shape == (1, client.served.chunk, 3)
        assert plan.nfe == 2
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=10)
    assert process.returncode == 143
    assert "client 0 connected" in said
    assert "open sesame" not in said
    assert "Traceback" not in said


def test_an_interrupt_ends_it_and_a_port_is_had_once(start: Start) -> None:
    first = start("port=0")
    url = url_of(first)
    second = start(f"port={url.rsplit(':', 1)[1]}")
    _, said = second.communicate(timeout=60)
    assert second.returncode == 1
    assert said.startswith("kinoise: port=")
    assert "is in use: take another port=" in said
    assert said.count("\n") == 1
    first.send_signal(signal.SIGINT)
    assert "Traceback" not in first.communicate(timeout=10)[1]
    assert first.returncode == 130


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("host=0.0.0.0", "token="),
        ("host=::", "insecure=true"),
        ("host=example.org", "other machines"),
        ("port=65536", "port=65536"),
        ("max_bytes=1", "max_bytes=1"),
        ("batch=0", "at least 1"),
        ("wait_ms=nan", "wait_ms=nan"),
        ("wait_ms=-1", "between 0 and 1000"),
        ("threads=0", "at least 1"),
        ("clients=0", "at least 1"),
        ("seed=-1", "2^63"),
        ("token=", "printable"),
        ("token=naïve", "ASCII"),
    ],
)
def test_what_it_can_not_serve_by_is_wrong_usage(argument: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "RUN", argument]) == 2
    assert said in capsys.readouterr().err


def test_what_is_not_there_is_not_served(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "nowhere", "host=0.0.0.0", "token=secret"]) == 1
    assert "no checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected
