"""Simulators that crash, hang, return NaN or run out of memory, under an evaluation: what docs/faults.md says of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from kinoise.eval.evaluate import evaluate
from kinoise.eval.rollout import Rollout
from kinoise.eval.workers import Workers
from mapped_worlds import POINT, write
from small_policies import fitting
from walker import Walker, line_jobs


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parent)])


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("crash", "signal SIGSEGV"),
        ("hang", "did not answer within 1 s and was ended"),
        ("nan", "is not finite"),
    ],
)
def test_an_episode_fails_with_its_reason_and_the_evaluation_ends(trouble: str, said: str, tmp_path: Path) -> None:
    changes = {"gymnasium__kwargs": {"trouble": trouble}, "python": sys.executable, "timeout": 1}
    world = write(tmp_path, POINT, **changes)
    out = tmp_path / "out"
    result = evaluate(fitting(world), world, episodes=1, seed=0, horizon=5, workers=1, slots=1, out=out, progress=False, wait=0)
    assert result["success"]["n"] == result["success"]["errors"] == 1
    (played,) = json.loads((out / "result.json").read_text())["episodes"]
    assert played["success"] is False
    assert said in played["error"]


def test_a_worker_out_of_memory_fails_those_episodes_and_no_others() -> None:
    import hungry_world

    with Workers(hungry_world.make, 1) as workers:
        outcomes = list(Rollout(workers, line_jobs("go", episodes=6), execute=4, slots=2).run(Walker()))
    assert len(outcomes) == 6
    for item in outcomes:
        assert ("MemoryError" in (item.error or "")) == (item.job.seed % 2 == 1)
        assert item.success == (item.job.seed % 2 == 0)
