"""Environments in other processes: the same episodes as here, and whatever happens there is said here and passes."""

from __future__ import annotations

import base64
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kinoise import provenance
from kinoise.cli import main as cli
from kinoise.deploy import serve_env
from kinoise.deploy.serve_env import EnvHost
from kinoise.envs import Env, episode_seed, make, tasks
from kinoise.envs.base import EnvLost
from kinoise.envs.remote import child
from kinoise.envs.remote.child import Host
from kinoise.envs.remote.env import ProcessEnv
from kinoise.envs.remote.place import split
from kinoise.envs.remote.process import LIMITS, Process
from kinoise.envs.robosuite.recorded import made, require_same
from kinoise.envs.simulators import install
from kinoise.eval.collect import main as collect
from kinoise.spec import KinoiseError
from kinoise.wire import pack, unpack
from line_world import LineWorld
from mapped_worlds import PENDULUM, POINT, write
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection

STILL = np.zeros(1, np.float32)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A simulator's environment that is this one, under the name "here"."""
    python = tmp_path / "simulators" / "here" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (python.parents[1] / "kinoise.json").write_text('{"packages": [], "versions": {}}')
    monkeypatch.setenv("KINOISE_SIMULATORS", str(tmp_path / "simulators"))
    return "here"


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


def episode(env: Env, seed: int | None, steps: int) -> list[Any]:
    """What is observed, earned and said, with actions that depend on nothing but the step."""
    observation, _ = env.reset(seed=seed)
    found: list[Any] = [{key: item.tolist() for key, item in observation.items()}, env.initial()]
    low, high = np.array(env.spec.action.low), np.array(env.spec.action.high)
    for step in range(steps):
        observation, *rest = env.step((low + (0.5 + 0.4 * np.sin(step)) * (high - low)).astype(np.float32))
        found.append([{key: item.tolist() for key, item in observation.items()}, *rest])
    return found


def test_an_episode_is_the_same_in_another_process(tmp_path: Path, installed: str) -> None:
    here = make(write(tmp_path, PENDULUM), cameras=["side"], size=50, render=True)
    expected, picture = episode(here, 3, 20), here.render()
    own = write(tmp_path, {**PENDULUM, "python": sys.executable}, "own.yaml")
    for task in (own, f"remote/{installed}/{tmp_path}/world.yaml"):
        env = make(task, cameras=["side"], size=50, render=True)
        assert (env.task, env.spec, env.instruction, env.horizon) == (task, here.spec, here.instruction, here.horizon)
        assert episode(env, 3, 20) == expected
        np.testing.assert_array_equal(env.render(), picture)
        first, _ = env.reset(seed=1)
        first["angle"][:] = 7  # nobody else's
        assert env.reset(seed=1)[0]["angle"][0] != 7
        env.close()


def test_a_registered_task_is_the_same_in_another_process(installed: str) -> None:
    pytest.importorskip("gym_pusht")
    task = f"remote/{installed}/pusht/pusht"
    assert tasks(task) == tasks(f"remote/{installed}/PushT-v0") == (task,)
    here, env = make("pusht/pusht"), make(task)
    assert env.spec == here.spec
    assert episode(env, 4, 10) == episode(here, 4, 10)
    assert episode_seed(0, task, 3) == episode_seed(0, "pusht/pusht", 3)
    observation, _ = here.reset(seed=2)
    env.reset(seed=2)
    mine, theirs = here.expert(), env.expert()
    for _ in range(5):
        action = mine.act(observation)
        np.testing.assert_array_equal(theirs.act(observation), action)
        observation = here.step(action)[0]
        env.step(action)
    second = env.expert()
    with pytest.raises(KinoiseError, match="expert is gone"):
        theirs.act(observation)
    second.act(observation)
    with pytest.raises(KinoiseError, match="has no action that leaves everything"):
        env.idle_action()
    env.horizon = 3
    env.reset(seed=0)
    assert [env.step(action)[3] for _ in range(3)] == [False, False, True]
    env.close()


def test_suites_and_lists_have_a_place_too() -> None:
    assert tasks("remote/sim/metaworld/mt10") == tuple(f"remote/sim/{task}" for task in tasks("metaworld/mt10"))
    assert tasks("remote/sim/metaworld/push,reach") == ("remote/sim/metaworld/push", "remote/sim/metaworld/reach")
    assert tasks("ws://a:1/pusht") == ("ws://a:1/pusht/pusht",)
    assert split("remote/sim//tmp/a.yaml") == ("remote/sim/", "/tmp/a.yaml")
    for name, said in (
        ("remote/sim/metaworld/psuh", "metaworld/push"),
        ("remote/sim", "expected remote/SIMULATOR/ENV"),
        ("http://a:1/pusht", "expected ws://"),
    ):
        with pytest.raises(KinoiseError, match=said):
            tasks(name)


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


class Here:
    """A line to a host in this process, through the same bytes as to another."""

    def __init__(self) -> None:
        self._host = Host()

    def ask(self, message: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        return unpack(child._reply(self._host, pack(message)), LIMITS)

    def close(self) -> None:
        self._host.close()


class Rewording(LineWorld):
    """Says what is to be done in other words in each episode, as `perturb=instruction` has it."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.instruction = f"go, in the words of {seed}"
        return super().reset(seed=seed, options=options)


def test_an_episode_s_own_instruction_comes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "make", lambda task, **options: Rewording(task))
    message = {"call": "make", "task": "line/go", "render": False, "cameras": [], "size": 84, "perturb": {"instruction": 1.0}}
    env = ProcessEnv("remote/there/line/go", Here, message)
    assert env.instruction == "do go"
    for seed in (3, 4):
        env.reset(seed=seed)
        assert env.instruction == f"go, in the words of {seed}"
        env.step(STILL)
        assert env.instruction == f"go, in the words of {seed}"


def test_versions_are_those_of_the_other_side(monkeypatch: pytest.MonkeyPatch, point: Callable[..., Env]) -> None:
    monkeypatch.setattr("kinoise.provenance.version", lambda name: "0.0")  # of this process alone
    env = point()
    assert isinstance(env, ProcessEnv)
    assert provenance.simulators()["numpy"] == "0.0"
    assert (env.versions["numpy"], env.versions["python"]) == (np.__version__, platform.python_version())
    assert env.versions["mujoco"] == metadata.version("mujoco")
    assert "torch" not in env.versions


def test_demonstrations_are_held_against_the_robosuite_that_is_there(installed: str) -> None:
    pytest.importorskip("robosuite")
    env = make(f"remote/{installed}/robosuite/lift")
    there, own = env.meta()["robomimic"]["env_args"], metadata.version("robosuite")
    require_same(env.task, there, made("lift", own))
    other = "1.5.1" if own.startswith("1.4") else "1.4.0"
    with pytest.raises(KinoiseError, match=rf"than {env.task} with robosuite {own}: env_version is {other}.*env={env.task}\)"):
        require_same(env.task, there, made("lift", other))
    env.close()


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


def test_programs_that_are_no_environment_of_kinoise(tmp_path: Path, installed: str) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    for python, said in (
        (
            f"{bare}/bin/python",
            r"the package \w+ is not installed for .*bare/bin/python.*pip install gymnasium jaxtyping msgpack",
        ),
        ("/nowhere/python", "/nowhere/python can't be started: No such file"),
        ("/bin/false", "its process ended .exit code 1"),
        ("ogbench", r"'ogbench' is not installed in .*\(there: here\). Run: kinoise simulator install ogbench$"),
        (
            "elsewhere",
            r"There are recipes for gymnasium-robotics, ogbench.*: kinoise simulator install elsewhere packages='\.\.\.'",
        ),
    ):
        with pytest.raises(KinoiseError, match=said):
            make(write(tmp_path, {**POINT, "python": python}))
    (tmp_path / "sims").symlink_to(bare)
    with pytest.raises(KinoiseError, match=r"sims/bin/python"):  # a relative path is from the file's folder
        make(write(tmp_path, {**POINT, "python": "sims/bin/python"}))


def test_demonstrations_from_another_process(tmp_path: Path, installed: str) -> None:
    task, out = write(tmp_path, {**POINT, "python": installed}), tmp_path / "data"
    assert collect([f"env={task}", "episodes=2", "workers=1", "noise=0", f"out={out}"]) == 0
    assert (out / "kinoise.json").is_file()


def test_simulators_are_listed_and_a_broken_one_is_not_taken_for_installed(
    tmp_path: Path, installed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["simulator", "list"]) == 0
    shown = capsys.readouterr().out
    assert "ogbench" in shown
    assert "here                 installed" in shown
    for arguments, code in ((["install", "ogbnch"], 2), (["instal", "ogbench"], 2), (["install", "../a", "packages=a b"], 2)):
        assert cli(["simulator", *arguments]) == code
    assert "no recipe for 'ogbnch': there are gymnasium-robotics, ogbench" in capsys.readouterr().err
    with pytest.raises(KinoiseError, match=r"making the environment failed .exit code 1.: it said nothing"):
        install(tmp_path / "simulators" / "broken", ["nothing"], "/bin/false")
    cli(["simulator", "list"])
    assert "broken" not in capsys.readouterr().out


@contextmanager
def hosting(*served: str, **options: Any) -> Iterator[tuple[EnvHost, str]]:
    host = serve_env.EnvHost(served, **options)
    with host.listen("127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield host, f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        host.end()
    thread.join()


def test_an_environment_behind_a_websocket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = write(tmp_path, POINT)
    here = make(task)
    expected = episode(here, 3, 8)
    with hosting(task, token="open sesame", clients=2) as (host, url):
        for token in (None, "sesame"):
            if token:
                monkeypatch.setenv("KINOISE_TOKEN", token)
            with pytest.raises(KinoiseError, match="wants a token, and not this one: set KINOISE_TOKEN"):
                make(f"{url}/{task}")
        monkeypatch.setenv("KINOISE_TOKEN", "open sesame")
        env = make(f"{url}/{task}")
        assert episode(env, 3, 8) == expected
        with pytest.raises(KinoiseError, match="'pusht/pusht' is not served here"):
            make(f"{url}/pusht")
        other = make(f"{url}/{task}")
        with pytest.raises(KinoiseError, match="2 clients are connected already"):
            make(f"{url}/{task}")
        other.close()
        (process,) = wait_for(lambda: len(host._processes) == 1, host)
        env.reset(seed=0)
        process.kill()
        with pytest.raises(EnvLost, match=r"says: its process ended \(signal SIGKILL"):
            env.step(STILL)
        assert episode(env, 3, 8) == expected
        env.close()
        headers = {"Authorization": "Api-Key open sesame"}
        for frame in ("hello", b"\x00", pack({"call": "step"}), pack({"call": "make", "task": task, "mapping": POINT})):
            with connect(url, additional_headers=headers, proxy=None) as connection:
                connection.send(frame)
                assert isinstance(connection.recv(5), str)
                with pytest.raises(ConnectionClosed):
                    connection.recv(5)
        with connect(url, additional_headers=headers, proxy=None) as connection:
            first = {"call": "make", "task": task, "render": False, "cameras": ["nose"], "size": 8, "perturb": {}}
            replies = []
            for message in (first, {**first, "mapping": POINT, "cameras": []}):
                connection.send(pack(message))
                data = connection.recv(20)
                assert isinstance(data, bytes)
                replies.append(unpack(data, LIMITS)["error"])
            assert "unknown camera 'nose'" in replies[0]
            assert "a process makes one environment" in replies[1]  # else anyone could have it import a module
        assert wait_for(lambda: not host._processes, host) == []
    with pytest.raises(KinoiseError, match="no environment answers at"):
        make(f"{url}/{task}")


def test_no_more_clients_get_in_than_there_are_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(2, timeout=10)

    class Slow(EnvHost):
        def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
            found = super()._admit(connection, request)
            together.wait()  # both have been let in before either counts
            return found

    task, said = write(tmp_path, POINT), list[str]()
    monkeypatch.setattr(serve_env, "EnvHost", Slow)

    def ask(url: str) -> None:
        try:
            make(f"{url}/{task}").reset(seed=0)
            said.append("played")
        except KinoiseError as error:
            said.append(str(error))

    with hosting(task, clients=1) as (_, url):
        threads = [threading.Thread(target=ask, args=(url,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert said.count("played") == 1
    assert any("1 clients are connected already" in text for text in said)


def test_a_client_that_is_gone_without_a_word_leaves_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_env, "PING_S", 0.3)
    monkeypatch.setattr(serve_env, "PONG_S", 0.3)
    task = write(tmp_path, POINT)
    with hosting(task, clients=1) as (host, url):
        address = url.removeprefix("ws://")
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as silent:  # takes pings, answers none
            key = base64.b64encode(bytes(16)).decode()
            asked = f"GET / HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            silent.sendall(f"{asked}Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
            wait_for(lambda: host._connected == 1, host)
            wait_for(lambda: host._connected == 0, host)
        env = make(f"{url}/{task}")
        time.sleep(1.5)  # idle for longer than a silent one may be
        env.reset(seed=0)
        env.close()


def wait_for(condition: Callable[[], bool], host: EnvHost) -> list[Process]:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return list(host._processes)


def test_other_addresses_than_loopback_need_a_token() -> None:
    assert cli(["serve-env", "pusht", "host=0.0.0.0"]) == 2
    assert cli(["serve-env", "psuht"]) == 1
