"""`kinoise serve-env`: the same episodes behind a websocket, for as many clients as there are places, with the right token."""

from __future__ import annotations

import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kinoise.cli import main as cli
from kinoise.deploy import serve_env
from kinoise.deploy.serve_env import EnvHost
from kinoise.envs import make
from kinoise.envs.base import EnvLost
from kinoise.envs.remote.process import LIMITS, Process
from kinoise.spec import KinoiseError
from kinoise.wire import pack, unpack
from mapped_worlds import POINT, STILL, episode, write
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection


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
