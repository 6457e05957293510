"""Traces of control loops on fakes, for tests: how they are recorded, read, rewritten and replayed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from kinoise.deploy.controller import Controller
from kinoise.deploy.inference import Request
from kinoise.deploy.recording import recording, require_whole
from kinoise.deploy.replay import Outcome, replay
from kinoise.deploy.trace import TraceReader, TraceWriter
from kinoise.spec import Plan
from loop_fakes import CHUNK, EXECUTE, PERIOD, Setup


def record(path: Path, setup: Setup, ticks: int = 40, stopped: Callable[[], bool] = lambda: False, **more: Any) -> Path:
    """Runs the controller of `setup` with a tape running."""
    own, history = setup.controller.config, setup.controller._history.length
    header = {"seconds": ticks * PERIOD, "execute": EXECUTE, "history": history, "controller": asdict(own), **more}
    header["guards"] = asdict(setup.guards.config)
    with recording(path, header, setup.robot, setup.inference, setup.clock) as run:
        setup.controller = Controller(
            run.robot, run.inference, setup.guards, own, execute=EXECUTE, history=history, clock=run.clock
        )
        setup.inference.delay, delay = 0, setup.inference.delay  # thousands of looks for an answer add nothing
        setup.controller.prepare(run.stopped(stopped))
        setup.inference.delay = delay
        setup.controller.run(ticks * PERIOD, run.stopped(stopped))
    assert run.outcome is not None
    require_whole(run.outcome)
    return path


def again(path: Path, **more: Any) -> Outcome:
    with TraceReader(path) as trace:
        return replay(trace, **more)


def events(path: Path) -> list[tuple[str, Any]]:
    with TraceReader(path) as trace:
        return list(trace.events())


def rewrite(
    path: Path, place: Path, change: Callable[[list[tuple[str, Any]]], None] = lambda found: None, **header: Any
) -> Path:
    """The trace with other events, in the directory `place`."""
    with TraceReader(path) as trace:
        found, head = list(trace.events()), {**trace.header, **header}
    change(found)
    writer = TraceWriter(place / "changed.trace", head)
    for kind, value in found:
        writer.add(kind, value)
    assert not writer.close()["trouble"]
    return writer.path


def noise(request: Request) -> Plan:
    gen = torch.Generator().manual_seed(request.tick)
    return Plan(torch.randn(1, CHUNK, 3, generator=gen), 1 / 80, 3, confidence=torch.rand(1, CHUNK, 3, generator=gen))
