"""The controller's clock, robot and inference with a tape running: each passes every call on and writes down what it said.

The controller decides by what these three tell it and by nothing else, so what is written down is enough to run it again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ..spec import KinoiseError, Spec
from .clock import Clock, MonotonicClock
from .guards import Action
from .inference import Inference, Reply, Request, Restartable
from .records import reading_record, reply_record, request_record
from .robot import Reading, Robot
from .trace import TraceWriter

Result = TypeVar("Result")


class Names:
    """Observed readings by number, as long as somebody holds them: an `id` belongs to the newest that had it."""

    def __init__(self) -> None:
        self._count, self._numbers = 0, dict[int, int]()

    def add(self, reading: Reading) -> None:
        self._numbers[id(reading)] = self._count
        self._count += 1

    def of(self, readings: tuple[Reading, ...]) -> list[Any]:
        """The number of each; its record for one that was not observed."""
        return [self._numbers[id(item)] if id(item) in self._numbers else reading_record(item) for item in readings]


class Tape:
    """What a run's partners write to, from the thread that made it; calls from other threads leave no trace."""

    def __init__(self, writer: TraceWriter) -> None:
        self.names = Names()
        self._writer, self._thread = writer, threading.get_ident()

    def told(self, kind: str, ask: Callable[[], Result], record: Callable[[Result], tuple[Any, int]]) -> Result:
        """Writes what `ask` returns, as its record and size."""
        try:
            result = ask()
        except BaseException as error:
            self._raised(kind, error)
            raise
        if threading.get_ident() == self._thread:
            self._writer.add(kind, *record(result))
        return result

    def does(self, kind: str, act: Callable[[], None], value: Any = None, size: int = 0) -> None:
        """Writes `value` down, then calls `act`."""
        if threading.get_ident() == self._thread:
            self._writer.add(kind, value, size)
        try:
            act()
        except BaseException as error:
            self._raised(kind, error)
            raise

    def _raised(self, kind: str, error: BaseException) -> None:
        if threading.get_ident() == self._thread:
            self._writer.add("raised", {"by": kind, "name": type(error).__name__, "text": str(error)})


class RecordedClock:
    def __init__(self, clock: Clock, tape: Tape) -> None:
        self._clock, self._tape = clock, tape

    def now(self) -> float:
        return self._tape.told("now", self._clock.now, lambda time: (time, 0))

    def sleep_until(self, deadline: float) -> None:
        self._tape.does("sleep", lambda: self._clock.sleep_until(deadline), deadline)


class RecordedRobot:
    def __init__(self, robot: Robot, tape: Tape) -> None:
        self._robot, self._tape = robot, tape

    @property
    def spec(self) -> Spec:
        return self._robot.spec

    def observe(self) -> Reading:
        reading = self._tape.told("observe", self._robot.observe, lambda item: (reading_record(item), _size(item)))
        self._tape.names.add(reading)
        return reading

    def command(self, action: Action) -> None:
        self._tape.does("command", lambda: self._robot.command(action), action.copy(), action.nbytes)

    def stop(self) -> None:
        self._tape.does("stop", self._robot.stop)


class RecordedInference:
    def __init__(self, inference: Inference, tape: Tape) -> None:
        self._inference, self._tape = inference, tape

    @property
    def busy(self) -> bool:
        return self._tape.told("busy", lambda: self._inference.busy, lambda busy: (busy, 0))

    def submit(self, request: Request) -> None:
        record = request_record(request, self._tape.names.of(request.readings))
        self._tape.does("submit", lambda: self._inference.submit(request), record)

    def poll(self) -> Reply | None:
        return self._tape.told("poll", self._inference.poll, lambda reply: (reply and reply_record(reply), 0))

    def close(self) -> str:
        return self._tape.told("close", self._inference.close, lambda trouble: (trouble, 0))


class RecordedRestartable(RecordedInference):
    """Of an inference that can be begun again, which the controller has to see."""

    def __init__(self, inference: Inference, restart: Callable[[], None], tape: Tape) -> None:
        super().__init__(inference, tape)
        self._restart = restart

    def restart(self) -> None:
        self._tape.does("restart", self._restart)


class Partners:
    """What a controller is given: `robot`, `inference`, `clock`; and afterwards `outcome`, what became of the trace.

    Args:
        robot, inference, clock: the run's own.
        writer: of the trace; None for a run that leaves none. The thread that runs the controller makes this.
    """

    def __init__(self, robot: Robot, inference: Inference, clock: Clock, writer: TraceWriter | None) -> None:
        self.robot, self.inference, self.clock = robot, inference, clock
        self.outcome: dict[str, Any] | None = None
        self._tape = None if writer is None else Tape(writer)
        if self._tape is not None:
            self.robot, self.clock = RecordedRobot(robot, self._tape), RecordedClock(clock, self._tape)
            self.inference = RecordedInference(inference, self._tape)
            if isinstance(inference, Restartable):
                self.inference = RecordedRestartable(inference, inference.restart, self._tape)

    def stopped(self, stopped: Callable[[], bool]) -> Callable[[], bool]:
        """What the controller asks whether to stop."""
        tape = self._tape
        return stopped if tape is None else lambda: tape.told("stopped", stopped, lambda value: (value, 0))


@contextmanager
def recording(
    path: Path | None, header: dict[str, Any], robot: Robot, inference: Inference, clock: Clock | None = None
) -> Iterator[Partners]:
    """The partners of a run that leaves a trace at `path`, whatever ends it; with None, of one that leaves none.

    Args:
        header: what there is to know about the run; the spec and whether the inference can be begun again are added.

    Raises:
        KinoiseError: `path` can't be written.
    """
    clock = clock or MonotonicClock()
    if path is None:
        yield Partners(robot, inference, clock, None)
        return
    own = {"spec": robot.spec.to_json(), "restartable": isinstance(inference, Restartable)}
    writer = TraceWriter(path, {**header, **own})
    partners = Partners(robot, inference, clock, writer)
    try:
        yield partners
    finally:
        partners.outcome = {"file": path.name, **writer.close()}


def require_whole(outcome: dict[str, Any] | None) -> None:
    """Raises KinoiseError when the trace that was asked for is not whole."""
    if outcome is not None and outcome["trouble"]:
        raise KinoiseError(f"{outcome['file']} lacks its last {outcome['lost']} events: {outcome['trouble']}")


def _size(reading: Reading) -> int:
    return sum(item.nbytes for item in reading.values.values())
