"""A policy on another machine: asked like one in this process, reconnected when the connection breaks."""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from http import HTTPStatus
from socket import SO_SNDTIMEO, SOL_SOCKET
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.frames import CloseCode
from websockets.sync.client import ClientConnection, connect

from ..spec import KinoiseError, Plan
from ..wire import Limits, pack, unpack
from .clock import Clock
from .inference import Request, ThreadInference
from .messages import Served, plan_of

# A spec of many named dimensions and their bounds is longer and deeper than any question.
ANSWERS = Limits(items=1 << 16, depth=8)
DIFFERENT = ("policy", "chunk", "history", "rate")


class ServerError(KinoiseError):
    """The server refused a question, or could not plan."""


class ServerTimeout(KinoiseError):
    """No answer, or no connection, in time."""


@dataclass(frozen=True)
class Backoff:
    """Seconds between attempts to connect: `first`, then twice the one before, never more than `longest`."""

    first: float = 0.05
    longest: float = 2.0


class PolicyClient:
    """A connection to `kinoise serve`, for one thread at a time.

    Args:
        url: `ws://host:port`, or `wss://...` behind a proxy that ends TLS.
        token: the server's, if it has one.
        timeout: seconds for the first connection, and for each plan with whatever connecting it takes.
        backoff: between attempts to connect.

    Raises:
        KinoiseError: the URL is none, or the server is no kinoise.
        ServerError: the token is wrong.
        ServerTimeout: nobody answers there.
    """

    def __init__(self, url: str, token: str | None = None, *, timeout: float = 10.0, backoff: Backoff = Backoff()) -> None:
        if not timeout > 0:
            raise KinoiseError(f"timeout={timeout}: expected seconds, more than 0")
        self._url, self._timeout, self._backoff = url, timeout, backoff
        self._headers = None if token is None else {"Authorization": f"Api-Key {token}"}
        self._numbers = itertools.count(1)
        self._stack = ExitStack()
        self._connection: ClientConnection | None = None
        self._served: Served | None = None
        self._closed = False
        self._connected(time.monotonic() + timeout)

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def served(self) -> Served:
        """What the server said when this client last connected."""
        assert self._served is not None
        return self._served

    def close(self) -> None:
        """Ends the connection, and a question under way in another thread."""
        self._closed = True
        self._drop()

    def _drop(self) -> None:
        self._connection = None
        self._stack.close()

    def plan(
        self,
        values: Mapping[str, np.ndarray],
        instruction: str = "",
        *,
        previous: Plan | None = None,
        elapsed: int = 0,
        prefix: int = 0,
        budget: float | None = None,
    ) -> Plan:
        """The plan for one observation.

        A question whose connection broke is asked once more on a new one, as long as there is time.

        Args:
            values: by the spec's keys, `[history, ...]` or a single step where history is 1.
            instruction: what to do; "" where the policy knows no language.
            previous, elapsed, prefix, budget: as for `Policy.plan`, with one row; the budget counts from its arrival.

        Raises:
            ServerError: with the server's words.
            ServerTimeout: after `timeout` seconds. An answer that comes later is thrown away.
            KinoiseError: a value that can't be sent, a server that now serves something else, a closed client.
        """
        if previous is None and (elapsed or prefix):
            raise KinoiseError(f"elapsed={elapsed}, prefix={prefix} are about the previous plan: give previous=")
        deadline, number = time.monotonic() + self._timeout, next(self._numbers)
        message: dict[str, Any] = {**values, "id": number}
        if instruction:
            message["prompt"] = instruction
        if budget is not None:
            message["budget"] = budget
        if previous is not None:
            message |= {"previous": previous.actions[0].numpy(), "elapsed": elapsed, "prefix": prefix}
            if previous.confidence is not None:
                message["previous_confidence"] = previous.confidence[0].numpy()
        data = pack(message)
        for last in (False, True):
            connection = self._connected(deadline)
            try:
                connection.send(data)
                return plan_of(self._answer(connection, number, deadline), self.served)
            except ConnectionClosed as closed:
                self._drop()
                if closed.rcvd and closed.rcvd.code == CloseCode.MESSAGE_TOO_BIG:
                    raise ServerError(f"the observation is too large for the server: {closed.rcvd.reason}") from closed
                if last:
                    raise ServerError(f"the connection to {self._url} broke twice over one question: {closed}") from closed
        raise AssertionError

    def _answer(self, connection: ClientConnection, number: int, deadline: float) -> dict[str, Any]:
        while True:
            try:
                frame = connection.recv(max(0.0, deadline - time.monotonic()))
            except TimeoutError as error:
                raise ServerTimeout(f"{self._url} did not answer within {self._timeout:g} s") from error
            if isinstance(frame, str):
                self._drop()
                raise ServerError(f"the server says: {frame}")
            answer = unpack(frame, ANSWERS)
            if answer.get("id") == number:  # others answer questions that were given up
                return answer

    def _connected(self, deadline: float) -> ClientConnection:
        delay, why = self._backoff.first, ""
        while self._connection is None:
            if self._closed:
                raise KinoiseError(f"the client of {self._url} was closed: make a new one")
            left = deadline - time.monotonic()
            if left <= 0:
                raise ServerTimeout(f"no connection to {self._url} within {self._timeout:g} s{why}")
            try:
                self._connect(left)
            except InvalidURI as error:
                raise KinoiseError(f"{self._url} is no address of a server: expected ws://host:port") from error
            except InvalidStatus as error:
                if error.response.status_code == HTTPStatus.UNAUTHORIZED:
                    raise ServerError(f"{self._url} wants a token, and not this one: give the server's token=") from error
                why = f": {error.response.body.decode(errors='replace').strip()}"
            except (OSError, InvalidHandshake, ConnectionClosed, TimeoutError) as error:
                why = f": {' '.join(str(error).split()) or type(error).__name__}"
            if self._connection is None:
                time.sleep(max(0.0, min(delay, deadline - time.monotonic())))
                delay = min(2 * delay, self._backoff.longest)
        return self._connection

    def _connect(self, seconds: float) -> None:
        """One attempt."""
        deadline = time.monotonic() + seconds
        with ExitStack() as stack:
            connection = stack.enter_context(
                connect(
                    self._url,
                    additional_headers=self._headers,
                    compression=None,
                    max_size=ANSWERS.message,
                    open_timeout=seconds,
                    close_timeout=1.0,
                    proxy=None,
                )
            )
            # Sending waits as long as the server's machine takes nothing, unless the system is told otherwise.
            whole, part = divmod(self._timeout, 1)
            connection.socket.setsockopt(SOL_SOCKET, SO_SNDTIMEO, struct.pack("@ll", int(whole), int(part * 1e6)))
            first = connection.recv(max(0.0, deadline - time.monotonic()))
            if isinstance(first, str):
                raise ServerError(f"the server says: {first}")
            served = Served.from_message(unpack(first, ANSWERS))
            self._require(served)
            self._stack, self._connection, self._served = stack.pop_all(), connection, served

    def _require(self, served: Served) -> None:
        """Refuses another policy than the one that this client was made with; other weights of it are taken."""
        if self._served is None:
            return
        self._served.spec.require(served.spec, ("policy served before", "one served now"))
        for name in DIFFERENT:
            mine, theirs = getattr(self._served, name), getattr(served, name)
            if mine != theirs:
                raise KinoiseError(f"{self._url} now serves {name}={theirs}; it was {mine}. Make a new client.")


class RemoteInference(ThreadInference):
    """A policy server behind the controller's loop: asked from a thread, so that the loop never waits.

    Args:
        client: used by this inference alone, and closed with it.
        patience: how long `close` waits for an answer under way, seconds.
    """

    def __init__(self, client: PolicyClient, *, patience: float = 2.0, clock: Clock | None = None) -> None:
        self._client = client
        super().__init__(self._ask, patience=patience, clock=clock)

    def close(self) -> str:
        trouble = super().close()
        self._client.close()
        return trouble

    def _ask(self, request: Request) -> Plan:
        spec = self._client.served.spec
        values = {key: np.stack([item.values[key] for item in request.readings]) for key in spec.observations}
        instruction = request.readings[-1].instruction if spec.language else ""
        told = {"previous": request.previous, "elapsed": request.elapsed, "prefix": request.prefix}
        return self._client.plan(values, instruction, budget=request.budget, **told)
