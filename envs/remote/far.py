"""An environment on another machine: the same messages as to a process, through the websocket of `kinoise serve-env`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from http import HTTPStatus
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import connect

from ...spec import KinoiseError
from ...wire import pack, unpack
from .process import LIMITS, Lost

TOKEN = "KINOISE_TOKEN"
OPEN_S = 10.0


class Far:
    """A line to `url`. Raises KinoiseError when nobody answers there or the token in KINOISE_TOKEN is not the server's."""

    def __init__(self, url: str) -> None:
        self._url, token, self._stack = url, os.environ.get(TOKEN), ExitStack()
        headers = None if token is None else {"Authorization": f"Api-Key {token}"}
        try:
            self._connection = self._stack.enter_context(
                connect(
                    url,
                    additional_headers=headers,
                    compression=None,
                    max_size=LIMITS.message,
                    open_timeout=OPEN_S,
                    close_timeout=1.0,
                    ping_interval=None,  # `ask` has its own limit
                    proxy=None,
                )
            )
        except InvalidURI as error:
            raise KinoiseError(f"{url} is no address of a server: expected ws://HOST:PORT") from error
        except InvalidStatus as error:
            if error.response.status_code == HTTPStatus.UNAUTHORIZED:
                raise KinoiseError(f"{url} wants a token, and not this one: set {TOKEN} to the server's token=") from error
            raise KinoiseError(f"{url}: {error.response.body.decode(errors='replace').strip()}") from error
        except (OSError, InvalidHandshake, ConnectionClosed, TimeoutError) as error:
            what = " ".join(str(error).split()) or type(error).__name__
            raise KinoiseError(f"no environment answers at {url}: {what}. Start one there: kinoise serve-env ENV") from error

    def ask(self, message: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        try:
            self._connection.send(pack(message))
            frame = self._connection.recv(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            self.close()
            raise Lost(f"{self._url} did not answer within {seconds:g} s") from None
        except ConnectionClosed as closed:
            raise Lost(f"the connection to {self._url} broke: {closed}") from closed
        if isinstance(frame, str):  # what ends a conversation: its process died there, or the message had no meaning
            self.close()
            raise Lost(f"{self._url} says: {frame}")
        return unpack(frame, LIMITS)

    def close(self) -> None:
        self._stack.close()
