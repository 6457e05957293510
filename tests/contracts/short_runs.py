"""Runs of `kinoise train` for tests: a small policy, six updates on a few made-up episodes, and how two runs are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from kinoise.data import Episode, write_store
from kinoise.spec import Feature, Spec
from kinoise.train.__main__ import main

TINY = ["policy=diffusion", "policy.network.width=16", "policy.network.depth=1", "policy.network.heads=2"]
TINY += ["policy.chunk=4", "policy.execute=2"]
SHORT = ["train.steps=6", "train.batch_size=8", "train.save_every=2", "train.log_every=1", "train.warmup=2", "train.keep=2"]
QUIET = ["train.tensorboard=false"]
RECIPE = {"noise": 0.3, "disturb": 0.01}
CHECKPOINT = ["model.safetensors", "ema.safetensors", "config.json", "training_state/optimizer.safetensors"]


def write_data(path: Path, *, episodes: int = 3, nan: bool = False) -> Path:
    gen = np.random.default_rng(0)
    spec = Spec({"state": Feature((5,))}, Feature((2,), low=(-1.0,) * 2, high=(1.0,) * 2), rate=10.0, language=False)

    def arrays(steps: int) -> dict[str, np.ndarray]:
        state, action = gen.normal(size=(steps, 5)), gen.uniform(-1, 1, size=(steps, 2))
        if nan:
            state[3, 1] = np.nan
        return {"state": state.astype(np.float32), "action": action.astype(np.float32)}

    write_store(path, spec, [Episode(arrays(steps)) for steps in range(6, 6 + episodes)], meta={"collect": RECIPE})
    return path


def train(data: Path, out: Path, *overrides: str) -> int:
    return main([*TINY, *SHORT, *QUIET, f"data={data}", f"out={out}", *overrides])


def same_weights(one: Path, other: Path) -> bool:
    names = CHECKPOINT
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def untimed(out: Path) -> list[dict[str, Any]]:
    timed = ("steps_per_s", "elapsed_s", "data_wait")
    return [{key: value for key, value in item.items() if key not in timed} for item in records(out)]
