"""`kinoise control`: a trained policy in the real-time loop, on a simulator that doesn't wait for it."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import MISSING
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .. import envs
from ..config import UsageError, check_seed, parse
from ..files import output_directory, reserved, write_json
from ..policies.base import check_execute
from ..provenance import origin
from ..spec import KinoiseError
from .controller import Controller, ControllerConfig
from .guards import GuardConfig, Guards
from .inferences import Planning, PlanningConfig, planning
from .latency import KEPT, Record, percentiles
from .recording import recording, require_whole
from .robot import SimRobot, replay
from .video import write_video

ABOUT = """Runs the policy in wall-clock time and writes OUT/control.json: how punctual the loop was, how late plans came, what
the guards did and how the episodes ended. One action is one step of the simulator, whatever its own rate: at rate=20
Metaworld's world, which steps at 80 Hz, runs four times slower than life. SIGINT and SIGTERM end a run cleanly."""

FRAMES_PER_SECOND = 10
RESERVE, OF_PLAN = 1 << 20, 160
"""Bytes of the disk that are kept for control.json, whatever a trace takes: at least, half of it without the plans; of each."""


@dataclass
class Settings(ControllerConfig, PlanningConfig):
    env: str = field(default=MISSING, metadata={"help": "one task"})
    out: str | None = field(
        default=None, metadata={"help": "directory of the results; RUN/control if null, needed with server="}
    )
    seconds: float = field(default=20.0, metadata={"help": "how long to run"})
    seed: int = field(default=0, metadata={"help": "initial states are functions of it"})
    execute: int | None = field(default=None, metadata={"help": "control steps from plan to plan; the policy's if null"})
    trace: bool = field(default=False, metadata={"help": "write OUT/control.trace, which kinoise replay runs again"})
    video: bool = field(default=False, metadata={"help": "afterwards, carry the commands out again and film OUT/control.mp4"})
    guards: GuardConfig = field(default_factory=GuardConfig)

    def __post_init__(self) -> None:
        ControllerConfig.__post_init__(self)
        PlanningConfig.__post_init__(self)
        if not 0 < self.seconds < math.inf:
            raise UsageError(f"seconds={self.seconds}: expected a number above 0")
        if self.server is not None and self.out is None:
            raise UsageError("server= has no RUN that the results could go to: give out=DIR with it")
        check_seed(self.seed)

    @property
    def controller(self) -> ControllerConfig:
        """The loop's own part."""
        return ControllerConfig(**{item.name: getattr(self, item.name) for item in fields(ControllerConfig)})


def main(argv: Sequence[str]) -> int:
    """Exit codes: 0 well; 128 plus the signal's number when a signal ended the run.

    Raises KinoiseError when the run could not start, its plans being too late among the reasons, when planning failed at any
    time, when the fallback stopped the robot, or when no plan came in time.
    """
    settings = parse("control", Settings, argv, positional="run", about=ABOUT, choices={"env": envs.choices})
    out, task = Path(settings.out or Path(settings.run or "") / "control"), _task(settings.env)
    with planning(settings, settings.seed) as plans:
        make = partial(envs.showing(plans.served.spec), task)
        kept = reserved(out, _room(settings.seconds * settings.rate))
        with (
            output_directory(out),
            kept,
            closing(SimRobot(make, settings.rate, settings.seed, recorded=settings.video)) as robot,
        ):
            (out / "control.json").unlink(missing_ok=True)  # of a run before: what a killed one leaves is not its own
            result, record = _run(settings, plans, robot, out)
    write_json(out / "control.json", result)
    _report(result)
    if settings.video:
        every = max(1, round(settings.rate / FRAMES_PER_SECOND))
        with closing(make(render=True)) as env:
            write_video(out / "control.mp4", replay(env, robot.episodes, every), settings.rate / every)
    _require_plans(record, plans.served.chunk, out)
    require_whole(result["trace"])
    return 128 + signal.Signals[result["ended_by"]] if result["ended_by"] else 0


def _run(settings: Settings, plans: Planning, robot: SimRobot, out: Path) -> tuple[dict[str, Any], Record]:
    """Runs the loop; returns what `control.json` holds, and the record that it is made from."""
    served = plans.served
    served.spec.require(robot.spec.shown_to(served.spec), ("policy", "environment"))
    execute = served.execute if settings.execute is None else settings.execute
    check_execute(execute, served.chunk)
    if settings.servo > 1 and robot.spec.control != "absolute":
        raise UsageError(f"servo={settings.servo}: a simulator takes one command a step, and {robot.spec.control} ones add up")
    guards = Guards(robot.spec, settings.guards)
    path = out / "control.trace" if settings.trace else None
    told = {"env": settings.env, "seconds": settings.seconds, "execute": execute, "history": served.history}
    told |= {"controller": asdict(settings.controller), "guards": asdict(settings.guards)}
    header = {**told, "policy": plans.policy, "planning": plans.repeat, "origin": origin()}
    with _signals() as caught, recording(path, header, robot, plans.inference) as run:
        controller = Controller(
            run.robot, run.inference, guards, settings.controller, execute=execute, history=served.history, clock=run.clock
        )
        stopped = run.stopped(lambda: caught() is not None)
        controller.prepare(stopped)
        begin = time.monotonic()
        with _progress(controller.record, round(settings.seconds * settings.rate)):
            record = controller.run(settings.seconds, stopped)
        wall, ended_by = time.monotonic() - begin, caught()

    finished = [item.success for item in robot.episodes if item.finished]
    return {
        **origin(),
        "policy": plans.policy,
        "decode": {**plans.decode, "execute": execute, "chunk": served.chunk},
        "inference": plans.repeat["kind"],
        "env": settings.env,
        "seed": settings.seed,
        "rate": settings.rate,
        "controller": asdict(settings.controller),
        "seconds": settings.seconds,
        "wall_s": wall,
        "ended_by": None if ended_by is None else signal.Signals(ended_by).name,
        **record.to_json(),
        "frozen": robot.frozen,
        "guards": asdict(settings.guards),
        "interventions": guards.interventions,
        "trace": run.outcome,
        "episodes": [item.to_json() for item in robot.episodes],
        "success": sum(finished) / len(finished) if finished else None,
    }, record


def _room(ticks: float) -> int:
    """Bytes that control.json may come to, with a plan at every tick, of which it holds KEPT."""
    return max(RESERVE, RESERVE // 2 + OF_PLAN * math.ceil(min(ticks, KEPT)))


def _task(env: str) -> str:
    """The id of the one task that the loop runs."""
    tasks = envs.tasks(env)
    if len(tasks) != 1:
        raise UsageError(f"env={env}: the loop runs one task, these are {len(tasks)}. Take one, as in env={tasks[0]}")
    return tasks[0]


@contextmanager
def _signals() -> Iterator[Callable[[], int | None]]:
    """Yields a function that gives the number of the signal that came, if one did; a second one interrupts at once."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: caught[0] if caught else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress(record: Record, ticks: int) -> Iterator[None]:
    """A bar that watches the loop from a thread of its own: drawing it would cost a tick milliseconds."""
    columns = (TextColumn("control"), BarColumn(), TextColumn("{task.completed}/{task.total} ticks"), TimeRemainingColumn())
    done = threading.Event()
    with Progress(*columns, auto_refresh=False) as bar:
        task = bar.add_task("control", total=ticks)

        def watch() -> None:
            while not done.wait(0.5):
                bar.update(task, completed=record.ticks + record.missed, refresh=True)

        watcher = threading.Thread(target=watch, name="progress", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
            bar.update(task, completed=record.ticks + record.missed, refresh=True)


def _report(result: dict[str, Any]) -> None:
    console = Console()
    table = Table(title=f"{result['policy']['name']} on {result['env']} at {result['rate']:g} Hz")
    for name in ("", *percentiles([])):
        table.add_column(name, justify="right" if name else "left")
    rows = {
        "period, ms": "period_ms",
        "tick late, ms": "late_ms",
        "tick's work, ms": "work_ms",
        "plan, ms": "plan_ms",
        "plan's delay, ticks": "delay_steps",
    }
    for label, key in rows.items():
        table.add_row(label, *("-" if value is None else f"{value:.2f}" for value in result[key].values()))
    console.print(table)
    guards = ", ".join(f"{count} {name}" for name, count in result["interventions"].items())
    finished = [item["success"] for item in result["episodes"] if item["finished"]]
    frozen = f", the world stood still for {result['frozen']} steps" if result["frozen"] else ""
    ended_by = f"; ended by {result['ended_by']}" if result["ended_by"] else ""
    rungs = ", ".join(f"{count} {name}" for name, count in result["rungs"].items())
    console.print(
        f"{result['ticks']} ticks, {result['missed']} missed{frozen}; rungs: {rungs}\n"
        f"{result['plans']} plans, {result['expired']} too late; guards: {guards}\n"
        f"{sum(finished)} of {len(finished)} finished episodes succeeded{ended_by}"
    )


def _require_plans(record: Record, chunk: int, out: Path) -> None:
    if record.errors:
        message, _ = record.errors.most_common(1)[0]
        raise KinoiseError(f"planning went wrong {record.errors.total()} times: {message}. See {out / 'control.json'}.")
    if record.stops:
        stop = record.stops[-1]
        raise KinoiseError(f"the robot was stopped at tick {stop.tick}: {stop.reason}. See {out / 'control.json'}.")
    if record.plans and not record.outcomes["used"]:
        median = percentiles([item.delay for item in record.arrivals])["p50"]
        raise KinoiseError(
            f"no plan came in time: they are {chunk} steps long and came {median:g} steps late at the median. "
            "Lower rate=, take fewer decode.steps or a faster device="
        )
