"""The process that an environment is in: what happens there is said here and passes, and it ends with the one that asked."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kinoise import provenance
from kinoise.envs import Env, make
from kinoise.envs.base import EnvLost
from kinoise.envs.remote.env import ProcessEnv
from kinoise.envs.remote.process import LIMITS
from kinoise.spec import KinoiseError
from kinoise.wire import pack, unpack
from mapped_worlds import POINT, STILL, episode, write


@pytest.fixture
def point(tmp_path: Path) -> Iterator[Callable[..., Env]]:
    """Makes environments of the point's world in processes of their own, with a trouble; closes them."""
    made: list[Env] = []

    def build(trouble: str = "none", **changes: Any) -> Env:
        content = {**POINT, "python": sys.executable}
        made.append(make(write(tmp_path, content, f"{trouble}.yaml", gymnasium__kwargs__trouble=trouble, **changes)))
        return made[-1]

    yield build
    for env in made:
        env.close()


def pid(env: Env) -> int:
    return env._line.pid  # type: ignore[attr-defined]


def alive(number: int) -> bool:
    try:
        os.kill(number, 0)
        return "\nState:\tZ" not in Path(f"/proc/{number}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


def gone(number: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while alive(number) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(number)


def test_a_killed_process_costs_its_episode_and_no_more(point: Callable[..., Env]) -> None:
    env, same = point(), point(timeout=20)
    expected = [episode(same, seed, 5) for seed in (5, None, None)]
    assert episode(env, 5, 5) == expected[0]
    env.reset()
    env.step(STILL)
    os.kill(pid(env), signal.SIGKILL)
    for _ in range(2):  # and says so again, until a reset
        with pytest.raises(EnvLost, match=r"SIGKILL|no process, since the one before was lost"):
            env.step(STILL)
    assert episode(env, None, 5) == expected[2], "the sequence of seeds went on"
    assert env.expert() is not None


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("exit", "its process ended .exit code 7; it printed last: a simulator that prints"),
        ("crash", r"signal SIGSEGV; .*Segmentation fault.*point_worlds.py.* line \d+ in step"),
        ("hang", "did not answer within 1 s and was ended"),
    ],
)
def test_how_a_process_was_lost_is_said(point: Callable[..., Env], trouble: str, said: str) -> None:
    env = point(trouble, timeout=1)
    env.reset(seed=0)
    number = pid(env)
    env.step(STILL)
    env.step(STILL)
    begin = time.monotonic()
    with pytest.raises(EnvLost, match=said):
        env.step(STILL)
    assert time.monotonic() - begin < 6
    assert gone(number, 1)
    env.reset(seed=0)
    env.step(STILL)
    assert pid(env) != number


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("nan", r"nan.yaml: observations.state: \[nan\] after step 3 is not finite"),
        ("raise", r"raise.yaml: step 2 of kinoise/Point-v0 failed: RuntimeError: the point is gone \(point_worlds.py"),
    ],
)
def test_what_is_raised_there_is_raised_here_and_the_process_stays(point: Callable[..., Env], trouble: str, said: str) -> None:
    env = point(trouble)
    number = pid(env)
    for _ in range(2):
        env.reset(seed=0)
        env.step(STILL)
        env.step(STILL)
        with pytest.raises(KinoiseError, match=said) as caught:
            env.step(STILL)
        assert not isinstance(caught.value, EnvLost)
    assert pid(env) == number


def test_numbers_that_another_side_should_not_have_sent_are_refused(point: Callable[..., Env]) -> None:
    env = point()
    good, _ = env.reset(seed=0)

    class Liar:
        def ask(self, message: Any, seconds: float) -> dict[str, Any]:
            return unpack(pack({"observation": self.said, "info": {}, "initial": {}, "instruction": ""}), LIMITS)

        def close(self) -> None: ...

    liar = env._line = Liar()  # type: ignore[attr-defined]
    for key, value, said in (
        ("state", np.float32([np.nan]), "'state' is not finite"),
        ("state", np.zeros(2, np.float32), "'state': expected float32"),
        ("state", np.zeros(1), "'state': expected float32"),
        ("other", np.zeros(1), "expected observations of"),
    ):
        liar.said = {**good, key: value}
        with pytest.raises(KinoiseError, match=said):
            env.reset(seed=0)
    with pytest.raises(KinoiseError, match=r"lacks .'reward'"):
        env.step(STILL)


def test_versions_are_those_of_the_other_side(monkeypatch: pytest.MonkeyPatch, point: Callable[..., Env]) -> None:
    monkeypatch.setattr("kinoise.provenance.version", lambda name: "0.0")  # of this process alone
    env = point()
    assert isinstance(env, ProcessEnv)
    assert provenance.simulators()["numpy"] == "0.0"
    assert (env.versions["numpy"], env.versions["python"]) == (np.__version__, platform.python_version())
    assert env.versions["mujoco"] == metadata.version("mujoco")
    assert "torch" not in env.versions


@pytest.mark.parametrize("trouble", ["none", "hang"])
def test_a_process_ends_with_the_one_that_asked_for_it(tmp_path: Path, trouble: str) -> None:
    task = write(tmp_path, {**POINT, "python": sys.executable}, gymnasium__kwargs__trouble=trouble)
    code = f"""
import numpy as np
from kinoise.envs import make
env = make({task!r})
env.reset(seed=0)
print(env._line.pid, flush=True)
for _ in range(3):
    env.step(np.zeros(1, np.float32))
input()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        number = int(parent.stdout.readline())
        time.sleep(0.2)
        assert alive(number)
        parent.kill()
        assert gone(number, 5)


def test_closing_ends_the_process(point: Callable[..., Env]) -> None:
    env = point()
    number = pid(env)
    env.close()
    assert gone(number, 1)
