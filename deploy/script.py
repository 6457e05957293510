"""A recorded run's clock, robot and inference, read from its trace: they say what they said, and check what they are told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np

from ..spec import Plan, Spec
from ..wire import WireError, pack
from .guards import Action
from .inference import Reply, Request
from .recording import Names
from .records import NUMBER, reading_of, reply_of, request_record
from .robot import ObservationTimeout, Reading
from .trace import TraceError


class Difference(Exception):
    """The controller did something else than in the recorded run."""


class Raised(Exception):
    """What the recorded run's robot, or a signal, raised."""


class CutShort(Exception):
    """The trace has ended, and the run went on."""


class Script:
    """The recorded events, handed out one after another to a controller that has to ask for them in the same order.

    `counts` holds how many of each kind there were so far. `ended` is what ends the replay: Difference, at the first call that
    is not the recorded one, CutShort or TraceError; every later call raises it again, as the controller makes on its way out.
    """

    def __init__(self, events: Iterator[tuple[str, Any]]) -> None:
        self._events = events
        self._next = next(events, None)
        self.counts: Counter[str] = Counter()
        self.ended: Exception | None = None

    def told(self, kind: str, *kinds: type) -> Any:
        """What the recorded controller was told by a call of that kind. Raises what that call raised.

        Raises TraceError when it is none of the types `kinds`.
        """
        self._raise(kind)
        value = self._take(kind)
        if not isinstance(value, kinds):
            self.end(TraceError(f"the trace is damaged: '{kind}' holds a {type(value).__name__}"))
        return value

    def does(self, kind: str, value: Any = None) -> None:
        """Holds a call against the recorded one, bit for bit. Raises what the recorded call raised."""
        wanted = self._take(kind, value)
        if pack({"": wanted}) != pack({"": value}):
            self._differ(kind, wanted, kind, value)
        self._raise(kind)

    def finish(self) -> None:
        """Notes a difference when there are events left."""
        if self._next is not None and self.ended is None:
            self.ended = self._difference(_shown(*self._next), "the end of the run")

    def end(self, why: Exception) -> NoReturn:
        """Ends the replay."""
        self.ended = self.ended or why
        raise self.ended

    def _take(self, kind: str, value: Any = None) -> Any:
        if self.ended is not None:
            raise self.ended
        if self._next is None:
            self.end(CutShort())
        found, wanted = self._next
        if found != kind:
            self._differ(found, wanted, kind, value)
        try:
            self._next = next(self._events, None)
        except TraceError as error:
            self.end(error)
        self.counts[kind] += 1
        return wanted

    def _differ(self, wanted_kind: str, wanted: Any, kind: str, value: Any) -> NoReturn:
        self.end(self._difference(_shown(wanted_kind, wanted), _shown(kind, value) + _apart(wanted, value)))

    def _difference(self, wanted: str, got: str) -> Difference:
        return Difference(f"event {self.counts.total()}, {self.counts['command']} commands in: wanted {wanted}, got {got}")

    def _raise(self, kind: str) -> None:
        if self._next is None or self._next[0] != "raised" or not isinstance(self._next[1], dict):
            return
        what = self._next[1]
        if what.get("by") == kind:
            self._take("raised")
            text = str(what.get("text"))
            raise ObservationTimeout(text) if what.get("name") == ObservationTimeout.__name__ else Raised(text)


def _apart(wanted: Any, value: Any) -> str:
    """Which entries of two dictionaries differ: `_shown` leaves out what is long."""
    if not isinstance(wanted, dict) or not isinstance(value, dict):
        return ""
    keys = [key for key in {**wanted, **value} if pack({"": wanted.get(key)}) != pack({"": value.get(key)})]
    return f": {', '.join(keys)} differ{'s' * (len(keys) == 1)}"


def _shown(kind: str, value: Any) -> str:
    """A call in one line; of a dictionary only what is short."""
    if isinstance(value, np.ndarray):
        return f"{kind} {np.array2string(value, precision=9, separator=', ', threshold=20, max_line_width=1000)}"
    if isinstance(value, dict):
        short = {key: item for key, item in value.items() if not isinstance(item, dict | np.ndarray)}
        return f"{kind} {short}"
    return kind if value is None else f"{kind} {value!r}"


class ScriptClock:
    def __init__(self, script: Script) -> None:
        self._script = script

    def now(self) -> float:
        return self._script.told("now", *NUMBER)

    def sleep_until(self, deadline: float) -> None:
        self._script.does("sleep", deadline)


class ScriptRobot:
    """Shows the recorded readings."""

    def __init__(self, script: Script, spec: Spec, names: Names) -> None:
        self.spec, self._script, self._names = spec, script, names

    def observe(self) -> Reading:
        record = self._script.told("observe", dict)
        try:
            reading = reading_of(record)
        except WireError as error:
            self._script.end(TraceError(f"the trace is damaged: {error}"))
        self._names.add(reading)
        return reading

    def command(self, action: Action) -> None:
        self._script.does("command", action)

    def stop(self) -> None:
        self._script.does("stop")


class ScriptInference:
    """Answers as the recorded one did; `answered` gets every question that a plan came to, with that plan."""

    def __init__(self, script: Script, names: Names, answered: Callable[[Request, Plan], None]) -> None:
        self._script, self._names, self._answered = script, names, answered
        self._request: Request | None = None

    @property
    def busy(self) -> bool:
        return self._script.told("busy", bool)

    def submit(self, request: Request) -> None:
        self._request = request
        self._script.does("submit", request_record(request, self._names.of(request.readings)))

    def poll(self) -> Reply | None:
        record = self._script.told("poll", dict, type(None))
        if record is None:
            return None
        if self._request is None:
            self._script.end(TraceError("the trace is damaged: it holds an answer before any question"))
        try:
            reply = reply_of(record, self._request)
        except WireError as error:
            self._script.end(TraceError(f"the trace is damaged: {error}"))
        if reply.plan is not None:
            self._answered(self._request, reply.plan)
        return reply

    def close(self) -> str:
        return self._script.told("close", str)


class ScriptRestartable(ScriptInference):
    """Of an inference that could be begun again."""

    def restart(self) -> None:
        self._script.does("restart")
