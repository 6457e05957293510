"""`kinoise serve-env ENV`: a simulator for kinoise elsewhere, over a websocket."""

from __future__ import annotations

import http
import itertools
import logging
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from omegaconf import MISSING
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

from .. import envs
from ..config import UsageError, parse
from ..envs.remote.env import START_S
from ..envs.remote.process import LIMITS, Process
from ..spec import KinoiseError
from ..wire import WireError, unpack
from .serving import REFUSED, allowed, check_access, listening, log

ABOUT = """Lets kinoise on other machines play tasks as env=ws://HOST:PORT/TASK, until Ctrl-C or SIGTERM. Each client has a
process of its own. With a token, clients have to set KINOISE_TOKEN to it; token='${oc.env:NAME}' takes it from the
environment."""

PING_S, PONG_S = 20.0, 60.0
"""How often a client is asked whether it is still there, and how long it may take to say so. Its connection answers, also while
it trains; but one whose machine was switched off says nothing, and would keep its simulator for good."""

# websockets logs every broken handshake with its stack; what a server's owner has to know goes through `log`.
_quiet = logging.getLogger("kinoise.websockets")
_quiet.setLevel(logging.CRITICAL)


@dataclass
class Settings:
    env: str = field(default=MISSING, metadata={"help": "the tasks that clients may play"})
    host: str = field(default="127.0.0.1", metadata={"help": "address to listen on; others than loopback need a token"})
    port: int = field(default=8100, metadata={"help": "0 takes a free one and prints it"})
    token: str | None = field(default=None, metadata={"help": "what clients have to know; nothing if null"})
    insecure: bool = field(default=False, metadata={"help": "let anyone in, on any address, without a token"})
    clients: int = field(default=16, metadata={"help": "connected at once, at most, each with a simulator"})

    def __post_init__(self) -> None:
        check_access(self.host, self.port, self.token, self.insecure)
        if self.clients < 1:
            raise UsageError(f"clients={self.clients}: expected at least 1")


def main(argv: Sequence[str]) -> int:
    """Serves until a signal comes. Raises KinoiseError when there is no such task, or the port can't be had."""
    settings = parse("serve-env", Settings, argv, positional="env", about=ABOUT, choices={"env": envs.choices})
    host = EnvHost(envs.tasks(settings.env), settings.token, settings.clients)
    with host.listen(settings.host, settings.port) as server:
        port = server.socket.getsockname()[1]
        wanted = "a token is needed" if settings.token else "no token is needed"
        print(f"serving {settings.env} on ws://{settings.host}:{port} ({wanted}); Ctrl-C ends", flush=True)
        try:
            server.serve_forever()
        finally:
            host.end()
    return 0


class EnvHost:
    """Passes messages between clients and processes, each of which has one environment.

    Args:
        tasks: that may be made.
        token: what clients have to say; None asks for nothing.
        clients: that may be connected at once.
    """

    def __init__(self, tasks: Sequence[str], token: str | None = None, clients: int = 16) -> None:
        self._tasks, self._token, self._clients = tuple(tasks), token, clients
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._processes: set[Process] = set()
        self._connected = 0

    def listen(self, host: str, port: int) -> Server:
        """A server to be run by `serve_forever`. Raises KinoiseError when the port can't be had."""
        with listening(host, port):
            return serve(
                self._talk,
                host,
                port,
                process_request=self._admit,
                origins=[None],  # browsers send one: no web page may reach a simulator by the user's loopback
                compression=None,
                max_size=LIMITS.message,
                ping_interval=PING_S,
                ping_timeout=PONG_S,
                close_timeout=1.0,
                server_header=None,
                logger=_quiet,
            )

    def end(self) -> None:
        """Ends the processes; their clients are told."""
        with self._lock:
            for process in self._processes:
                process.kill()

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path.partition("?")[0] == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if not allowed(request, self._token):
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, REFUSED)
        if self._connected >= self._clients:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, f"{self._full()}\n")
        return None

    def _talk(self, connection: ServerConnection) -> None:
        number, farewell = next(self._numbers), "left"
        log(f"client {number} connected from {connection.remote_address}")
        try:
            with self._place():
                data = self._first(connection.recv())
                with self._started() as process:
                    while True:
                        connection.send(process.ask_bytes(data, START_S))
                        data = _binary(connection.recv())
        except ConnectionClosed:
            pass
        except KinoiseError as error:
            farewell = f"was cut off: {error}"
            with suppress(ConnectionClosed):
                connection.send(str(error))
        finally:
            log(f"client {number} {farewell}")

    @contextmanager
    def _place(self) -> Iterator[None]:
        """One of the places for clients. Raises KinoiseError when all are taken: several clients may have been let in for one.

        It is taken here and not in `_admit`, after which a handshake can still fail without a word to us.
        """
        with self._lock:
            if self._connected >= self._clients:
                raise KinoiseError(self._full())
            self._connected += 1
        try:
            yield
        finally:
            with self._lock:
                self._connected -= 1

    def _full(self) -> str:
        return f"{self._clients} clients are connected already: ask again later, or start the server with more clients="

    @contextmanager
    def _started(self) -> Iterator[Process]:
        process = Process(sys.executable)
        with self._lock:
            self._processes.add(process)
        try:
            yield process
        finally:
            with self._lock:
                self._processes.discard(process)
            process.close()

    def _first(self, frame: str | bytes) -> bytes:
        """A conversation's first message, which has to make one of the tasks that are served."""
        data = _binary(frame)
        message = unpack(data, LIMITS)
        if message.get("call") != "make" or message.get("task") not in self._tasks or message.get("mapping") is not None:
            raise KinoiseError(f"'{message.get('task')}' is not served here: {', '.join(self._tasks)}")
        return data


def _binary(frame: str | bytes) -> bytes:
    if isinstance(frame, str):
        raise WireError("expected a binary message (msgpack), came a text")
    return frame
