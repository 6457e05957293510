"""What all servers share: who may use them, and what they say on standard error."""

from __future__ import annotations

import errno
import hmac
import ipaddress
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from websockets.http11 import Request

from ..config import UsageError
from ..spec import KinoiseError

REFUSED = "expected the header 'Authorization: Api-Key TOKEN'\n"
LONGEST = 500


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address. A name other than localhost is taken for one that others reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_access(host: str, port: int, token: str | None, insecure: bool) -> None:
    """Raises UsageError for a port or a token that can't be, and for an address that others reach without a token."""
    if not 0 <= port < 2**16:
        raise UsageError(f"port={port}: expected at least 0 and below 65536")
    if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
        raise UsageError("token: expected printable ASCII characters, at least one of them no blank")
    if token is None and not insecure and not is_loopback(host):
        raise UsageError(
            f"host={host} can be reached from other machines: give token=..., or insecure=true if anyone there may use it"
        )


def allowed(request: Request, token: str | None) -> bool:
    """Whether a client has said the token, where there is one."""
    if token is None:
        return True
    given = request.headers.get_all("Authorization")
    return len(given) == 1 and hmac.compare_digest(given[0].encode(errors="surrogateescape"), f"Api-Key {token}".encode())


@contextmanager
def listening(host: str, port: int) -> Iterator[None]:
    """Says what to do where an address can't be had."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise KinoiseError(f"port={port} on {host} is in use: take another port=, or end the server that has it") from error
        raise KinoiseError(f"can't listen on host={host} port={port}: {error.strerror or error}") from error


def log(line: str) -> None:
    """One line on stderr, whatever a client's words in it would do to a terminal."""
    plain = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in line[:LONGEST])
    print(f"{time.strftime('%H:%M:%S')} {plain}", file=sys.stderr, flush=True)
