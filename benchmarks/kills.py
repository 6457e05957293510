"""SIGKILL at random moments: `python -m benchmarks.kills command=collect kills=50` (or `command=all`).

The command itself runs, in a session of its own, on a little work; it is killed at a moment drawn from the seed, either its
first process alone or all of them at once, and begun again as its documentation says (`resume=true`, or the same command) until
it ends by itself; then the next one begins. Targets: every one ends, with what an unbroken run comes to (bytes of data, of
weights, of metrics, every episode once); after no kill is there a file that looks whole and is not, or a process that goes on.

What a command came to is kept until all are done: `resume=true` skips those that were done before this program was stopped.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from kinoise.config import UsageError, check_seed, parse, run
from kinoise.provenance import commit, versions
from omegaconf import MISSING

from .kill_works import WORKS, Work
from .played import Partial
from .record import write

MARK = "KINOISE_BENCHMARK_KILLS"
ALONE = 0.5
"""Share of the kills that end the first process only, whose others have to notice."""
EARLY = 0.1
"""Share that come at any time from the start on; the others, once something has changed on disk."""
LEAVE_S = 10.0
"""In which the others have to have gone."""
PATIENCE_S = 600.0


@dataclass
class Settings:
    """The whole command line."""

    command: str = field(default=MISSING, metadata={"help": f"{' | '.join(WORKS)} | all"})
    kills: int = field(default=50, metadata={"help": "of each command"})
    seed: int = field(default=0, metadata={"help": "of the moments"})
    resume: bool = field(default=False, metadata={"help": "take the commands that the same code did before it was stopped"})

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.command != MISSING and self.command not in (*WORKS, "all"):
            raise UsageError(f"command={self.command}: expected one of {', '.join(WORKS)} or all")
        if self.kills < 1:
            raise UsageError(f"kills={self.kills}: expected at least 1")


class Runner:
    """Runs a work's command and kills it.

    Args:
        work: prepared.
        place: a folder for what the runs write.
    """

    def __init__(self, work: Work, place: Path, rng: np.random.Generator) -> None:
        self.work, self.place, self.rng = work, place, rng
        self.kills = self.alone = self.early = 0
        self.wrong: list[str] = []
        self.span = 1.0

    def whole(self, out: Path) -> Any:
        """The result of a run that nobody disturbs, whose duration the moments are drawn from."""
        with self._started(out, again=False) as process:
            began = self._wait_for_change(process, out)
            while process.poll() is None and not self.work.finished(out):
                time.sleep(0.005)
            self.span = max(0.05, time.monotonic() - began)
            said = process.communicate(timeout=PATIENCE_S)[1]
            if process.returncode:
                raise SystemExit(f"the command failed before anything was killed:\n{said}")
        return self.work.result(out)

    def chain(self, out: Path, most: int) -> int:
        """Kills one run and its successors until it ends by itself; returns how often it was killed."""
        count = 0
        while True:
            with self._started(out, again=count > 0) as process:
                if count < most and self._killed(process, out):
                    count += 1
                    self.wrong += [f"kill {self.kills}: {line}" for line in self.work.torn(out)]
                    continue
                said = process.communicate(timeout=PATIENCE_S)[1]
            if process.returncode and not self.work.finished(out):
                self.wrong.append(f"after {count} kills it does not go on: {said[-500:]}")
            return count

    def _started(self, out: Path, again: bool) -> subprocess.Popen:
        arguments = [*self.work.arguments(out), *(self.work.again if again else ())]
        env = {**os.environ, MARK: str(os.getpid()), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "kinoise.cli", *arguments]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, start_new_session=True, env=env, **pipes)

    def _wait_for_change(self, process: subprocess.Popen, out: Path) -> float:
        """Returns when something near `out` has changed, or the process has ended."""
        before = _tree(out)
        while process.poll() is None and _tree(out) == before:
            time.sleep(0.002)
        return time.monotonic()

    def _killed(self, process: subprocess.Popen, out: Path) -> bool:
        early, alone = self.rng.random() < EARLY, self.rng.random() < ALONE
        share = self.rng.random()
        began = time.monotonic() if early else self._wait_for_change(process, out)
        while time.monotonic() < began + share * self.span and process.poll() is None and not self.work.finished(out):
            time.sleep(0.001)
        if process.poll() is not None or self.work.finished(out):
            return False
        os.kill(process.pid, signal.SIGKILL)
        if not alone:
            for other in marked():
                with suppress(ProcessLookupError):
                    os.kill(other, signal.SIGKILL)
        process.communicate(timeout=PATIENCE_S)
        self.kills, self.alone, self.early = self.kills + 1, self.alone + alone, self.early + early
        deadline = time.monotonic() + LEAVE_S
        while (left := marked()) and time.monotonic() < deadline:
            time.sleep(0.01)
        if left:
            self.wrong.append(f"kill {self.kills}: {len(left)} processes went on for {LEAVE_S:g} s")
            for other in left:
                with suppress(ProcessLookupError):
                    os.kill(other, signal.SIGKILL)
        return process.returncode == -signal.SIGKILL and not self.work.finished(out)  # which may just have come about


def marked() -> list[int]:
    """The processes that this one began, and those that they began."""
    mark, found = f"{MARK}={os.getpid()}".encode(), []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            state = (place / "stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z" and mark in (place / "environ").read_bytes().split(b"\0"):
                found.append(int(place.name))
        except OSError:  # gone meanwhile, or somebody else's
            continue
    return found


def _tree(out: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of what there is at `out` and of what begins with its name beside it."""
    found = []
    for top in [out, *out.parent.glob(f"{out.name}.*"), *out.parent.glob(f".{out.name}.*")]:
        inside = (Path(place, name) for place, *names in os.walk(top) for name in (*names[0], *names[1]))
        for item in (top, *inside):  # by walk, which passes over a folder that is removed meanwhile
            with suppress(OSError):
                at = item.stat()
                found.append((str(item), at.st_size, at.st_mtime_ns))
    return found


def killed(name: str, kills: int, seed: int, place: Path) -> dict[str, Any]:
    """The figures of one command."""
    work = WORKS[name](place / "shared")
    work.place.mkdir(parents=True)
    work.prepare()
    runner = Runner(work, place, np.random.default_rng([seed, sorted(WORKS).index(name)]))
    began, chains, most, other = time.monotonic(), 0, 0, 0
    wholes: dict[int, Any] = {}
    while runner.kills < kills:
        variant = chains % work.variants
        if variant not in wholes:
            wholes[variant] = runner.whole(place / f"whole-{variant}")
        out = place / f"run-{chains}"
        most = max(most, runner.chain(out, kills - runner.kills))
        if not runner.wrong:
            other += work.result(out) != wholes[variant]
        chains += 1
        if runner.wrong and chains > kills:
            break
    left = sorted(item.name for item in place.iterdir() if item.name.startswith("."))
    left += [
        str(item.relative_to(place)) for item in place.rglob(".*") if item.parent != place and not item.name.startswith(".z")
    ]
    return {
        "kills": runner.kills,
        "first_process_alone": runner.alone,
        "during_start": runner.early,
        "works": chains,
        "most_kills_of_one": most,
        "seconds": round(time.monotonic() - began, 1),
        "work_s": round(runner.span, 2),
        "other_result": other,
        "wrong": runner.wrong,
        "left_behind": left,
        "pass": not runner.wrong and not other and not left,
    }


def main(argv: Sequence[str]) -> int:
    settings = parse("kills", Settings, argv, about=__doc__ or "")
    names = list(WORKS) if settings.command == "all" else [settings.command]
    figures, partial, code = {}, Partial("kills"), {"commit": commit(), "versions": versions()}
    for name in names:
        key, kept = partial.get(command=name, kills=settings.kills, seed=settings.seed, **code)
        if settings.resume and kept is not None and not (code["commit"] or "").endswith("+dirty"):  # which isn't one state
            figures[name] = kept
            continue
        with tempfile.TemporaryDirectory(prefix="kinoise-kills-") as place:
            figures[name] = killed(name, settings.kills, settings.seed, Path(place))
        partial.keep(key, figures[name])
        print(f"{name}: {figures[name]}", file=sys.stderr)
    sound = all(item["pass"] for item in figures.values())
    write("kills" if settings.command == "all" else f"kills_{settings.command}", {**asdict(settings), "commands": figures})
    partial.done()
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
