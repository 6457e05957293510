"""Planning in a process of its own: the loop never shares its interpreter lock or its garbage collector with the policy."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any

from ..config import UsageError
from ..spec import KinoiseError
from ..wire import unpack
from .child import Child, Make, describe, packed
from .clock import Clock, MonotonicClock
from .inference import Reply, Request
from .records import RECORDS, plan_of

PAUSES_S = (0.0, 0.5, 1.0, 2.0, 5.0)
"""After a first process that died before it answered anything, a second one in a row, ...; the last is repeated."""


class ProcessInference:
    """Plans in a process that it starts, watches and starts again.

    When a process dies, the open question, or the next, is answered with an error that names its end, and another process is
    started. A question that comes meanwhile waits for it: its plan may have expired by then, which the controller sees by its
    time. The loop's calls never wait; `about` and `close` do.

    Args:
        make: called in the process; pickled, so a module's function or an instance of a module's class.
        threads: torch's threads there; None leaves torch's own number.
        patience: how long `close` waits for a plan under way, seconds.
    """

    def __init__(self, make: Make, *, threads: int | None = None, patience: float = 2.0, clock: Clock | None = None) -> None:
        self._patience, self._clock = patience, clock or MonotonicClock()
        self._asked: float | None = None
        self._keeper = _Keeper(make, threads, self._clock)
        self._keeper.start()

    @property
    def busy(self) -> bool:
        return self._asked is not None

    @property
    def ready(self) -> bool:
        """Whether a process is up that has built its planner."""
        child = self._keeper.child
        return child is not None and child.ready

    @property
    def pid(self) -> int | None:
        """Of the process, also while it is starting; None while there is none."""
        child = self._keeper.child
        return None if child is None else child.process.pid

    def about(self) -> Mapping[str, Any]:
        """What `make` says of its planner. Waits until the first process has built it.

        Raises KinoiseError when it could not: what `make` raised, or how the process died.
        """
        return self._keeper.about.result()

    def submit(self, request: Request) -> None:
        self._asked = self._clock.now()
        self._keeper.answered.clear()
        self._keeper.order((request, self._asked))

    def poll(self) -> Reply | None:
        try:
            reply = self._keeper.replies.get_nowait()
        except queue.Empty:
            return None
        self._asked = None
        return reply

    def restart(self) -> None:
        """Ends the process, whatever it is doing, and starts another; the open question is answered with an error.

        While one is starting, that one is left to it.
        """
        child = self._keeper.child
        self._keeper.order("restart")
        if child is not None and child.ready:
            child.process.kill()  # from here: the keeper may be stuck in sending to a process that takes nothing

    def close(self) -> str:
        keeper, child, trouble = self._keeper, self._keeper.child, ""
        if self._asked is not None and child is not None and child.ready and not keeper.answered.wait(self._patience):
            since = self._clock.now() - self._asked
            trouble = f"planning did not return: the last plan was asked for {since:.1f} s before its process was killed"
            child.process.kill()
        keeper.order("close")
        keeper.join()
        return trouble


class _Keeper(threading.Thread):
    """The thread that talks to the process, so that the loop doesn't.

    Everything without an underscore may be used from other threads.
    """

    def __init__(self, make: Make, threads: int | None, clock: Clock) -> None:
        super().__init__(name="inference", daemon=True)
        self.replies: queue.SimpleQueue[Reply] = queue.SimpleQueue()
        self.answered = threading.Event()
        self.about: Future[Mapping[str, Any]] = Future()
        self.child: Child | None = None
        self._make, self._threads, self._clock = make, threads, clock
        self._orders: queue.SimpleQueue[tuple[Request, float] | str] = queue.SimpleQueue()
        self._woken, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        self._question: tuple[Request, float] | None = None
        self._due: float | None = 0.0  # when a process is to be started
        self._earliest, self._failures = 0.0, 0
        self._ended = ""  # how the process before ended, while no question was told
        self._missing = "planning was given up"  # why there is no process that is ready
        self._closed = False

    def order(self, order: tuple[Request, float] | str) -> None:
        self._orders.put(order)
        with suppress(OSError):  # closed, or so full that the thread will wake anyway
            self._wake.send(b".")

    def run(self) -> None:
        try:
            while not self._closed:
                self._turn()
        finally:
            if self.child is not None:
                self.child.end()
            self.child = None
            if not self.about.done():
                self.about.set_exception(KinoiseError("planning was closed before its process had come up"))
            self._wake.close()
            self._woken.close()

    def _turn(self) -> None:
        now = time.monotonic()
        if self.child is None and self._due is not None and now >= self._due:
            self._start()
        child = self.child
        handles = [self._woken, *(() if child is None else (child.connection, child.process.sentinel))]
        came = wait(handles, None if child is not None or self._due is None else max(0.0, self._due - now))
        if self._woken in came:
            self._woken.recv(1 << 12)
            self._obey()
        if child is not None and child is self.child and (child.connection in came or child.process.sentinel in came):
            self._listen(child)

    def _start(self) -> None:
        self._due = None
        try:
            self.child = Child(self._make, self._threads)
        except Exception as error:  # no memory, too many processes or files, a factory that can't be pickled
            self._lost(KinoiseError(f"the planning process could not be started: {type(error).__name__}: {error}"))

    def _obey(self) -> None:
        with suppress(queue.Empty):
            while True:
                order = self._orders.get_nowait()
                if order == "close":
                    self._closed = True
                elif order == "restart":
                    self._restart()
                else:
                    assert not isinstance(order, str)
                    self._question = order
                    if self._ended:
                        self._answer(error=self._ended)
                    elif self.child is None:
                        self._due = self._due or self._earliest
                    elif self.child.ready:
                        self._ask(self.child)

    def _restart(self) -> None:
        if self.child is not None and self.child.ready:
            self._missing = "planning was given up"
            self.child.end(0.0)
            self.child = None
        self._answer(error=f"{self._missing}; another process is starting")
        if self.child is None:
            self._due = max(time.monotonic(), self._earliest)

    def _ask(self, child: Child) -> None:
        assert self._question is not None
        try:
            parts = packed(self._question[0])
        except Exception as error:  # a reading that can't be pickled
            self._answer(error=describe(error))
            return
        with suppress(OSError):  # a process that died is noticed by its end
            for part in parts:
                child.connection.send_bytes(part)

    def _listen(self, child: Child) -> None:
        try:
            message = unpack(child.connection.recv_bytes(), RECORDS) if child.connection.poll() else {}
        except (EOFError, OSError):
            message = {}
        except KinoiseError as error:
            message = {"plan": None, "error": f"planning failed: {error}"}
        if not message:
            self._lost(KinoiseError(f"the planning process ended: {child.end()}"))
        elif "failed" in message:
            child.end()
            self._lost((UsageError if message["usage"] else KinoiseError)(message["failed"]))
        elif "about" in message:
            child.ready = True
            if not self.about.done():
                self.about.set_result(message["about"])
            if self._question is not None:
                self._ask(child)
        else:
            self._failures = 0
            self._answer(message["plan"], message["error"])

    def _lost(self, error: KinoiseError) -> None:
        """There is no process any more. Another is started, by the next question where this one did not even come up."""
        self._earliest = time.monotonic() + PAUSES_S[min(self._failures, len(PAUSES_S) - 1)]
        if self.child is not None and self.child.ready:
            self._due = self._earliest
        self.child = None
        self._failures += 1
        if not self.about.done():
            self.about.set_exception(error)
        self._ended = self._missing = str(error)
        self._answer(error=self._ended)

    def _answer(self, plan: Any = None, error: str = "") -> None:
        if self._question is None:
            return
        request, asked = self._question
        self._question, self._ended = None, ""
        self.replies.put(Reply(request, None if plan is None else plan_of(plan), error, self._clock.now() - asked))
        self.answered.set()
