"""How every benchmark states and keeps its figures: ratios with their spread, command, commit and machine beside them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from kinoise.files import write_json
from kinoise.provenance import origin

RESULTS = Path(__file__).parent / "results"


def ratio(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    """The median of the pairwise ratios and their quartiles: machines drift, neighbours in time drift together."""
    low, middle, high = np.percentile(np.divide(numerator, denominator), [25, 50, 75])
    return {"ratio": round(float(middle), 3), "ratio_q25": round(float(low), 3), "ratio_q75": round(float(high), 3)}


def milliseconds(seconds: list[float]) -> dict[str, float]:
    """Their median and quartiles."""
    low, middle, high = np.percentile(seconds, [25, 50, 75]) * 1e3
    return {"median": round(float(middle), 3), "q25": round(float(low), 3), "q75": round(float(high), 3)}


def write(name: str, figures: dict[str, Any], show: bool = True) -> None:
    """Keeps the figures as `results/<name>.json`, and prints them if told to `show` them."""
    module = sys.modules["__main__"].__spec__
    command = ["python", "-m", module.name if module else name, *sys.argv[1:]]
    value = {"command": " ".join(command), **origin(), **figures}
    write_json(RESULTS / f"{name}.json", value)
    if show:
        print(json.dumps(figures, indent=2))
