"""Coverage-guided fuzzing of what reads bytes from elsewhere: `python -m benchmarks.fuzz target=wire inputs=1000000 seed=0`.

Needs atheris (libFuzzer for Python) beside kinoise: `pip install atheris`, in an environment of its own if need be, and that
environment's interpreter as `python=`. A finding is anything but a KinoiseError: another exception, a fault in native code, an
input that takes more than 5 s of the processor or 256 MiB that nothing before took, a program run, a pickle's object looked
up, a file written elsewhere. Target: none. A process that ends early is followed by another, with the corpus and the inputs
that are left. Each kind of finding is counted once, and its first input kept in `folder`.

A campaign takes hours: after every process its figures go to FOLDER/TARGET/progress.json, and the same command with
`resume=true` goes on from there. `seconds=` ends it for now, as SIGTERM and Ctrl-C do, with a result of what was reached.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kinoise.config import UsageError, check_seed, parse, run
from kinoise.files import claimed, read_json, write_json
from kinoise.provenance import commit
from kinoise.train.stop import Stop
from omegaconf import MISSING

from .fuzz_child import CPU_S, GROWTH, HANG_S, MODULES
from .record import write

PART, PART_S = 100_000, 300
"""Inputs and seconds of one process at most: what native libraries leak does not add up, and what a kill loses is little."""
ENDS = 20
"""Processes of one command that may end early before it is given up."""
LIBRARIES = ("atheris", "torch", "numpy", "h5py", "pyarrow", "zarr", "numcodecs", "safetensors", "msgpack", "omegaconf")
ASKED = f"""
import atheris, json, kinoise
from importlib import metadata
names = {{item.metadata["Name"]: item.version for item in metadata.distributions()}}
print(json.dumps({{name: names[name] for name in {LIBRARIES!r} if name in names}}))
"""
FIGURES = {"inputs": 0, "processes": 0, "seconds": 0.0, "edges": 0, "features": 0, "slowest_s": 0, "peak_rss_mb": 0}


@dataclass
class Settings:
    """The whole command line."""

    target: str = field(default=MISSING, metadata={"help": f"{' | '.join(MODULES)}"})
    inputs: int = field(default=1_000_000, metadata={"help": "to run"})
    seed: int = field(default=0, metadata={"help": "of the mutations"})
    folder: str = field(default="outputs/benchmarks/fuzz", metadata={"help": "where corpus and findings are kept"})
    python: str = field(default=sys.executable, metadata={"help": "interpreter that has atheris"})
    seconds: float | None = field(default=None, metadata={"help": "of this command at most; null: until the inputs are done"})
    resume: bool = field(default=False, metadata={"help": "go on with the campaign in folder, if there is one"})

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.target != MISSING and self.target not in MODULES:
            raise UsageError(f"target={self.target}: expected one of {', '.join(MODULES)}")
        if self.inputs < 1:
            raise UsageError(f"inputs={self.inputs}: expected at least 1")
        if self.seconds is not None and not self.seconds > 0:
            raise UsageError(f"seconds={self.seconds}: expected a number above 0")


def begun(settings: Settings, folder: Path, libraries: dict[str, str]) -> dict[str, Any]:
    """The campaign's state: figures so far, and which code and libraries they are of, from which input on.

    Raises UsageError for a campaign that is there though it wasn't to be resumed, or has another seed.
    """
    file = folder / "progress.json"
    state = {"seed": settings.seed, **FIGURES, "ended_early": [], "built": []}
    if file.exists():
        state = read_json(file)
        if not settings.resume and state["processes"]:
            told = f"{folder} has a campaign of {state['inputs']} inputs"
            raise UsageError(f"{told}: resume=true goes on with it; or remove it, or choose another folder=")
        if state["seed"] != settings.seed:
            raise UsageError(f"seed={settings.seed}: the campaign in {folder} has seed={state['seed']}")
    built = {"commit": commit(), "libraries": libraries}
    if not state["built"] or {key: state["built"][-1][key] for key in built} != built:
        state["built"].append({"from_input": state["inputs"], **built})
    write_json(file, state)
    return state


def fuzzed(settings: Settings, folder: Path, place: Path, state: dict[str, Any], descriptor: int) -> str | None:
    """Brings `state` forward, process by process; why it stopped before the inputs were done, None if it didn't.

    Args:
        descriptor: of the claimed folder, which a process keeps claimed should it outlive this one.
    """
    deadline = time.monotonic() + (settings.seconds or float("inf"))
    ends = 0
    with Stop() as stop:
        while state["inputs"] < settings.inputs and ends < ENDS:
            left = deadline - time.monotonic()
            if stop.received or left < 1:
                return "signal" if stop.received else "seconds"
            count = min(PART, settings.inputs - state["inputs"])
            limits = [str(count), str(settings.seed + state["processes"]), str(int(min(PART_S, left)))]
            command = [settings.python, "-m", "benchmarks.fuzz_child", settings.target, str(folder), str(place), *limits]
            began = time.perf_counter()
            code, said = _run(command, descriptor, stop)
            early = add(state, said, code, time.perf_counter() - began, bool(stop.received), short=left < PART_S)
            ends += early
            write_json(folder / "progress.json", state)
            found = len(_noted(folder)) + len(state["ended_early"])
            print(f"{state['inputs']} inputs, {state['edges']} edges, {found} findings", file=sys.stderr)
    return None if state["inputs"] >= settings.inputs else "ends"


def _run(command: list[str], descriptor: int, stop: Stop) -> tuple[int, str]:
    """A process's code and what it said; libFuzzer, told to end, says its figures first."""
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        settings: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": said, "pass_fds": (descriptor,)}
        with subprocess.Popen(command, start_new_session=True, **settings) as process:
            while process.poll() is None:
                if stop.received:
                    process.send_signal(signal.SIGTERM)
                    try:
                        process.wait(HANG_S)
                    except subprocess.TimeoutExpired:
                        process.kill()
                        process.wait()
                else:
                    time.sleep(0.05)
        said.seek(0)
        return process.returncode, said.read()


def add(state: dict[str, Any], said: str, code: int, seconds: float, stopped: bool, short: bool) -> bool:
    """Adds a process's figures to the campaign's; whether it ended early. What it replayed of its corpus isn't new.

    Args:
        stopped: whether it was told to end.
        short: whether it was given less than PART_S, in which it may have come to nothing new.
    """
    stats = {name: int(value) for name, value in re.findall(r"stat::(\w+):\s+(\d+)", said)}
    replayed = re.search(r"#(\d+)\s+INITED", said)
    killed = code < 0  # which says no figures
    if "number_of_executed_units" not in stats and not stopped and not killed:
        raise SystemExit(f"the fuzzer did not run:\n{said[-3000:]}")
    fresh = stats.get("number_of_executed_units", 0) - int(replayed[1]) if replayed else 0
    state["inputs"] += max(0, fresh)
    state["processes"] += 1
    state["seconds"] = round(state["seconds"] + seconds, 1)
    for name, label in (("slowest_s", "slowest_unit_time_sec"), ("peak_rss_mb", "peak_rss_mb")):
        state[name] = max(state[name], stats.get(label, 0))
    for name, label in (("edges", "cov"), ("features", "ft")):
        state[name] = max([state[name], *map(int, re.findall(rf" {label}: (\d+)", said))])
    early = bool(code) and not stopped
    if early:
        state["ended_early"].append(_end(said, code))
    elif fresh <= 0 and not stopped and not short:
        raise SystemExit(f"in {PART_S} s the corpus alone was replayed: remove some of it")
    return early


def _end(said: str, code: int) -> dict[str, Any]:
    """Why a process ended early, and the file with its input."""
    reason = re.search(r"(?:ERROR: |SUMMARY: )(?:libFuzzer|AddressSanitizer|UndefinedBehaviorSanitizer): ([^\n]+)", said)
    file = re.search(r"Test unit written to (\S+)", said)
    return {"code": code, "reason": reason[1] if reason else said[-300:], "input": Path(file[1]).name if file else None}


def _noted(folder: Path) -> list[dict[str, Any]]:
    file = folder / "findings.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def main(argv: Sequence[str]) -> int:
    settings = parse("fuzz", Settings, argv, about=__doc__ or "")
    folder = Path(settings.folder) / settings.target
    asked = subprocess.run([settings.python, "-c", ASKED], capture_output=True, text=True)
    if asked.returncode:
        raise UsageError(f"python={settings.python} lacks atheris or kinoise: pip install atheris there")
    folder.mkdir(parents=True, exist_ok=True)
    memory = Path("/dev/shm")  # files that never reach a disk
    scratch = tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory if memory.is_dir() else None)
    with claimed(folder, "fuzzes") as descriptor, scratch as place:
        state = begun(settings, folder, json.loads(asked.stdout.splitlines()[-1]))
        stopped = fuzzed(settings, folder, Path(place), state, descriptor)
        coverage = None if stopped == "signal" else _coverage(settings, folder, place)
    findings = [{key: item[key] for key in ("kind", "input", "bytes")} for item in _noted(folder)]
    passed = False if findings or state["ended_early"] else None if stopped else True
    bounds = {"cpu_s": CPU_S, "hang_s": HANG_S, "memory_bytes": GROWTH}
    what = {"settings": {**asdict(settings), "python": Path(settings.python).name}, "bounds": bounds}
    told = {**what, **state, "stopped": stopped, "coverage": coverage, "findings": findings, "pass": passed}
    write(f"fuzz_{settings.target}", told)
    return 1 if passed is False else 0


def _coverage(settings: Settings, folder: Path, place: str) -> dict[str, Any]:
    command = [settings.python, "-m", "benchmarks.fuzz_child", settings.target, str(folder), place, "0", "0", "0"]
    replayed = subprocess.run(command, capture_output=True, text=True)
    return json.loads(replayed.stdout.splitlines()[-1]) if replayed.returncode == 0 else {"failed": replayed.stderr[-500:]}


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
