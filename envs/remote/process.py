"""A process with another interpreter at the other end of a pipe: started, asked, and ended when it dies or hangs."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ...spec import KinoiseError
from ...wire import Limits, pack, unpack

START = Path(__file__).with_name("start.py")
# A step's pictures are far larger than a policy's questions, and an initial state may be a long list of numbers.
LIMITS = Limits(message=256 << 20, array=64 << 20, items=1 << 18, depth=16, text=1 << 16)
GRACE_S = 2.0
"""How long a process that is told to end may take."""
TAIL = 2000
"""Bytes of what it last printed that an error shows."""
HIDDEN = ("PYTHONPATH", "PYTHONHOME")
"""Variables that would lead another interpreter to our packages."""


class Lost(KinoiseError):
    """The process ended, or didn't answer in time and was ended, or the connection to it broke."""


@runtime_checkable
class Line(Protocol):
    """A conversation with an environment's process."""

    def ask(self, message: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """The answer. Raises Lost when there is none within `seconds`, after which the line is dead."""
        ...

    def close(self) -> None: ...


class Process:
    """`python` with kinoise's environments in it, which ends with this process at the latest.

    Args:
        python: the interpreter; its packages are those of the environment.

    Raises KinoiseError when there is no such program.
    """

    def __init__(self, python: str) -> None:
        ours, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        hidden = () if Path(python).absolute() == Path(sys.executable).absolute() else HIDDEN
        rest = {name: value for name, value in os.environ.items() if name not in hidden}
        command = [python, "-u", "-X", "faulthandler", str(START), str(theirs.fileno())]
        try:
            # A session of its own: Ctrl-C is the main process's alone. The open stdin tells it when this process has gone.
            self._child = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                env=rest,
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise KinoiseError(f"{python} can't be started: {error.strerror or error}. Give the path of a Python.") from error
        finally:
            theirs.close()
        self._socket = ours
        self._pipe = Connection(os.dup(ours.fileno()))

    @property
    def pid(self) -> int:
        return self._child.pid

    def ask(self, message: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        return unpack(self.ask_bytes(pack(message), seconds), LIMITS)

    def ask_bytes(self, data: bytes, seconds: float) -> bytes:
        """`ask`, with messages that are packed already."""
        deadline = time.monotonic() + seconds
        try:
            self._limit(seconds)
            self._pipe.send_bytes(data)
            if self._pipe.poll(max(0.0, deadline - time.monotonic())):
                return self._pipe.recv_bytes(LIMITS.message)
        except BlockingIOError:
            pass  # it takes, or says, only part of a message
        except (EOFError, OSError):
            raise Lost(f"its process ended ({self._end(GRACE_S)})") from None
        self._end(0.0)
        raise Lost(f"its process did not answer within {seconds:g} s and was ended{self._tail()}")

    def kill(self) -> None:
        """Ends it at once; may be called while another thread asks, for which it is then lost."""
        self._child.kill()

    def close(self) -> None:
        self._end(GRACE_S)
        self._log.close()

    def _limit(self, seconds: float) -> None:
        """Bounds a write that the process doesn't take, and a read of which it has sent only a part."""
        whole, part = divmod(max(seconds, 0.001), 1)
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(whole), int(part * 1e6)))

    def _end(self, patience: float) -> str:
        """Ends it, by force after `patience` seconds; says how it ended, and what it printed last."""
        self._pipe.close()
        self._socket.close()
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(patience)
        self._child.kill()
        code = self._child.wait()
        if self._child.stdin is not None:
            with suppress(OSError):
                self._child.stdin.close()
        name = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return name + self._tail()

    def _tail(self) -> str:
        with suppress(ValueError):  # closed
            self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - TAIL))
            text = " ".join(self._log.read().decode(errors="replace").split())
            return f"; it printed last: {text}" if text else ""
        return ""
