"""For tests of `kinoise inspect`: episodes of a made-up robot, and what is found of a data set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from kinoise.cli import main
from kinoise.data import Episode
from kinoise.spec import Feature, Spec

SPEC = Spec(
    observations={"state": Feature((3,), names=("x", "y", "unused"), unit=("m",)), "image.top": Feature((2, 2, 3), "image")},
    action=Feature((2,), names=("dx", "grip"), unit=("m", "1"), low=(-0.1, -0.1), high=(0.1, 0.1)),
    rate=10.0,
)


def moving(rng: np.random.Generator, steps: int, text: str = "push the [red] puck", **info) -> Episode:
    state = rng.normal(size=(steps, 3)).astype(np.float32)
    action = rng.uniform(-0.1, 0.1, (steps, 2)).astype(np.float32)
    # The bound itself is allowed, though float32's 0.1 lies above float64's.
    action[0] = [0.1, -0.1]
    return Episode(
        {"state": state, "image.top": rng.integers(0, 256, (steps, 2, 2, 3), np.uint8), "action": action}, text, info
    )


def inspected(path: Path, capsys, *arguments: str) -> dict:
    assert main(["inspect", str(path), "json=true", *arguments]) == 0
    return json.loads(capsys.readouterr().out)
