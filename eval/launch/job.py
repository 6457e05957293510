"""One command as a job: what it is, how it is carried out where it lands, and begun again when its process dies."""

from __future__ import annotations

import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from ...files import PATIENCE
from ...spec import KinoiseError

TRIES = 3
"""A job whose process died so often is given up: an accident doesn't come back, a bug does."""
PAUSE_S, TICK_S = 0.2, 2.0
SAVING_S = 300
"""Seconds in which a process whose carrier died, which tells it to end, has saved: its successor waits for its folder."""
KILLED = -signal.SIGKILL
BEGUN = "$ kinoise "
"""What a try's part of a log begins with; its command follows."""
FORWARDED = ("PYTHONPATH", "MUJOCO_GL", "PYOPENGL_PLATFORM", "OMP_NUM_THREADS", "HF_HOME")
"""What of this process's environment decides results or what can be imported, and so goes along to other machines."""


@dataclass(frozen=True)
class Job:
    """One command of kinoise.

    Args:
        name: for people.
        argv: the command and its settings.
        log: takes what it prints; its folder is there, and every machine sees it.
        again: `argv` once the process has died: what goes on, rather than begins anew.
        folder: where it runs, so that relative paths mean what they mean here.
        environment: variables laid over those of the machine.
    """

    name: str
    argv: tuple[str, ...]
    log: Path
    again: tuple[str, ...]
    folder: Path = field(default_factory=Path.cwd)
    environment: Mapping[str, str] = field(
        default_factory=lambda: {key: os.environ[key] for key in FORWARDED if key in os.environ}
    )

    def repeated(self) -> Job:
        """The job that takes this one's place when its process has died."""
        return replace(self, argv=self.again)


@dataclass(frozen=True)
class Ended:
    """How a job's process ended.

    Args:
        code: its exit code; negative: the signal that ended it, or that its machine was lost.
        said: the last line of its log, or what is known of its death.
        machine: where it ran; "" when that is not known.
    """

    code: int
    said: str = ""
    machine: str = ""

    @property
    def died(self) -> bool:
        """Whether the job did not end by itself, so that it may well succeed when it is begun again."""
        return self.code < 0 or self.code in (128 + signal.SIGKILL, 128 + signal.SIGTERM)


@dataclass(frozen=True)
class Done:
    """A job that will not be begun again: how it ended, after how many tries and seconds."""

    job: Job
    ended: Ended
    tries: int
    seconds: float


@runtime_checkable
class Running(Protocol):
    """A job under way."""

    def poll(self) -> Ended | None:
        """How it ended; None while it has not."""
        ...

    def stop(self) -> None:
        """Has it end, if it has not. Leaving `Local`'s block waits for that; a cluster may take a while longer."""
        ...


@runtime_checkable
class Launcher(Protocol):
    """Where jobs are carried out."""

    def capacity(self) -> int | None:
        """How many jobs can run at once, as things are; None when that is not known beforehand."""
        ...

    def start(self, job: Job) -> Running:
        """Hands the job over; it may have to wait there."""
        ...


def carry_out(job: Job) -> Ended:
    """Runs the command to its end in a process of its own, which dies with this one. For the machine that the job lands on."""
    machine = platform.node()
    for folder, what in ((job.log.parent, "out="), (job.folder, "the folder that the command was started in")):
        if not folder.is_dir():
            return Ended(1, f"{machine} does not see {folder}: {what} has to be on storage that all machines share", machine)
    return finished(job, process(job).wait())


def process(job: Job) -> subprocess.Popen[bytes]:
    """The command's process, which writes to the job's log."""
    command = [sys.executable, "-P", "-m", f"{__package__}.child", str(os.getpid()), *job.argv]
    with job.log.open("ab") as log:
        log.write(f"{BEGUN}{shlex.join(job.argv)}\n".encode())
        log.flush()
        return subprocess.Popen(
            command,
            cwd=job.folder,
            env={**os.environ, PATIENCE: str(SAVING_S), **job.environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for whoever started it, who then stops it
        )


def finished(job: Job, code: int) -> Ended:
    """How a process ended that is over."""
    said = f"signal {signal.Signals(-code).name}" if code < 0 else "" if code == 0 else last_words(job.log)
    return Ended(code, said, platform.node())


def last_words(log: Path) -> str:
    """What the last try's log ends with: kinoise's own line about an error, if there is one, else its last."""
    try:
        text = log.read_text(errors="replace")
    except FileNotFoundError:
        return "it left no log"
    *_, tried = re.split(rf"^{re.escape(BEGUN)}.*$", text, flags=re.M)
    lines = [line.strip() for line in tried.splitlines() if line.strip()]
    own = [line.removeprefix("kinoise: ") for line in lines if line.startswith("kinoise: ")]
    return (own or lines or ["it said nothing"])[-1]


def run(
    launcher: Launcher, jobs: Sequence[Job], at_once: int | None = None, tick: Callable[[], None] = lambda: None
) -> Iterator[Done]:
    """Carries out the jobs; yields each when it is over. One whose process died is begun again, TRIES times in all.

    Whatever ends the loop ends the jobs that are under way.

    Args:
        at_once: the most that are handed to the launcher at a time; None: all.
        tick: called every two seconds or so, to show progress.
    """
    waiting = deque((job, 1, 0.0) for job in jobs)
    under_way: dict[int, tuple[Job, int, float, Running]] = {}
    number, ticked = 0, time.monotonic()
    try:
        while waiting or under_way:
            while waiting and (at_once is None or len(under_way) < at_once):
                job, tries, begun = waiting.popleft()
                if tries == 1:
                    job.log.unlink(missing_ok=True)
                number += 1
                under_way[number] = (job, tries, begun or time.monotonic(), launcher.start(job))
            for key, (job, tries, begun, running) in list(under_way.items()):
                ended = running.poll()
                if ended is None:
                    continue
                del under_way[key]
                if ended.died and tries < TRIES:
                    waiting.appendleft((job.repeated(), tries + 1, begun))
                else:
                    yield Done(job, ended, tries, time.monotonic() - begun)
            if time.monotonic() - ticked >= TICK_S:
                tick()
                ticked = time.monotonic()
            if under_way and (not waiting or (at_once is not None and len(under_way) >= at_once)):
                time.sleep(PAUSE_S)
    finally:
        for *_, running in under_way.values():
            with suppress(Exception):  # the others have to be ended, too
                running.stop()


def run_all(launcher: Launcher, jobs: Sequence[Job], tick: Callable[[], None] = lambda: None) -> list[Done]:
    """Carries out jobs none of which may fail. Raises KinoiseError with what each of those that failed said."""
    done = list(run(launcher, jobs, tick=tick))
    failed: dict[str, list[str]] = {}
    for item in done:
        if item.ended.code:
            tries = f" (given up after {item.tries} tries)" if item.ended.died else ""
            failed.setdefault(item.ended.said + tries, []).append(item.job.name)
    if failed:
        logs = next(iter(jobs)).log.parent
        said = "; ".join(f"{', '.join(names)}: {text}" for text, names in failed.items())
        raise KinoiseError(f"{sum(map(len, failed.values()))} of {len(jobs)} parts failed: {said}. Their logs are in {logs}.")
    return done
