"""Evaluations on a line for tests: a walking policy plays them, they are cut as by a kill, and compared but for times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kinoise import envs
from kinoise.eval.evaluate import evaluate
from kinoise.eval.ledger import LEDGER
from line_world import make
from walker import WalkerPolicy

TASKS = {"line/all": ("line/go", "line/raise", "line/stuck"), "line/go": ("line/go",), "line/gone": ("line/gone",)}
EPISODES = 5
MEASURED = ("plan_ms", "plan_batch", "plans", "plan_ms_batch1")
"""What `decode_cost` holds besides what the episodes decide."""
TIMES = ("wall_s", "env_steps_per_s", "rollout")
UNTIMED = "uniform:0.03,0.1"


def on_the_line(patch: pytest.MonkeyPatch) -> None:
    """Until `patch` is undone the tasks are these."""
    patch.setattr(envs, "tasks", TASKS.__getitem__)


def weights(directory: Path) -> Path:
    """`directory` as the checkpoint that evaluations name: nobody loads it."""
    (directory / "ema.safetensors").write_bytes(b"weights")
    return directory


def unbroken(out: Path, checkpoint: Path) -> Path:
    """`out`, after an evaluation that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        on_the_line(patch)
        play(out, checkpoint)
    return out


def play(out: Path, checkpoint: Path, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"episodes": EPISODES, "seed": 7, "workers": 1, "slots": 4, "execute": 2, "make": make}
    arguments |= {"latency": UNTIMED, "progress": False, "out": out, "checkpoint": checkpoint}
    return evaluate(WalkerPolicy().eval(), changes.pop("env", "line/all"), **{**arguments, **changes})


def decided(out: Path) -> str:
    """The bytes of result.json but for times."""
    result = json.loads((out / "result.json").read_text())
    result["decode_cost"] = {key: item for key, item in result["decode_cost"].items() if key not in MEASURED}
    return json.dumps({key: item for key, item in result.items() if key not in TIMES})


def lines(out: Path) -> list[bytes]:
    return (out / LEDGER).read_bytes().splitlines(keepends=True)


def cut(out: Path, episodes: int, torn: bytes = b"") -> None:
    """Leaves what a kill after so many episodes would have."""
    (out / LEDGER).write_bytes(b"".join(lines(out)[: 1 + episodes]) + torn)
    (out / "result.json").unlink()
