"""Rollouts whose plans come late, by constant and by drawn delays, with prefixes and means; and what `evaluate` makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kinoise import envs
from kinoise.config import UsageError, parse
from kinoise.eval.evaluate import evaluate
from kinoise.eval.latency import Late, Latency, parse_latency
from kinoise.eval.rollout import Rollout
from kinoise.eval.settings import Settings
from kinoise.eval.workers import Workers
from kinoise.spec import KinoiseError, Observation, Plan
from line_world import HORIZON, SPEC, make
from walker import CHUNK, Walker, WalkerPolicy, line_jobs, summary


@pytest.fixture(scope="module")
def pool() -> Iterator[Workers]:
    with Workers(make, 2) as workers:
        yield workers


def late(text: str) -> Late:
    found = parse_latency(text)
    assert found is not None
    return Late(found, SPEC)


def steps(count: int) -> Late:
    return Late(Latency("", "constant", (count / SPEC.rate,)), SPEC)


class Carrier(Walker):
    """Checks that each episode's plan before comes back to it, and to it alone; episodes are known by their generators."""

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[int, torch.Tensor] = {}
        self.told: Counter[tuple[int, int]] = Counter()
        self.first = 0

    def plan(self, obs, gen, *, previous: Plan | None = None, elapsed: int = 0, prefix: int = 0) -> Plan:
        for row, own in enumerate(gen):
            if previous is None:
                assert own.initial_seed() not in self.before
            else:
                assert torch.equal(previous.actions[row], self.before[own.initial_seed()])
        self.first += len(gen) * (previous is None)
        self.told[elapsed, prefix] += len(gen)
        plan = super().plan(obs, gen)
        self.before |= {own.initial_seed(): plan.actions[row] for row, own in enumerate(gen)}
        return plan


def test_every_episode_carries_its_own_plan(pool: Workers):
    jobs, carrier = line_jobs("go", "other"), Carrier()
    assert all(item.success for item in Rollout(pool, jobs, execute=4, slots=3, carry=True).run(carrier))
    assert carrier.first == len(jobs)
    assert carrier.told.keys() == {(0, 0), (4, 0)}
    assert carrier.told[4, 0] > len(jobs)


def test_rows_whose_plans_have_passed_alike_share_a_plan_and_no_others(pool: Workers):
    """With drawn delays: the prefix is the estimate, or what is left of the plan before."""
    jobs, carrier, delays = line_jobs("stuck", "other", episodes=5), Carrier(), late("uniform:0.0,0.1")
    list(Rollout(pool, jobs, execute=2, slots=6, late=delays, pin=True).run(carrier))
    assert delays.estimate == 4
    assert carrier.first == len(jobs)
    assert carrier.told.keys() == {(0, 0), (2, 4), (3, 4), (4, 4)}


class Clerk:
    """Plans whose actions say which plan they are of, and which of its actions they are: plan + index / 1000."""

    def __init__(self, chunk: int = CHUNK) -> None:
        self.chunk, self.plans = chunk, 0
        self.told: list[dict] = []
        self.clock: list[int] = []

    def plan(self, obs: Observation, gen: Sequence[torch.Generator], **told) -> Plan:
        self.told.append(told)
        self.clock.append(int(obs.values["state"][0, -1, 2]))
        self.plans += 1
        actions = self.plans + torch.arange(self.chunk).view(1, -1, 1).expand(obs.batch, -1, 1) / 1000
        if told.get("prefix"):
            start = told["elapsed"]
            actions = actions.clone()
            actions[:, : told["prefix"]] = told["previous"].actions[:, start : start + told["prefix"]]
        return Plan(actions.float(), 1 / 40, 1)


def still(count: int = 1) -> list:
    """Episodes that last until the horizon."""
    return [job for job in line_jobs("stuck", episodes=12) if job.seed % 2][:count]


@pytest.mark.parametrize("pin", [False, True])
@pytest.mark.parametrize("delay", [0, 1, 3, 4])
def test_while_a_plan_is_made_the_one_before_goes_on(pool: Workers, delay: int, pin: bool):
    clerk = Clerk()
    rollout = Rollout(pool, still(), execute=4, slots=1, late=steps(delay), pin=pin, carry=True)
    list(rollout.run(clerk))
    (carried,) = rollout.carried
    first, second = carried.actions[:4], carried.actions[4:8]
    np.testing.assert_allclose(first[:, 0], [1.0, 1.001, 1.002, 1.003])
    late = [1.004, 1.005, 1.006, 1.007][:delay]
    np.testing.assert_allclose(second[:, 0], [*late, *(2 + np.arange(delay, 4) / 1000)], rtol=1e-6)
    assert clerk.told[0] == {}
    assert [told["elapsed"] for told in clerk.told[1:]] == [4] * (len(clerk.told) - 1)
    assert [told.get("prefix", 0) for told in clerk.told[1:]] == [delay if pin else 0] * (len(clerk.told) - 1)
    assert carried.actions.shape == (HORIZON, 1)
    assert carried.joins == tuple(range(4 + delay, HORIZON, 4))
    assert carried.held == 0
    assert set(carried.delays) == {delay}


@pytest.mark.parametrize(("execute", "delay", "asked"), [(2, 4, [0, 2, 6, 10, 14]), (3, 4, [0, 3, 7, 11]), (4, 4, [0, 4, 8])])
def test_one_question_at_a_time(pool: Workers, execute: int, delay: int, asked: list[int]):
    clerk = Clerk()
    list(Rollout(pool, still(), execute=execute, slots=1, late=steps(delay)).run(clerk))
    assert clerk.clock[: len(asked)] == asked


def test_a_chunk_that_does_not_last_until_the_next_plan_is_refused(pool: Workers):
    with Workers(make, 1) as workers, pytest.raises(KinoiseError, match="and 4 more to go"):
        list(Rollout(workers, still(), execute=4, slots=1, late=steps(4)).run(Clerk(chunk=7)))


def test_a_plan_later_than_its_chunk_has_the_robot_held(pool: Workers):
    seldom = Late(Latency("", "samples", (0.0,) * 97 + (1.0,) * 3), SPEC)
    rollout = Rollout(pool, still(6), execute=1, slots=3, late=seldom)
    outcomes = list(rollout.run(Clerk()))
    assert seldom.estimate == 0
    held = [item.held for item in rollout.carried]
    assert any(held)
    for item, outcome in zip(rollout.carried, outcomes, strict=True):
        assert len(item.actions) == outcome.steps == HORIZON
        assert item.held == np.count_nonzero(item.actions == 0)


@pytest.mark.parametrize(
    "options",
    [
        {"late": late("uniform:0.0,0.1")},
        {"late": late("lognormal:0.05,0.3"), "pin": True},
        {"late": late("normal:0.05,0.02"), "ensemble": 0.01, "carry": True},
    ],
)
def test_drawn_delays_depend_neither_on_processes_nor_on_slots(pool: Workers, options: dict[str, Any]):
    class Told(Walker):
        def plan(self, obs, gen, **told) -> Plan:
            return super().plan(obs, gen)

    def play(workers: Workers, slots: int) -> tuple[list, dict]:
        rollout = Rollout(workers, line_jobs("go", "stuck", episodes=5), execute=3, slots=slots, **options)
        outcomes = list(rollout.run(Told()))
        played = zip(outcomes, rollout.carried, strict=True)
        return sorted(summary(outcomes)), {
            (outcome.job.task, outcome.job.index): (item.delays, item.joins, item.held) for outcome, item in played
        }

    expected = play(pool, 7)
    assert len({item[0][:3] for item in expected[1].values()}) > 1, "each episode has its own draws"
    assert play(pool, 2) == expected
    with Workers(make, 1) as alone:
        assert play(alone, 7) == expected


def test_no_latency_changes_nothing(pool: Workers):
    def play(**options: Any) -> tuple[list, list[np.ndarray]]:
        walker = Walker()
        outcomes = list(Rollout(pool, line_jobs("go", "stuck"), execute=3, slots=5, **options).run(walker))
        return summary(outcomes), [obs.values["state"].numpy() for obs in walker.asked]

    expected, batches = play()
    for options in ({"late": late("0")}, {"late": late("uniform:0,0")}):
        outcomes, again = play(**options)
        assert outcomes == expected
        assert len(again) == len(batches)
        assert all(np.array_equal(one, other) for one, other in zip(again, batches, strict=True))


@pytest.fixture
def _line_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envs, "tasks", lambda env: ("line/go", "line/stuck"))


def play(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"episodes": 4, "seed": 7, "workers": 2, "slots": 6, "make": make, "progress": False}
    return evaluate(WalkerPolicy().eval(), "line/all", **{**arguments, **changes})


def walked(result: dict[str, Any]) -> list[tuple[int, float]]:
    return [(item["steps"], item["return"]) for item in result["episodes"]]


@pytest.mark.usefixtures("_line_world")
def test_latency_is_part_of_the_result_and_a_constant_is_a_distribution_without_spread():
    plain, constant = play(), play(latency=0.05)
    assert "latency" not in plain
    assert (constant["decode"]["latency"], constant["decode"]["delay"]) == ("0.05", 2)
    assert constant["latency"]["delays"]["p50"] == constant["latency"]["delays"]["max"] == 2
    assert walked(constant) != walked(plain)
    same = play(latency="normal:0.05,0")
    assert walked(same) == walked(constant)
    assert (same["motion"], same["decode"]["delay"]) == (constant["motion"], 2)
    averaged = play(latency=0.05, ensemble=0.01)
    assert averaged["decode"]["ensemble"] == 0.01
    assert walked(averaged) != walked(constant)


@pytest.mark.usefixtures("_line_world")
def test_a_measured_latency_is_repeated_from_its_result(tmp_path: Path):
    measured = play(latency="measured", out=tmp_path)
    assert measured["decode"]["latency"] == "measured"
    assert len(measured["latency"]["samples_s"]) > 10
    assert all(item > 0 for item in measured["latency"]["samples_s"])
    again = play(latency=str(tmp_path / "result.json"), workers=1)
    assert again["episodes"] == measured["episodes"]
    assert again["latency"] == measured["latency"]


@pytest.mark.usefixtures("_line_world")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"latency": 0.125}, "5 steps at 40 Hz.*execute=4 of a chunk of 8 it can be 4 at most"),
        ({"latency": "normal:0.05,0.05"}, "can be 4 at most"),
        ({"latency": 0.05, "execute": 7}, "can be 1 at most"),
        ({"latency": -1.0}, "at least 0"),
        ({"latency": "slow"}, "neither a file"),
        ({"ensemble": -0.1}, "at least 0"),
        ({"ensemble": 0.01, "pin": True}, "no pin"),
    ],
)
def test_what_a_chunk_cannot_bridge_is_refused(wrong: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        play(**wrong)


@pytest.mark.parametrize("latency", ["0.15", "normal:0.1,0.03", "lognormal:0.1,0.5", "measured", "/tmp/a=b,c/result.json"])
def test_the_command_takes_each_kind_of_latency_as_it_is_written(latency: str):
    assert parse("eval", Settings, ["run", f"latency={latency}"], positional="run").latency == latency
