"""A run of the control loop for the viewer: what was seen, planned and commanded, when, and how late."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...deploy.records import plan_of, reading_of
from ...deploy.trace import TraceError, TraceReader
from ...files import read_json
from ...spec import Feature, KinoiseError, Plan, Spec
from ...wire import WireError
from .recorder import Recorder

NEAR = 1e-6
"""Ticks that a time may be short of by rounding."""


def read_control(trace: Path) -> dict[str, Any] | None:
    """What `kinoise control` said of the run that left this trace; None where that isn't beside it.

    Raises KinoiseError when the file there is broken.
    """
    path = trace.with_name("control.json")
    if not path.is_file():
        return None
    found = read_json(path)
    said = found.get("trace") if isinstance(found, dict) else None
    mine = isinstance(said, dict) and (said.get("file"), said.get("bytes")) == (trace.name, trace.stat().st_size)
    return found if mine else None


def record_trace(path: Path, recorder: Recorder) -> None:
    """Times are seconds from the loop's first tick; what the warm-up did before is left out.

    Raises KinoiseError: no trace, a damaged one, or one of a run that ended before its first tick.
    """
    with TraceReader(path) as trace:
        spec, rate, policy = _header(trace)
        start = _start(trace)
    with TraceReader(path) as trace:
        told = Told(recorder, spec, 1 / rate, start)
        for kind, value in trace.events():
            told.event(kind, value)
        told.finish()
        recorder.page("summary", _summary(path, policy, rate, told, trace.end, read_control(path)))
    pictures = [f"observation/{key}" for key, item in spec.observations.items() if item.kind == "image"]
    states = [f"observation/{key}" for key, item in spec.observations.items() if item.kind == "state"]
    recorder.arrange(["summary"], pictures, ["command", "plan", *states, "latency", "loop"], ["log"])


def names_of(feature: Feature) -> tuple[str, ...]:
    """A line's name for each of a feature's numbers."""
    return feature.names or tuple(str(index) for index in range(feature.shape[0]))


class Told:
    """Takes a trace's events in order; single numbers are kept until `finish`, pictures and plans go at once.

    Args:
        period: of the loop, seconds.
        start: the first tick's time, seconds on the loop's clock.
    """

    def __init__(self, recorder: Recorder, spec: Spec, period: float, start: float) -> None:
        self._recorder, self._spec, self._period, self._start = recorder, spec, period, start
        self._now, self._deadline, self._asked = start, None, None
        self._series: dict[str, tuple[tuple[str, ...], list[float], list[np.ndarray]]] = {}
        self._begun, self._lanes = False, list[float]()
        self._episode: int | None = None
        self._seen: float | None = None
        self.commands, self.plans, self.errors, self.seconds = 0, 0, 0, list[float]()

    @property
    def _at(self) -> float:
        """Seconds from the first tick."""
        return self._now - self._start

    def event(self, kind: str, value: Any) -> None:
        """Raises TraceError for one that no run of the loop leaves."""
        try:
            getattr(self, f"_on_{kind}", lambda _: None)(value)
        except (WireError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise TraceError(f"the trace is damaged: '{kind}' holds something else than a run leaves ({error})") from error

    def finish(self) -> None:
        for path, (names, at, rows) in self._series.items():
            self._recorder.series(path, names, np.array(at), np.stack(rows))

    def _on_now(self, value: float) -> None:
        self._now = float(value)
        if self._deadline is not None:
            self._add("loop", ("begins late, ms",), self._deadline - self._start, [1e3 * (self._now - self._deadline)])
        self._deadline = None

    def _on_sleep(self, value: float) -> None:
        self._begun = self._begun or value == self._now == self._start
        self._deadline = float(value) if self._begun else None

    def _on_observe(self, value: Any) -> None:
        if not self._begun:
            return
        reading = reading_of(value)
        if reading.episode != self._episode:
            self._note(f"episode {reading.episode} begins" + (f": {reading.instruction}" if reading.instruction else ""))
            self._episode = reading.episode
        at = self._at if reading.time is None else reading.time - self._start
        if self._seen is not None and at <= self._seen:  # the sensors had nothing newer
            return
        self._seen = at
        if reading.time is not None:
            self._add("latency/reading", ("age of the reading, ms",), self._at, [1e3 * (self._at - at)])
        for key, feature in self._spec.observations.items():
            if feature.kind == "image":
                self._recorder.image(f"observation/{key}", at, reading.values[key])
            else:
                self._add(f"observation/{key}", names_of(feature), at, reading.values[key])

    def _on_command(self, value: Any) -> None:
        self.commands += 1
        self._add("command", names_of(self._spec.action), self._at, value)

    def _on_submit(self, value: Mapping[str, Any]) -> None:
        self._asked = value if self._begun else None

    def _on_poll(self, value: Mapping[str, Any] | None) -> None:
        if value is None or self._asked is None:
            return
        asked, self._asked = float(self._asked["time"]) - self._start, None
        if value["plan"] is None:
            self.errors += 1
            self._note(str(value["error"]), "ERROR")
            return
        plan, taken = plan_of(value["plan"]), float(value["seconds"])
        self.plans += 1
        self.seconds.append(taken)
        self._add("latency/plan", ("plan, ms",), self._at, [1e3 * taken])
        self._add("latency/delay", ("delay, ticks",), self._at, [np.floor((self._at - asked) / self._period + NEAR)])
        self._add("latency/nfe", ("network evaluations",), self._at, [plan.nfe])
        self._draw(plan, asked)

    def _on_raised(self, value: Mapping[str, Any]) -> None:
        self._note(f"{value['by']} raised {value['name']}: {value['text']}", "WARN" if value["by"] == "observe" else "ERROR")

    def _on_stop(self, _: None) -> None:
        self._note("the robot is stopped", "WARN")

    def _on_restart(self, _: None) -> None:
        self._note("planning is begun again", "WARN")

    def _draw(self, plan: Plan, begin: float) -> None:
        """The plan over the time that it is for, on a lane of its own among those that overlap it."""
        at = begin + self._period * np.arange(plan.actions.shape[1])
        lane = next((index for index, end in enumerate(self._lanes) if end < begin), len(self._lanes))
        self._lanes[lane:] = [float(at[-1]), *self._lanes[lane + 1 :]]
        self._recorder.series(f"plan/{lane}", names_of(self._spec.action), at, plan.actions[0].numpy().astype(np.float64))

    def _note(self, text: str, level: str = "INFO") -> None:
        self._recorder.note("log", self._at, text, level)

    def _add(self, path: str, names: tuple[str, ...], at: float, row: Any) -> None:
        _, times, rows = self._series.setdefault(path, (names, [], []))
        times.append(at)
        rows.append(np.asarray(row, np.float64))


def _header(trace: TraceReader) -> tuple[Spec, float, Mapping[str, Any]]:
    header = trace.header
    try:
        spec, rate = Spec.from_json(header["spec"]), float(header["controller"]["rate"])
    except (KeyError, TypeError, ValueError) as error:
        raise TraceError(f"{trace.path}: its header is damaged, or another kinoise wrote it ({error!r})") from error
    return spec, rate, {**(header.get("policy") or {}), "env": header.get("env")}


def _start(trace: TraceReader) -> float:
    """The first tick's time on the loop's clock: the loop looks at it, and then sleeps until that very time."""
    now = None
    for kind, value in trace.events():
        if kind == "sleep" and value == now:
            return float(value)
        now = value if kind == "now" else now
    raise KinoiseError(f"{trace.path}: the run ended before its first tick: there is nothing to see")


def _summary(
    path: Path,
    policy: Mapping[str, Any],
    rate: float,
    told: Told,
    end: Mapping[str, Any] | None,
    control: dict[str, Any] | None,
) -> str:
    rows = {
        "policy": policy.get("name"),
        "environment": policy.get("env"),
        "rate": f"{rate:g} Hz",
        "commands": told.commands,
        "plans": f"{told.plans}, {told.errors} failed",
        "plan, ms": f"median {1e3 * np.median(told.seconds):.1f}, most {1e3 * max(told.seconds):.1f}" if told.seconds else "-",
    }
    if end is None:
        rows["trace"] = "cut short: the run, or the recording, was killed"
    if control is not None:
        finished = [item["success"] for item in control["episodes"] if item["finished"]]
        rows["success"] = f"{sum(finished)} of {len(finished)} finished episodes"
        rows["guards"] = ", ".join(f"{count} {name}" for name, count in control["interventions"].items())
        rows["rungs"] = ", ".join(f"{count} {name}" for name, count in control["rungs"].items())
    return table(f"{path.name}", rows)


def table(title: str, rows: Mapping[str, Any]) -> str:
    """Two columns of Markdown."""
    lines = [f"| {name} | {'-' if value is None else str(value).replace('|', '/')} |" for name, value in rows.items()]
    return "\n".join([f"# {title}", "", "| | |", "|---|---|", *lines, ""])
