"""Coverage-guided fuzzing of what reads bytes from elsewhere: `python -m benchmarks.fuzz target=wire inputs=1000000 seed=0`.

Needs atheris (libFuzzer for Python) beside kinoise: `pip install atheris`, in an environment of its own if need be, and that
environment's interpreter as `python=`. A finding is anything but a KinoiseError: another exception, a fault in native code, an
input that takes more than 5 s of the processor or 256 MiB that nothing before took, a program run, a pickle's object looked
up, a file written elsewhere. Target: none. A process that ends early is followed by another, with the corpus and the inputs
that are left. Each kind of finding is counted once, and its first input kept in `folder`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kinoise.config import UsageError, check_seed, parse, run
from kinoise.provenance import versions
from omegaconf import MISSING

from .fuzz_child import CPU_S, GROWTH, HANG_S, MODULES
from .record import write

PART = 100_000
"""Inputs of one process at most: what native libraries leak does not add up."""
ENDS = 20
"""Processes that may end early before it is given up."""


@dataclass
class Settings:
    """The whole command line."""

    target: str = field(default=MISSING, metadata={"help": f"{' | '.join(MODULES)}"})
    inputs: int = field(default=1_000_000, metadata={"help": "to run"})
    seed: int = field(default=0, metadata={"help": "of the mutations"})
    folder: str = field(default="outputs/benchmarks/fuzz", metadata={"help": "where corpus and findings are kept"})
    python: str = field(default=sys.executable, metadata={"help": "interpreter that has atheris"})
    keep: bool = field(default=False, metadata={"help": "go on from the corpus of the run before"})

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.target != MISSING and self.target not in MODULES:
            raise UsageError(f"target={self.target}: expected one of {', '.join(MODULES)}")
        if self.inputs < 1:
            raise UsageError(f"inputs={self.inputs}: expected at least 1")


def fuzzed(settings: Settings, folder: Path, place: Path) -> dict[str, Any]:
    """The figures of all processes together."""
    done, ends, found, number, seconds, slowest, peak = 0, [], {"cov": 0, "ft": 0}, 0, 0.0, 0, 0
    while done < settings.inputs and len(ends) < ENDS:
        count = min(PART, settings.inputs - done)
        command = [settings.python, "-m", "benchmarks.fuzz_child", settings.target, str(folder), str(place)]
        began = time.perf_counter()
        said = subprocess.run([*command, str(count), str(settings.seed + number)], capture_output=True, text=True)
        seconds += time.perf_counter() - began
        number += 1
        stats = {name: int(value) for name, value in re.findall(r"stat::(\w+):\s+(\d+)", said.stderr)}
        if "number_of_executed_units" not in stats:
            raise SystemExit(f"the fuzzer did not run:\n{said.stderr[-3000:]}")
        done += stats["number_of_executed_units"]
        slowest, peak = max(slowest, stats["slowest_unit_time_sec"]), max(peak, stats["peak_rss_mb"])
        for name in found:
            values = re.findall(rf" {name}: (\d+)", said.stderr)
            found[name] = max([found[name], *map(int, values)])
        if said.returncode:
            ends.append(_end(said.stderr, said.returncode))
        print(f"{done} inputs, {found['cov']} edges, {len(_noted(folder)) + len(ends)} findings", file=sys.stderr)
    return {
        "inputs": done,
        "processes": number,
        "seconds": round(seconds, 1),
        "edges": found["cov"],
        "features": found["ft"],
        "slowest_s": slowest,
        "peak_rss_mb": peak,
        "ended_early": ends,
    }


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
    if subprocess.run([settings.python, "-c", "import atheris, kinoise"], capture_output=True).returncode:
        raise UsageError(f"python={settings.python} lacks atheris or kinoise: pip install atheris there")
    if not settings.keep:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    memory = Path("/dev/shm")  # files that never reach a disk
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory if memory.is_dir() else None) as place:
        figures = fuzzed(settings, folder, Path(place))
        command = [settings.python, "-m", "benchmarks.fuzz_child", settings.target, str(folder), place, "0", "0"]
        replayed = subprocess.run(command, capture_output=True, text=True)
    coverage = json.loads(replayed.stdout.splitlines()[-1]) if replayed.returncode == 0 else {"failed": replayed.stderr[-500:]}
    findings = [{key: item[key] for key in ("kind", "input", "bytes")} for item in _noted(folder)]
    sound = not findings and not figures["ended_early"] and figures["inputs"] >= settings.inputs
    told = {name: item for name, item in versions().items() if name in ("h5py", "pyarrow", "zarr", "safetensors", "msgpack")}
    bounds = {"cpu_s": CPU_S, "hang_s": HANG_S, "memory_bytes": GROWTH}
    what = {"settings": {**asdict(settings), "python": Path(settings.python).name}, "bounds": bounds, "libraries": told}
    write(f"fuzz_{settings.target}", {**what, **figures, "coverage": coverage, "findings": findings, "pass": sound})
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
