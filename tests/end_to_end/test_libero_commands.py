"""LIBERO by the console commands alone: a demonstration, two updates, and an evaluation from a stored state."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from kinoise.cli import main
from kinoise.data import open_store
from kinoise.envs import episode_seed

pytest.importorskip("libero", reason="LIBERO isn't installed: make libero")

TASK = "libero/object-0"
TINY = ["policy=mode", "policy.network.width=16", "policy.network.depth=1", "policy.network.heads=2"]
SHORT = ["train.steps=2", "train.batch_size=4", "train.tensorboard=false"]


def test_a_task_is_demonstrated_learnt_and_evaluated(tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    assert main(["collect", f"env={TASK}", "episodes=1", "workers=1", f"out={data}"]) == 0
    store = open_store(data)
    (episode,) = store.info
    assert (episode["task"], episode["success"], episode["steps"]) == (TASK, True, store.ends[0])
    assert episode["seed"] == episode_seed(0, TASK, episode["index"])
    assert store.texts == ("pick up the alphabet soup and place it in the basket",)

    assert main(["train", *TINY, *SHORT, f"data={data}", f"out={run}"]) == 0
    assert main(["eval", str(run), f"env={TASK}", "episodes=1", "horizon=20", "workers=1"]) == 0
    result = json.loads((run / "eval" / "result.json").read_text())
    protocol = result["protocol"]
    assert (protocol["env"], protocol["tasks"], protocol["episodes"], protocol["horizon"]) == (TASK, [TASK], 1, 20)
    assert (protocol["stored"], protocol["wait"]) == (50, 10)
    assert result["success"]["errors"] == 0
    assert result["tasks"].keys() == {TASK}
    (played,) = result["episodes"]
    assert (played["task"], played["index"], played["error"], played["success"]) == (TASK, 0, None, False)
    assert played["steps"] == 20
    # A stored state: demonstrations begin elsewhere.
    began, shown = played["initial"]["positions"], episode["initial"]["positions"]
    assert np.abs(np.subtract(began, shown)).max() > 1e-3
