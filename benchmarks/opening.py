"""Seconds to open data sets of many episodes, by format: `python -m benchmarks.opening`.

Each format in a process of its own: first of all, and the median of five times after that. Opening checks everything but the
numbers; of HDF5 another process walks the file first, which `first` also begins.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from kinoise.config import parse, run
from kinoise.data import FORMATS, open_store

from .data import episodes, spec
from .record import write

SUFFIXES = {"kinoise": "", "robomimic": ".hdf5", "lerobot": "", "zarr": ".zarr"}
TIMES, STEPS, AIM_S = 5, 20, 1.0


@dataclass
class Settings:
    """The whole command line."""

    many: int = field(default=1000, metadata={"help": "episodes of each data set"})
    data: str = field(default="outputs/benchmarks/data", metadata={"help": "where the data sets are written, and left"})
    path: str | None = field(default=None, metadata={"help": "only opens this one, and prints the seconds"})
    name: str = field(default="opening", metadata={"help": "results/NAME.json"})


def seconds(path: Path) -> list[float]:
    found = []
    for _ in range(1 + TIMES):
        began = time.perf_counter()
        open_store(path)
        found.append(time.perf_counter() - began)
    return found


def main(argv: Sequence[str]) -> int:
    settings = parse("opening", Settings, argv, about=__doc__ or "")
    if settings.path is not None:
        print(json.dumps(seconds(Path(settings.path))))
        return 0
    data, found = Path(settings.data), {}
    data.mkdir(parents=True, exist_ok=True)
    for name, suffix in SUFFIXES.items():
        path = data / f"opened_{settings.many}_{name}{suffix}"
        if not path.exists():
            FORMATS[name].write(path, spec(False), episodes(settings.many, STEPS, False))
        command = [sys.executable, "-m", "benchmarks.opening", f"path={path.absolute()}"]
        first, *again = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        found[name] = {"first_s": round(first, 3), "again_s": round(float(np.median(again)), 3)}
    met = all(item["again_s"] <= AIM_S for item in found.values())
    write(settings.name, {"episodes": settings.many, "steps": STEPS, "formats": found, "aim_s": AIM_S, "pass": met})
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
