"""A simulators' process that dies takes no episode along: they are played again, as they were, and each counts once."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from kinoise import envs
from kinoise.envs.base import Env
from kinoise.eval.evaluate import evaluate
from kinoise.eval.ledger import LEDGER
from kinoise.eval.rollout import Rollout
from kinoise.eval.workers import Workers
from kinoise.policies.core.random import Gen
from kinoise.policies.replan import Start
from kinoise.spec import KinoiseError, Observation, Plan
from line_world import HORIZON, ExpertDriver, make, make_sleepy, make_slow
from walker import Walker, WalkerPolicy, line_jobs, summary


def simulators() -> set[int]:
    """The ids of this process's children that run simulators."""
    children = [child for child in multiprocessing.active_children() if child.name == "kinoise-simulators"]
    return {child.pid for child in children if child.pid is not None}


class Killer(Walker):
    """Ends one of the pool's processes at the plans with these numbers."""

    def __init__(self, pool: Workers, *at: int) -> None:
        super().__init__()
        self._pool, self._at = pool, at

    def plan(self, *args: Any, **known: Any) -> Plan:
        if len(self.asked) in self._at:
            os.kill(self._pool._workers[0].process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        return super().plan(*args, **known)


@pytest.fixture(scope="module")
def whole() -> list[tuple]:
    with Workers(make, 2) as workers:
        return sorted(
            summary(list(Rollout(workers, line_jobs("go", "stuck", episodes=4), execute=4, slots=7).run(Walker()))), key=str
        )


@pytest.fixture
def pool() -> Iterator[Workers]:
    with Workers(make_slow, 2) as workers:
        yield workers


@pytest.mark.parametrize("at", [(0,), (1,), (5,), (2, 7)])
def test_what_was_under_way_in_a_killed_process_is_played_again(pool: Workers, whole: list[tuple], at: tuple[int, ...]):
    rollout = Rollout(pool, line_jobs("go", "stuck", episodes=4), execute=4, slots=7)
    outcomes = list(rollout.run(Killer(pool, *at)))
    assert sorted(summary(outcomes), key=str) == whole
    assert rollout.repeated > 0
    assert len(rollout.carried) == len(outcomes)
    assert [len(item.actions) for item in rollout.carried] == [item.steps for item in outcomes]


def test_what_kills_its_process_every_time_is_given_up_and_nothing_else(pool: Workers):
    jobs = line_jobs("die", "go", episodes=8)
    rollout = Rollout(pool, jobs, execute=4, slots=6)
    outcomes = list(rollout.run(Walker()))
    assert Counter((item.job.task, item.job.index) for item in outcomes) == Counter((job.task, job.index) for job in jobs)
    for item in outcomes:
        fatal = item.job.task == "line/die" and item.job.seed % 2 == 1
        assert (item.success, "exit code 7" in (item.error or "")) == (not fatal, fatal)


def test_what_a_simulators_own_process_lost_is_played_again(pool: Workers):
    rollout = Rollout(pool, line_jobs("lost", episodes=8), execute=4, slots=6)
    outcomes = list(rollout.run(Walker()))
    assert all(item.success and item.error is None for item in outcomes)
    assert rollout.repeated == sum(item.job.seed % 2 for item in outcomes) > 0


def test_what_hangs_every_time_is_given_up_and_nothing_else():
    jobs = line_jobs("hang", "go", episodes=4)
    with Workers(make, 2, timeout=1.0) as workers:
        outcomes = list(Rollout(workers, jobs, execute=4, slots=4).run(Walker()))
    assert Counter((item.job.task, item.job.index) for item in outcomes) == Counter((job.task, job.index) for job in jobs)
    assert any(item.error for item in outcomes)
    for item in outcomes:
        hung = item.job.task == "line/hang" and item.job.seed % 2 == 1
        assert (item.success, "did nothing for 1 s" in (item.error or "")) == (not hung, hung)


def test_a_driver_may_play_for_longer_than_a_hang_lasts():
    """As when a film is made: whole episodes within one answer."""
    jobs = [replace(job, driver=ExpertDriver()) for job in line_jobs("stuck", episodes=4)]
    with Workers(make_sleepy, 2, timeout=1.0) as workers:
        rollout = Rollout(workers, jobs, execute=1, slots=2)
        outcomes = list(rollout.run(Walker()))
    assert max(item.steps for item in outcomes) == HORIZON
    assert ([item.error for item in outcomes], rollout.repeated) == ([None] * 4, 0)


class Gone:
    """Builds worlds; but a process that is sent one ends before it can be given orders."""

    def __call__(self, task: str, *, render: bool = False) -> Env:
        return make(task, render=render)

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return os._exit, (3,)


def test_a_process_that_cannot_live_is_not_started_for_ever():
    with Workers(Gone(), 1) as workers:
        rollout = Rollout(workers, line_jobs("go", episodes=3))
        with pytest.raises(KinoiseError, match="exit code 3"):
            rollout.prepare()
        assert all("exit code 3" in (item.error or "") for item in rollout.run(Walker()))


def test_the_count_stays_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class KillingPolicy(WalkerPolicy):
        plans = 0

        def decode(self, obs: Observation, gen: Gen, start: Start) -> Plan:
            KillingPolicy.plans += 1
            if KillingPolicy.plans in (3, 11):
                os.kill((simulators() - others).pop(), signal.SIGKILL)
            return super().decode(obs, gen, start)

    others = simulators()
    monkeypatch.setattr(envs, "tasks", lambda env: ("line/go", "line/stuck"))
    how: dict[str, Any] = {"episodes": 6, "seed": 7, "workers": 2, "slots": 5, "make": make, "progress": False}
    expected = evaluate(WalkerPolicy().eval(), "line/all", **how)
    result = evaluate(KillingPolicy().eval(), "line/all", out=tmp_path, **how)
    assert result["rollout"]["repeated"] > 0 == expected["rollout"]["repeated"]
    for key in ("protocol", "success", "tasks", "episodes", "motion"):
        assert result[key] == expected[key]
    _, *lines = (tmp_path / LEDGER).read_text().splitlines()
    assert len({(item["task"], item["index"]) for item in map(json.loads, lines)}) == len(lines) == 12


ORPHAN = """
import time
from kinoise.eval.workers import start

def hang(connection):
    time.sleep(600)

if __name__ == "__main__":
    print(start(hang, name="hangs")[0].pid, flush=True)
    time.sleep(600)
"""


def test_a_process_that_hangs_ends_after_its_parent_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=60)
    assert not psutil.pid_exists(pid)
