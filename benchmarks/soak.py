"""Whether memory and latency stay as they are for an hour: `python -m benchmarks.soak side=server`, `controller` or `both`.

server: `kinoise serve` with 16 clients, each of which asks five times a second. controller: `kinoise control` on a simulator
that costs nothing, planning in a process of its own. Both are the commands themselves, watched from outside: the memory of all
their processes (what is shared counted by shares), their open files and threads, and how long plans took. Without `run=` the
policy is a small one with fresh weights.

Each series is cut into intervals, of which the first tenth is left out: imports, compiled kernels and allocators' pools settle
there. Slope: least squares over the intervals' medians; its 95 % interval: moving-block bootstrap of the residuals (blocks of
the square root of the number of intervals, 2,000 draws, seed 0), since neighbours are alike. `flat`: the whole interval, times
an hour, lies within BOUNDS of the median. `not flat`: the whole of it lies above. Else `undecided`: too short or too noisy.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from kinoise.config import UsageError, parse, run
from kinoise.deploy.client import PolicyClient
from kinoise.policies.checkpoint import load_policy
from kinoise.policies.example import example

from .kill_works import Control
from .record import write
from .server import serving

BOUNDS = {"memory": 0.02, "latency": 0.05, "p95": 0.1, "files": 0.01, "threads": 0.01}
"""Change in an hour, as a part of the median."""
SIDES = ("server", "controller")
INTERVALS = 240
DRAWS = 2000


@dataclass
class Settings:
    """The whole command line."""

    side: str = field(default="both", metadata={"help": "server | controller | both"})
    seconds: float = field(default=3600.0, metadata={"help": "of each side"})
    clients: int = field(default=16, metadata={"help": "of the server"})
    pace: float = field(default=5.0, metadata={"help": "questions a second of each"})
    rate: float = field(default=20.0, metadata={"help": "of the controller, Hz"})
    run: str | None = field(default=None, metadata={"help": "a training run for the server; null: a small policy, untrained"})
    name: str = field(default="soak", metadata={"help": "results/NAME_SIDE.json"})

    def __post_init__(self) -> None:
        if self.side not in (*SIDES, "both"):
            raise UsageError(f"side={self.side}: expected server, controller or both")
        for key in ("seconds", "clients", "pace", "rate"):
            if not getattr(self, key) > 0:
                raise UsageError(f"{key}={getattr(self, key)}: expected a number above 0")


def slope(times: np.ndarray, values: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Least squares' slope, and the ends of its 95 % interval by a moving-block bootstrap of the residuals."""
    centred = times - times.mean()
    weights = centred / (centred**2).sum()
    found = float(weights @ values)
    residuals = values - values.mean() - found * centred
    count, block = len(values), max(1, round(len(values) ** 0.5))
    gen = np.random.default_rng(seed)
    starts = gen.integers(0, count - block + 1, (DRAWS, -(-count // block)))
    drawn = residuals[(starts[:, :, None] + np.arange(block)).reshape(DRAWS, -1)[:, :count]]
    low, high = np.percentile(found + drawn @ weights, [2.5, 97.5])
    return found, float(low), float(high)


def verdict(times: np.ndarray, values: np.ndarray, bound: float) -> dict[str, Any]:
    """Of a series: its median, its slope an hour, and whether it is flat."""
    kept = times >= times[0] + 0.1 * (times[-1] - times[0]) if len(times) else np.zeros(0, bool)
    times, values = times[kept], values[kept]
    if len(times) < 8:
        return {"intervals": len(times), "verdict": "undecided"}
    hour, low, high = (3600 * item for item in slope(times, values))
    middle = float(np.median(values))
    limit = bound * abs(middle)
    said = "flat" if -limit <= low and high <= limit else "not flat" if low > limit else "undecided"
    numbers = {"median": middle, "first": values[0], "last": values[-1], "slope_per_hour": hour, "low": low, "high": high}
    return {"intervals": len(times), **{key: round(float(item), 4) for key, item in numbers.items()}, "verdict": said}


class Watch(threading.Thread):
    """Notes, every so often, what a process and its descendants take."""

    def __init__(self, process: int, every: float) -> None:
        super().__init__(daemon=True)
        self.times: list[float] = []
        self.values: dict[str, list[float]] = {"memory": [], "files": [], "threads": []}
        self._process, self._every, self._over = process, every, threading.Event()

    def run(self) -> None:
        while not self._over.wait(self._every):
            pids = _family(self._process)
            found = [_taken(pid) for pid in pids]
            if any(found):
                self.times.append(time.monotonic())
                for index, name in enumerate(self.values):
                    self.values[name].append(sum(item[index] for item in found if item))

    def end(self) -> None:
        self._over.set()
        self.join()


def _family(top: int) -> list[int]:
    """A process and its descendants."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [top]
    for item in found:
        found += [pid for pid, parent in parents.items() if parent == item]
    return found


def _taken(pid: int) -> tuple[float, float, float] | None:
    """MiB of memory that is no file's (proportional for what is shared), open files, threads; None when it is gone.

    Libraries' pages count for less while other processes have them too, so they would tell of those.
    """
    place = Path("/proc") / str(pid)
    with suppress(OSError):
        sizes = dict(line.split(":") for line in (place / "smaps_rollup").read_text().splitlines()[1:] if ":" in line)
        memory = sum(int(sizes[name].split()[0]) for name in ("Pss_Anon", "Pss_Shmem")) / 1024
        return memory, float(len(list((place / "fd").iterdir()))), float(len(list((place / "task").iterdir())))
    return None


def medians(times: Sequence[float], values: Sequence[float], every: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Median and 95th percentile of what fell into each interval of `every` seconds."""
    at, value = np.array(times), np.array(values)
    place = ((at - at.min()) // every).astype(int) if len(at) else np.zeros(0, int)
    found: dict[str, list[tuple[float, float]]] = {"latency": [], "p95": []}
    for index in np.unique(place):
        inside = value[place == index]
        found["latency"].append((index * every, float(np.median(inside))))
        found["p95"].append((index * every, float(np.percentile(inside, 95))))
    return {name: (np.array([a for a, _ in items]), np.array([b for _, b in items])) for name, items in found.items()}


def figures(watch: Watch, times: Sequence[float], latencies: Sequence[float], every: float, seconds: float) -> dict[str, Any]:
    """Of the first `seconds`: what comes later is of processes that end, and an interval's beginning."""
    series = {name: (np.array(watch.times), np.array(values)) for name, values in watch.values.items()}
    series |= medians(times, latencies, every)
    series = {name: (at[at < at[:1] + seconds], values[at < at[:1] + seconds]) for name, (at, values) in series.items()}
    found = {name: verdict(*pair, BOUNDS[name]) for name, pair in series.items()}
    thin = {name: [round(float(item), 3) for item in pair[1][:: -(-len(pair[1]) // 60) or 1]] for name, pair in series.items()}
    return {"unit": {"memory": "MiB", "latency": "ms", "p95": "ms"}, "found": found, "series": thin}


def soaked_server(settings: Settings, policy: Path, every: float) -> dict[str, Any]:
    loaded = load_policy(policy, device="cpu")
    obs = example(loaded)
    asked = {key: item[0].numpy() for key, item in obs.values.items()}, (obs.texts or ("",))[0]
    times, latencies, errors, over = list[float](), list[float](), list[str](), threading.Event()

    def ask(client: PolicyClient, number: int) -> None:
        due = time.monotonic() + number / settings.pace / settings.clients  # evenly spread
        while not over.wait(max(0.0, due - time.monotonic())):
            began = time.monotonic()
            try:
                client.plan(*asked)
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}"[:200])
            times.append(began)
            latencies.append(1e3 * (time.monotonic() - began))
            due = max(due + 1 / settings.pace, time.monotonic() - 1)

    with ExitStack() as stack:
        url = stack.enter_context(serving(policy))
        clients = [stack.enter_context(PolicyClient(url)) for _ in range(settings.clients)]
        (server,) = (pid for pid in _family(os.getpid()) if pid != os.getpid() and b"serve" in _command(pid))
        watch = Watch(server, every)
        threads = [threading.Thread(target=ask, args=(client, number)) for number, client in enumerate(clients)]
        for thread in (watch, *threads):
            thread.start()
        time.sleep(settings.seconds)
        over.set()
        for thread in threads:
            thread.join()
        watch.end()
    return {
        "plans": len(latencies),
        "errors": len(errors),
        "first_errors": errors[:3],
        **figures(watch, times, latencies, every, settings.seconds),
    }


def _command(pid: int) -> bytes:
    with suppress(OSError):
        return (Path("/proc") / str(pid) / "cmdline").read_bytes()
    return b""


def soaked_controller(settings: Settings, place: Path, every: float) -> dict[str, Any]:
    work, out = Control(place), place / "out"
    work.prepare()
    changes = (f"rate={settings.rate}", f"seconds={settings.seconds}", "fallback.hold=30")
    kept = [item for item in work.arguments(out) if not item.startswith(("rate=", "seconds=", "trace="))]
    command = [sys.executable, "-m", "kinoise.cli", *kept, *changes]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            watch = Watch(process.pid, every)
            watch.start()
            said = process.communicate(timeout=settings.seconds + 600)[1]
        finally:
            process.send_signal(signal.SIGKILL)
    watch.end()
    if not (out / "control.json").exists():
        raise SystemExit(f"the controller left no figures:\n{said[-2000:]}")
    result = json.loads((out / "control.json").read_text())
    plans = result["plans_timeline"]
    times, latencies = [item["tick"] / settings.rate for item in plans], [item["ms"] for item in plans]
    kept_figures = {
        key: result[key] for key in ("ticks", "missed", "plans", "expired", "rungs", "errors", "late_ms", "work_ms")
    }
    return {"exit": process.returncode, **kept_figures, **figures(watch, times, latencies, every, settings.seconds)}


def main(argv: Sequence[str]) -> int:
    settings = parse("soak", Settings, argv, about=__doc__ or "")
    every = max(0.5, settings.seconds / INTERVALS)
    sound = True
    for side in SIDES if settings.side == "both" else (settings.side,):
        with tempfile.TemporaryDirectory(prefix="kinoise-soak-") as name:
            place = Path(name)
            if side == "controller":
                found = soaked_controller(settings, place, every)
            else:
                work = Control(place)
                work.prepare()
                found = soaked_server(settings, Path(settings.run) if settings.run else work.policy_path, every)
        flat = {key: item["verdict"] for key, item in found["found"].items()}
        passed = all(item == "flat" for item in flat.values()) and not found["errors"]
        sound &= passed
        told = {**asdict(settings), "every_s": every}
        write(f"{settings.name}_{side}", {"side": side, "settings": told, "bounds_per_hour": BOUNDS, **found, "pass": passed})
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
