"""How long `import kinoise` takes, beside an empty interpreter: `python -m benchmarks.importing`. Target: below 0.3 s."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np

from .record import write

ROUNDS = 20


def seconds(statement: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - started


def main() -> None:
    pairs = [(seconds("import kinoise"), seconds("pass")) for _ in range(ROUNDS)]
    ours, empty = np.median(pairs, axis=0)
    spread = np.percentile([a - b for a, b in pairs], [25, 75])
    write(
        "importing",
        {
            "target": 0.3,
            "import_s": round(float(ours - empty), 4),
            "import_s_quartiles": [round(float(value), 4) for value in spread],
            "interpreter_s": round(float(empty), 4),
        },
    )


if __name__ == "__main__":
    main()
