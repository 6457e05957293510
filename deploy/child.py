"""The planning process itself, and this end of the pipe to it.

What goes down is pickled: the planner's factory when the process starts, then requests, whose pictures the pipe takes from
where they lie. Its other end is our own child and gets what this process wrote a moment ago, so nobody else's bytes are
unpickled. What comes back are messages of `wire`, which unpickles nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

import torch

from ..config import UsageError
from ..spec import KinoiseError
from ..wire import pack
from .inference import Planner, Request
from .records import plan_of, plan_record

GRACE_S = 1.0
"""How long a process that is told to end may take."""
LONGEST = 2000
"""Characters of an error's words."""

Make = Callable[[], tuple[Planner, Mapping[str, Any]]]
"""Builds, in the process, the planner, and what there is to say about it in numbers, texts, lists and maps."""


class Child:
    """A process, and our end of the pipe to it; `ready` once it has built its planner."""

    def __init__(self, make: Make, threads: int | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.ready = False
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, make, threads), daemon=True, name="kinoise-planning")
        resource_tracker.ensure_running()  # it unblocks SIGINT when it is first started
        # A process starts with the signals blocked that its parent's thread blocks: Ctrl-C is then the main process's alone.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()

    def end(self, patience: float = GRACE_S) -> str:
        """Ends the process, by force after `patience` seconds; says how it ended."""
        self.connection.close()
        self.process.join(patience)
        self.process.kill()
        self.process.join()
        code = self.process.exitcode or 0
        if code >= 0:
            return f"exit code {code}"
        name = signal.Signals(-code).name
        return f"signal {name}" + (", from outside or because memory ran out" if name == "SIGKILL" else "")


def serve(connection: Connection, make: Make, threads: int | None) -> None:
    """The process: says what it has built, then answers questions one after another."""
    questions: queue.SimpleQueue[list[bytes]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, questions), daemon=True).start()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        planner, about = make()
        message = pack({"about": dict(about)})
    except Exception as error:
        text = str(error) if isinstance(error, KinoiseError) else describe(error)
        connection.send_bytes(pack({"failed": text, "usage": isinstance(error, UsageError)}))
        return
    while True:
        with suppress(OSError):  # nobody listens any more: the other thread is about to end the process
            connection.send_bytes(message)
        question = questions.get()
        try:
            message = pack({"plan": plan_record(planner(_unpacked(question))), "error": ""})
        except Exception as raised:  # whatever it is, the loop goes on and the run reports it
            message = pack({"plan": None, "error": describe(raised)})


def _read(connection: Connection, questions: queue.SimpleQueue[list[bytes]]) -> None:
    """Takes questions, and ends the process at once when the other end of the pipe is closed, as its parent's death does."""
    with suppress(EOFError, OSError):
        while True:
            first = connection.recv_bytes()
            questions.put([first, *(connection.recv_bytes() for _ in range(int.from_bytes(first[:4])))])
    os._exit(0)


def packed(request: Request) -> list[bytes | memoryview]:
    """The request in parts: how many follow the first (4 bytes) and the request without its arrays; then each of those.

    Copying large pictures into one message would hold the interpreter for milliseconds, which the loop would feel.
    """
    arrays: list[pickle.PickleBuffer] = []
    previous = None if request.previous is None else plan_record(request.previous)
    data = pickle.dumps({**vars(request), "previous": previous}, 5, buffer_callback=arrays.append)
    return [len(arrays).to_bytes(4) + data, *(item.raw() for item in arrays)]


def _unpacked(parts: list[bytes]) -> Request:
    record = pickle.loads(parts[0][4:], buffers=parts[1:])
    return Request(**{**record, "previous": None if record["previous"] is None else plan_of(record["previous"])})


def describe(error: Exception) -> str:
    """What planning raised, in one line."""
    return f"planning failed: {type(error).__name__}: {' '.join(str(error).split())[:LONGEST]}"
