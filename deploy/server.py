"""A policy behind a websocket: openpi's protocol, one conversation a client, all planning in one thread beside them.

On connect the server says what it serves; every message is a question and is answered by a plan. An error is a text frame,
after which that connection is closed and no other. Plain HTTP on the same port: `/healthz` and `/metrics`.
"""

from __future__ import annotations

import asyncio
import http
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import torch
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from ..policies.base import Policy
from ..spec import KinoiseError
from ..wire import Limits, WireError, pack, unpack
from .batching import Answer, Batcher, connection_generator
from .messages import Question, Reader, Served, answer_of
from .metrics import Metrics
from .serving import REFUSED, allowed, listening

PATIENCE = 10.0

# websockets logs every broken handshake with its stack; what a server's owner has to know goes through `log`.
_quiet = logging.getLogger("kinoise.websockets")
_quiet.setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Options:
    """How a server serves.

    Args:
        token: what clients have to send as `Authorization: Api-Key TOKEN`; None asks for nothing.
        seed: connection n draws its noise from a generator that depends on (seed, n) alone.
        batch: questions that may share a plan.
        wait: seconds that a question waits for others, at most, when more than one client is connected.
        clients: that may be connected at once.
        limits: of one message.
        threads: torch's threads; None leaves torch's own number.
    """

    token: str | None = None
    seed: int = 0
    batch: int = 8
    wait: float = 0.002
    clients: int = 64
    limits: Limits = field(default_factory=Limits)
    threads: int | None = None


class PolicyServer:
    """Serves one policy, once.

    Args:
        policy: in eval mode.
        served: what clients are told.
        log: takes a line for each thing that happens.
    """

    def __init__(
        self, policy: Policy, served: Served, options: Options = Options(), log: Callable[[str], None] = lambda line: None
    ) -> None:
        self.metrics = Metrics()
        self._options, self._log = options, log
        self._policy, self._read, self._hello = policy, Reader(policy), pack(served.to_message())
        self._numbers = itertools.count()
        self._idle: set[ServerConnection] = set()
        self._stopping = False

    async def run(self, host: str, port: int, stop: asyncio.Event, ready: Callable[[int], None]) -> None:
        """Serves until `stop` is set, then takes nothing new and finishes what is being planned (for 10 s at most).

        `ready` gets the port, which the system chooses where `port` is 0. Raises KinoiseError when it can't be had.
        """
        options = self._options
        self._batcher = Batcher(self._policy, rows=options.batch, wait=options.wait, threads=options.threads)
        try:
            with listening(host, port):
                server = await serve(
                    self._talk,
                    host,
                    port,
                    process_request=self._http,
                    origins=[None],  # browsers send one: no web page may reach a robot's policy by the user's loopback
                    compression=None,
                    max_size=options.limits.message,
                    max_queue=1,
                    server_header=None,
                    logger=_quiet,
                )
            try:
                ready(next(iter(server.sockets)).getsockname()[1])
                await stop.wait()
            finally:
                await self._end(server)
        finally:
            if not self._batcher.close(1.0):
                self._log("a plan was left unfinished")

    async def _end(self, server: Server) -> None:
        self._stopping = True
        server.close(close_connections=False)
        closing = [asyncio.ensure_future(item.close(CloseCode.GOING_AWAY, "the server ends")) for item in self._idle]
        try:
            async with asyncio.timeout(PATIENCE):
                await server.wait_closed()
        except TimeoutError:
            for connection in server.connections:
                connection.transport.abort()
        finally:
            for task in closing:
                task.cancel()

    def _http(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answers plain HTTP, and whoever may not connect; None lets the websocket begin."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if not allowed(request, self._options.token):
            self.metrics.errors["unauthorized"] += 1
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, REFUSED)
        if path == "/metrics":
            response = connection.respond(http.HTTPStatus.OK, self.metrics.text())
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = "text/plain; version=0.0.4; charset=utf-8"
            return response
        if self.metrics.clients >= self._options.clients:
            self.metrics.errors["full"] += 1
            text = f"{self._options.clients} clients are connected: no more are taken\n"
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, text)
        return None

    async def _talk(self, connection: ServerConnection) -> None:
        """One client's conversation, from its first message to its last."""
        number = next(self._numbers)
        gen = connection_generator(self._options.seed, number)
        self._count(+1)
        self._log(f"client {number} connected from {_peer(connection)}")
        farewell = "left"
        try:
            await connection.send(self._hello)
            await self._converse(connection, gen)
        except ConnectionClosed as closed:
            if closed.sent and closed.sent.code == CloseCode.MESSAGE_TOO_BIG:
                self.metrics.errors["oversized"] += 1
                farewell = f"was cut off: {closed.sent.reason}"
        except Exception as error:
            malformed = isinstance(error, WireError)
            self.metrics.errors["malformed" if malformed else "planning"] += 1
            said = str(error) if isinstance(error, KinoiseError) else f"planning failed: {type(error).__name__}: {error}"
            farewell = f"was cut off: {said}"
            with suppress(ConnectionClosed):
                await connection.send(said)
                await connection.close(CloseCode.POLICY_VIOLATION if malformed else CloseCode.INTERNAL_ERROR)
        finally:
            self._idle.discard(connection)
            self._count(-1)
            self._log(f"client {number} {farewell}")

    def _count(self, change: int) -> None:
        self.metrics.clients += change
        self.metrics.connections += max(0, change)
        self._batcher.company = self.metrics.clients

    async def _converse(self, connection: ServerConnection, gen: torch.Generator) -> None:
        before: float | None = None
        while not self._stopping:
            self._idle.add(connection)
            frame = await connection.recv()
            self._idle.discard(connection)
            began = time.monotonic()
            if isinstance(frame, str):
                raise WireError("expected a binary message (msgpack), came a text")
            question = self._read(unpack(frame, self._options.limits))
            answer = await asyncio.wrap_future(self._batcher.ask(question, gen))
            await connection.send(_message(question, answer, time.monotonic() - began, before))
            before = time.monotonic() - began
            self.metrics.requests += 1
            self.metrics.latency.add(before)
            self.metrics.planning.add(answer.seconds)
            self.metrics.rows.add(answer.rows)
        await connection.close(CloseCode.GOING_AWAY, "the server ends")


def _message(question: Question, answer: Answer, seconds: float, before: float | None) -> bytes:
    """An answer's bytes."""
    planning = {"infer_ms": answer.seconds * 1e3, **{f"{name}_ms": time * 1e3 for name, time in answer.plan.timing.items()}}
    timing = {"infer_ms": seconds * 1e3, "wait_ms": answer.waited * 1e3, "rows": answer.rows}
    message = answer_of(answer.plan, planning, timing if before is None else {**timing, "prev_total_ms": before * 1e3})
    return pack(message if question.id is None else {**message, "id": question.id})


def _peer(connection: ServerConnection) -> str:
    address = connection.remote_address
    return f"{address[0]}:{address[1]}" if address else "somewhere"


@contextmanager
def background(server: PolicyServer, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serves from a thread of this process while inside, and yields the server's URL. Raises what `PolicyServer.run` raises."""
    begun, place, errors = threading.Event(), list[int](), list[BaseException]()
    stops: list[Callable[[], object]] = []

    def ready(port: int) -> None:
        place.append(port)
        begun.set()

    async def serving() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        stops.append(lambda: loop.call_soon_threadsafe(stop.set))
        await server.run(host, port, stop, ready)

    def work() -> None:
        try:
            asyncio.run(serving())
        except BaseException as error:
            errors.append(error)
        finally:
            begun.set()

    thread = threading.Thread(target=work, name="server", daemon=True)
    thread.start()
    begun.wait()
    try:
        if place:
            yield f"ws://{host}:{place[0]}"
    finally:
        with suppress(RuntimeError):  # it has ended by itself
            stops[0]()
        thread.join()
    if errors:
        raise errors[0]
