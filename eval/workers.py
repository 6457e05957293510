"""Simulators in processes of their own, each process hosting many slots.

The main process sends `Orders` down a pipe and gets one `Report` back for each, in order; several may be under way, so that
a process always has something to do. It also notes in shared memory which slot it is working on, so that when it dies that
one may be to blame and the others are not, and how much it has done: one that gets no further is ended. Nothing here imports
torch: a process is up in about a second and stays small.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from ctypes import c_int
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawValue
from typing import Any

import numpy as np

from ..envs.base import EnvLost, Values
from ..spec import KinoiseError
from .pulse import TIMEOUT_S, Pulse
from .slot import Job, Make, Outcome, Simulator, Slot, describe

# One thread a process: the processes are the parallelism, and two thread pools on the same cores slow each other badly.
THREADS = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
PATIENCE_S = 5.0
NOBODY = -1
STRIKES = 3
"""Episodes under which a process dies so often are given up: an accident doesn't come back, a simulator's bug does."""


class WorkerDied(Exception):
    """A worker process ended by itself or was ended; the message says how. Its slots are empty again, in a new process.

    Args:
        text: how it died.
        at: the slot that it was working on; None when it was on none.
    """

    def __init__(self, text: str, at: int | None = None) -> None:
        super().__init__(text)
        self.at = at


@dataclass(frozen=True)
class Orders:
    """What a worker is to do next.

    Args:
        build: slots to be given a simulator (task, whether it has to render), before anything else.
        actions: by slot, `[execute, action]` to carry out.
        start: by slot, the episode to begin.
    """

    build: Mapping[int, tuple[str, bool]] = field(default_factory=dict)
    actions: Mapping[int, np.ndarray] = field(default_factory=dict)
    start: Mapping[int, Job] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What came of orders.

    Args:
        built: by slot, what each simulator asked for says of itself.
        ended: by slot, the outcomes of episodes that are over.
        waiting: the slots of these orders whose episodes need actions now.
        values: their observations by key, `[len(waiting), history, ...]`.
        instructions: their instructions.
        lost: by slot, what was said of the process that had its environment and is gone; the episode has to be begun again.
    """

    built: dict[int, Simulator]
    ended: dict[int, Outcome]
    waiting: tuple[int, ...]
    values: Values
    instructions: tuple[str, ...]
    lost: dict[int, str] = field(default_factory=dict)


class Workers:
    """A number of worker processes. To be used in a `with` block, whose end ends them, however it comes about.

    Args:
        make: builds a simulator from a task and `render=`; sent to the processes by pickling, so a module's function.
        count: processes.
        timeout: s, for a simulator to be built, to be reset or to make a step; a process that takes longer has died, for
            all that follows.
    """

    def __init__(self, make: Make, count: int, timeout: float = TIMEOUT_S) -> None:
        self._workers = [_Worker(make, timeout) for _ in range(count)]

    def __len__(self) -> int:
        return len(self._workers)

    def send(self, worker: int, orders: Orders) -> None:
        self._workers[worker].send(orders)

    def receive(self, worker: int) -> Report:
        """The report on the oldest orders that are still unanswered.

        Raises:
            WorkerDied: the process is gone, and with it the episodes in its slots; a new one has taken its place. Raised
                once for each of the orders that were left unanswered.
            KinoiseError: a simulator could not be built, or a video could not be written.
        """
        return self._workers[worker].receive()

    def close(self, patience: float = PATIENCE_S) -> None:
        """Ends the processes; those that haven't ended by themselves after `patience` seconds are ended by force."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.end(patience)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(PATIENCE_S if kind is None else 0.0)


class _Worker:
    """One process, its pipe, and for each of the unanswered orders how the process died before it could (None: alive)."""

    def __init__(self, make: Make, timeout: float) -> None:
        self._make, self._timeout = make, timeout
        self._unanswered: deque[WorkerDied | None] = deque()
        self._start()

    def send(self, orders: Orders) -> None:
        # What a dead process said before it died is still to be received, so its end is noticed there.
        with suppress(OSError):
            self.connection.send(orders)
        self._unanswered.append(None)

    def receive(self) -> Report:
        died = self._unanswered.popleft()
        if died is None:
            try:
                idle = self._idle()
                reply = None if idle else self.connection.recv()
            except (EOFError, OSError):
                idle, reply = False, None
            if reply is None:
                died = self._restart(idle)
            else:
                if isinstance(reply, str):
                    raise KinoiseError(reply)
                return reply
        raise died

    def end(self, patience: float) -> None:
        end(self.process, patience)

    def _idle(self) -> bool:
        """Waits for an answer; whether the process did nothing for so long that there won't be one."""
        self._pulse.watch()
        while not self.connection.poll(self._pulse.tick):
            if self._pulse.hangs:
                return True
        return False

    def _start(self) -> None:
        self._at, self._pulse = RawValue(c_int, NOBODY), Pulse(self._timeout)
        self.process, self.connection = start(serve, self._make, self._at, self._pulse.shared, name="kinoise-simulators")

    def _restart(self, idle: bool) -> WorkerDied:
        self.connection.close()
        text = f"the simulators' process {ended(self.process, self._timeout if idle else None)}"
        died = WorkerDied(text, None if self._at.value == NOBODY else self._at.value)
        self._unanswered = deque(died for _ in self._unanswered)
        self._start()
        return died


def start(serve: Callable[..., None], *arguments: Any, name: str) -> tuple[BaseProcess, Connection]:
    """A new process that runs `serve(connection, *arguments)`, and this end of that connection.

    It ends with this process at the latest: `serve` is to return when its connection is closed, and has PATIENCE_S for it.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_served, args=(serve, theirs, *arguments), daemon=True, name=name)
    with _start_conditions():
        process.start()
    theirs.close()
    return process, ours


def _served(serve: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    serve(*arguments)


def _end_with_parent() -> None:
    """Nobody else would end a process that hangs, when this one's parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    time.sleep(PATIENCE_S)
    os._exit(1)


def end(process: BaseProcess, patience: float) -> None:
    """Ends a process; by force when it hasn't ended by itself after `patience` seconds."""
    process.join(patience)
    for stop in (process.terminate, process.kill):
        if process.exitcode is None:
            stop()
            process.join(PATIENCE_S)


def ended(process: BaseProcess, hung: float | None) -> str:
    """Ends a process that is gone, or hangs; how it ended, as a predicate.

    Args:
        hung: after so many seconds in which it got no further; None: it is gone by itself.
    """
    if hung is not None:
        process.kill()
    end(process, PATIENCE_S)
    if hung is not None:
        return f"did nothing for {hung:g} s and was ended (timeout=)"
    code = process.exitcode or 0
    return f"died (signal {signal.Signals(-code).name})" if code < 0 else f"died (exit code {code})"


@contextmanager
def _start_conditions() -> Iterator[None]:
    """What a process started now inherits: one thread a process, and SIGINT blocked, so that Ctrl-C is the main's alone."""
    resource_tracker.ensure_running()  # it unblocks SIGINT when it is first started, which would be in the block
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(THREADS)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def serve(connection: Connection, make: Make, at: Any, done: Any) -> None:
    """The worker process: answers orders until the other end of the pipe is closed, which the end of the main process does."""
    slots: dict[int, Slot] = {}
    done.value += 1
    try:
        while True:
            orders = connection.recv()
            try:
                reply = obey(orders, slots, make, at, done)
            except Exception as error:
                reply = describe(error)
            connection.send(reply)
    except (EOFError, OSError):
        return


def obey(orders: Orders, slots: dict[int, Slot], make: Make, at: Any, done: Any) -> Report:
    """Carries out `orders` on this process's slots. Raises what building a simulator or writing a video raises.

    Args:
        at, done: shared with the main process; their `value` says which slot is being worked on, and how often it got on.
    """
    ours = sorted({*orders.build, *orders.actions, *orders.start})
    built: dict[int, Simulator] = {}
    ended: dict[int, Outcome] = {}
    lost: dict[int, str] = {}

    def beat() -> None:
        done.value += 1

    for slot in ours:
        slots.setdefault(slot, Slot(make, beat))
    for slot, (task, render) in orders.build.items():
        at.value = slot
        beat()
        built[slot] = slots[slot].build(task, render)
    for slot in (*orders.actions, *orders.start):
        at.value = slot
        beat()
        try:
            begun = slot in orders.start
            outcome = slots[slot].begin(orders.start[slot]) if begun else slots[slot].advance(orders.actions[slot])
        except EnvLost as error:
            lost[slot] = describe(error)
        else:
            if outcome is not None:
                ended[slot] = outcome
    at.value = NOBODY
    waiting = tuple(slot for slot in ours if slots[slot].waiting)
    seen = [slots[slot].observation() for slot in waiting]
    values = {key: np.stack([item[key] for item in seen]) for key in seen[0]} if seen else {}
    return Report(built, ended, waiting, values, tuple(slots[slot].instruction for slot in waiting), lost)
