"""`kinoise sweep train seed=0,1 policy.network.width=64,128 out=SWEEP`: one command for every combination, and a table of it.

Values and their product are Hydra's (`grid.py`); a combination is a job, which is the plain command with a folder of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING
from rich.console import Console

from ..config import UsageError, parse
from ..eval.launch import LAUNCHERS, Cluster, open_launcher
from ..eval.launch.job import Done, Job, run
from ..eval.settings import read_settings as eval_settings
from ..files import claimed, output_directory, read_json, write_json
from ..provenance import origin
from ..spec import KinoiseError
from .__main__ import read_settings as train_settings
from .grid import Grid, expand
from .outcome import FIGURES, PROOF, over_seeds, show

ABOUT = """Runs kinoise train or kinoise eval once for every combination of the settings that have several values, such as
seed=0,1,2 policy.network.width=64,128 (Hydra's lists, range(0,3) and choice(a,b); a value in quotes is one). Each job has a
folder in OUT named by its own settings; OUT/sweep.json and the table at the end say what came of each. All settings but those
below are the command's. `kinoise train --multirun ...` is the same."""

SWEEP, LOGS = "sweep.json", "logs"
WAITING, FINISHED, FAILED = "waiting", "finished", "failed"


@dataclass
class Settings:
    """Those of `kinoise sweep` itself."""

    command: str = field(default=MISSING, metadata={"help": "train or eval, with its settings"})
    out: str = field(default=MISSING, metadata={"help": "where the jobs' folders and sweep.json go"})
    resume: bool = field(default=False, metadata={"help": "run only what has not finished; jobs that were begun go on"})
    launcher: str = field(default="local", metadata={"help": f"one of {', '.join(LAUNCHERS)}"})
    jobs: int | None = field(default=None, metadata={"help": "at once, at most; null: one with launcher=local, else all"})
    cluster: Cluster = field(default_factory=Cluster)


OWN = ("out", "resume", "launcher", "jobs")


def main(argv: Sequence[str]) -> int:
    """0 once every job has finished, 1 when one failed.

    Raises:
        UsageError: nothing to sweep, or settings that the command would refuse, of any job, before any begins.
        KinoiseError: `out` holds something else, or a sweep of other settings.
    """
    argv = [item for item in argv if item not in ("--multirun", "-m")]
    own = [item for item in argv if item in ("--help", "-h") or item.partition("=")[0] in OWN or item.startswith("cluster.")]
    command, *theirs = [item for item in argv if item not in own] or [""]
    settings = parse("sweep", Settings, [*([command] if command else []), *own], positional="command", about=ABOUT)
    if command not in CHECKS:
        raise UsageError(f"kinoise sweep {command}: the commands that can be swept are {', '.join(CHECKS)}")
    if settings.jobs is not None and settings.jobs < 1:
        raise UsageError(f"jobs={settings.jobs}: at least 1 is needed")
    grid, out = expand(theirs), Path(settings.out)
    for point in grid.points:
        CHECKS[command]([*_command(grid, point.overrides), f"out={out / point.name}"])
    console = Console(stderr=True)
    with ExitStack() as stack:
        stack.enter_context(output_directory(out))
        stack.enter_context(claimed(out, "sweeps"))
        records = _records(out, command, grid, settings.resume)
        launcher = stack.enter_context(open_launcher(settings.launcher, settings.cluster, out))  # submitit's makes a folder
        account = Account(out, command, grid, records)
        jobs = [_job(settings, grid, out, name) for name in records if records[name]["state"] != FINISHED]
        console.print(f"{len(records)} jobs, of which {len(records) - len(jobs)} have finished", highlight=False)
        account.write()
        (out / LOGS).mkdir(exist_ok=True)
        at_once = settings.jobs or (1 if settings.launcher == "local" else None)
        try:
            for done in run(launcher, jobs, at_once):
                console.print(account.add(done), highlight=False, soft_wrap=True)
        except (KeyboardInterrupt, SystemExit):
            console.print(f"What has finished is in {out}: the same command with resume=true goes on.", soft_wrap=True)
            raise
    value = read_json(out / SWEEP)
    show(value, Console())
    print(out / SWEEP)
    return int(any(item["state"] != FINISHED for item in value["jobs"]))


CHECKS: dict[str, Callable[[Sequence[str]], object]] = {"train": train_settings, "eval": eval_settings}
"""What can be swept, and how a job's settings are checked."""


class Account:
    """Keeps sweep.json: what every job is and what came of it, on the disk after each."""

    def __init__(self, out: Path, command: str, grid: Grid, records: dict[str, dict[str, Any]]) -> None:
        self._out, self._command, self._grid, self._records = out, command, grid, records
        self._begin = time.perf_counter()

    def write(self) -> None:
        jobs = list(self._records.values())
        value = {
            "command": self._command,
            "fixed": list(self._grid.fixed),
            "jobs": jobs,
            "over_seeds": over_seeds([item for item in jobs if item["state"] == FINISHED]),
            "wall_s": time.perf_counter() - self._begin,
            **origin(),
        }
        write_json(self._out / SWEEP, value)

    def add(self, done: Done) -> str:
        """Notes a job's end; a line about it."""
        ended, record = done.ended, self._records[done.job.name]
        finished = ended.code == 0
        record |= {"state": FINISHED if finished else FAILED, "code": ended.code, "tries": done.tries, "machine": ended.machine}
        record |= {"seconds": done.seconds, "said": None if finished else ended.said}
        record["figures"] = FIGURES[self._command](self._out / done.job.name) if finished else {}
        self.write()
        over = sum(item["state"] != WAITING for item in self._records.values())
        return f"[{over}/{len(self._records)}] {done.job.name}: {'finished' if finished else f'failed: {ended.said}'}"


def _command(grid: Grid, overrides: Mapping[str, str]) -> list[str]:
    return [*grid.fixed, *(f"{key}={value}" for key, value in overrides.items())]


def _job(settings: Settings, grid: Grid, out: Path, name: str) -> Job:
    point = next(item for item in grid.points if item.name == name)
    folder = out.absolute() / name
    common = (settings.command, *_command(grid, point.overrides), f"out={folder}")
    again = (*common, "resume=true")
    job = Job(name, again if folder.exists() else common, out.absolute() / LOGS / f"{name}.log", again)
    if settings.launcher == "local" and (settings.jobs or 1) > 1:  # two jobs that each take every core slow each other badly
        job = replace(job, environment={"OMP_NUM_THREADS": str(settings.cluster.cpus), **job.environment})
    return job


def _records(out: Path, command: str, grid: Grid, resume: bool) -> dict[str, dict[str, Any]]:
    """What is known of each job, by name. Raises KinoiseError when `out` holds something else than this sweep."""
    fresh = {
        point.name: {"name": point.name, "overrides": point.overrides, "out": str(out / point.name), "state": WAITING}
        for point in grid.points
    }
    if not resume:
        if any(out.iterdir()):
            raise KinoiseError(f"{out} is not empty: resume=true continues the sweep there, or choose another out=.")
        return fresh
    if not (out / SWEEP).exists():
        if any(out.iterdir()):
            raise KinoiseError(f"{out} is not empty and holds no sweep to resume: choose another out=.")
        return fresh
    before = read_json(out / SWEEP)
    now = {"command": command, "fixed": sorted(grid.fixed)}
    was = {"command": before["command"], "fixed": sorted(before["fixed"])}
    if was != now:
        changed = "; ".join(f"{key}: {was[key]} -> {now[key]}" for key in now if was[key] != now[key])
        raise KinoiseError(f"{out} is a sweep of other settings: {changed}. Take them back, or choose another out=.")
    known = {item["name"]: item for item in before["jobs"]}
    done = {name for name, item in known.items() if item["state"] == FINISHED and (out / name / PROOF[command]).is_file()}
    # Jobs of an earlier, other grid stay in the table if they finished; the grid of a sweep may grow.
    return {name: known[name] for name in known if name in done and name not in fresh} | {
        name: known[name] if name in done else item for name, item in fresh.items()
    }
