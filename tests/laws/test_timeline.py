"""Plans in simulated time: when each is asked for and joined, what is carried out meanwhile, how smooth that is."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kinoise.config import UsageError
from kinoise.data import Episode, open_store, write_store
from kinoise.eval.evaluate import longest_delay
from kinoise.eval.latency import Late, Latency, parse_latency
from kinoise.eval.motion import demonstrated, motion
from kinoise.eval.timeline import Carried, Timeline
from kinoise.spec import Feature, Plan, Spec

CHUNK = 12
SPEC = Spec(
    {"state": Feature((1,), names=("x",), unit=("m",))},
    Feature((2,), low=(-1.0, 0.0), high=(1.0, 1.0)),
    rate=20.0,
    gripper=(1,),
    language=False,
)


def plan(number: float, chunk: int = CHUNK) -> Plan:
    """Actions that say which plan they are of, and which of its actions they are; the gripper says the plan alone."""
    steps = number + torch.arange(chunk) / 1000
    return Plan(torch.stack([steps, torch.full((chunk,), number / 10)], 1)[None], 1 / 20, 1)


def late(steps: float, spec: Spec = SPEC) -> Late:
    return Late(Latency("", "constant", (steps / spec.rate,)), spec)


def drawn(*steps: int) -> Late:
    """Replans that are late by these steps, one after the other."""

    class Drawn(Late):
        def delays(self, seed: int):
            yield from steps

    return Drawn(Latency(), SPEC)


def sources(timeline: Timeline, plans: int, chunk: int = CHUNK) -> list[list[int]]:
    """By question, plan * 1000 + action of each step until the next; 0 where the robot was held."""
    taken = [timeline.take(plan(number, chunk)) for number in range(1, plans + 1)]
    return [[round(1000 * float(value)) for value in actions[:, 0]] for actions in taken]


def test_a_plan_in_time_is_carried_out_from_its_first_action():
    assert sources(Timeline(3), 3) == [[1000, 1001, 1002], [2000, 2001, 2002], [3000, 3001, 3002]]
    assert sources(Timeline(3, late(0)), 3) == sources(Timeline(3), 3)


def test_a_late_plan_is_joined_at_the_action_whose_turn_it_is():
    first, second, third = sources(Timeline(4, late(3)), 3)
    assert first == [1000, 1001, 1002, 1003]
    assert second == [1004, 1005, 1006, 2003]
    assert third == [2004, 2005, 2006, 3003]


def test_a_plan_that_takes_longer_than_the_execution_is_waited_for_before_the_next_question():
    first, second, third = sources(Timeline(2, late(5)), 3)
    assert first == [1000, 1001], "the first plan is waited for"
    assert second == [1002, 1003, 1004, 1005, 1006]
    assert third == [2005, 2006, 2007, 2008, 2009]


@given(execute=st.integers(1, CHUNK), delay=st.integers(0, CHUNK))
def test_the_longest_delay_is_the_last_that_never_holds_the_robot(execute: int, delay: int):
    timeline = Timeline(execute, late(delay))
    steps = sum(len(part) for part in sources(timeline, 5))
    fits = delay <= longest_delay(execute, CHUNK)
    assert fits == (delay + max(execute, delay) <= CHUNK)
    assert (timeline.carried(steps).held == 0) == (fits or delay == 0)


def test_the_robot_is_held_with_its_gripper_where_no_plan_is_left_and_these_steps_are_counted():
    timeline = Timeline(2, drawn(4, 0))
    timeline.take(plan(1, 4))
    held = timeline.take(plan(2, 6))
    np.testing.assert_allclose(held, [[1.002, 0.1], [1.003, 0.1], [0, 0.1], [0, 0.1]], rtol=1e-6)
    assert timeline.previous is not None
    assert timeline.previous[1] == 4
    assert timeline.carried(100).held == 2
    assert timeline.carried(5).held == 1, "the episode ended in between"

    absolute = Timeline(2, replace(drawn(4), spec=replace(SPEC, control="absolute")))
    absolute.take(plan(1, 4))
    np.testing.assert_allclose(absolute.take(plan(2, 6))[:, 0], [1.002, 1.003, 1.003, 1.003], rtol=1e-6)


def test_a_plan_that_comes_after_its_last_action_is_never_used_and_nothing_follows_on_it():
    timeline = Timeline(2, drawn(7, 1))
    timeline.take(plan(1, 4))
    assert sources_of(timeline.take(plan(2, 4))) == [1002, 1003, 0, 0, 0, 0, 0]
    assert timeline.previous is None
    assert sources_of(timeline.take(plan(3, 4))) == [0, 3001]
    assert timeline.carried(99).joins == (10,)


def sources_of(actions: np.ndarray) -> list[int]:
    return [round(1000 * float(value)) for value in actions[:, 0]]


def test_nothing_follows_on_a_plan_with_nan():
    timeline, broken = Timeline(2), plan(1)
    broken.actions[0, 5] = torch.nan
    timeline.take(broken)
    assert timeline.previous is None
    timeline.take(plan(2))
    assert timeline.previous is not None


def test_joins_are_where_a_plan_first_has_its_say():
    early = Timeline(4, drawn(1, 1))
    for number in (1, 2, 3):
        early.take(plan(number), prefix=3)
    assert early.carried(12).joins == (7, 11), "a pinned plan begins to differ after what it was told to keep"
    assert early.carried(11).joins == (7,)
    late_ones = Timeline(4, late(6))
    for number in (1, 2, 3):
        late_ones.take(plan(number))
    assert late_ones.carried(16).joins == (10,), "the third was still awaited at the end"


@given(m=st.floats(0, 5), execute=st.integers(1, CHUNK), delays=st.lists(st.integers(0, CHUNK), min_size=3, max_size=3))
def test_an_ensemble_of_plans_that_agree_is_what_they_say(m: float, execute: int, delays: list[int]):
    timeline, plain = Timeline(execute, drawn(*delays), ensemble=m), Timeline(execute, drawn(*delays))
    for number in range(4):
        agreeing = torch.full((1, CHUNK, 2), 0.3 + (number == 9))
        assert np.array_equal(timeline.take(Plan(agreeing, 0.05, 1)), plain.take(Plan(agreeing, 0.05, 1)))
    assert timeline.carried(99).held == plain.carried(99).held


@given(m=st.floats(0, 5))
def test_an_ensemble_of_one_plan_is_that_plan(m: float):
    timeline, plain = Timeline(CHUNK, ensemble=m), Timeline(CHUNK)
    for number in (1, 2, 3):
        assert np.array_equal(timeline.take(plan(number)), plain.take(plan(number)))


def test_an_ensemble_weighs_the_oldest_most():
    timeline = Timeline(4, drawn(1, 1), ensemble=0.5)
    for number in (1, 2):
        timeline.take(plan(number))
    third = timeline.take(plan(3))
    weights = np.exp(-0.5 * np.arange(3))
    of_two = np.average([1.008, 2.004], weights=weights[:2])
    of_three = np.average([1.009, 2.005, 3.001], weights=weights)
    np.testing.assert_allclose(third[:2, 0], [of_two, of_three], rtol=1e-6)


def test_a_distribution_without_spread_is_a_constant():
    texts = ("0.15", "normal:0.15,0", "uniform:0.15,0.15", "lognormal:0.15,0")
    found = [Late(parse_latency(text) or Latency(), SPEC) for text in texts]
    assert {tuple(islice(item.delays(3), 20)) for item in found} == {(3,) * 20}
    assert {item.estimate for item in found} == {3}


@pytest.mark.parametrize(
    ("text", "mean", "p95"),
    [
        ("normal:0.5,0.1", 0.5, 0.5 + 0.1 * 1.6449),
        ("uniform:0.2,0.6", 0.4, 0.58),
        ("lognormal:0.4,0.5", 0.4 * np.exp(0.125), 0.4 * np.exp(0.5 * 1.6449)),
    ],
)
def test_draws_have_the_distribution_asked_for(text: str, mean: float, p95: float):
    found = parse_latency(text)
    assert found is not None
    assert found.text == text
    # Steps so short that rounding them up is nothing.
    steps = list(islice(Late(found, replace(SPEC, rate=1e6)).delays(1), 4000))
    assert abs(fmean(steps) / 1e6 - mean) < 0.02
    assert np.quantile(steps, 0.95) / 1e6 == pytest.approx(p95, rel=0.05)
    assert Late(found, replace(SPEC, rate=1e6)).estimate / 1e6 == pytest.approx(p95, rel=1e-3)
    assert steps == list(islice(Late(found, replace(SPEC, rate=1e6)).delays(1), 4000))
    assert steps != list(islice(Late(found, replace(SPEC, rate=1e6)).delays(2), 4000))


def test_no_latency_is_negative():
    found = parse_latency("normal:0.01,1")
    assert found is not None
    assert min(islice(Late(found, SPEC).delays(0), 200)) == 0


def test_samples_are_drawn_from_and_come_back_from_files(tmp_path: Path):
    plain, result = tmp_path / "samples.json", tmp_path / "result.json"
    plain.write_text("[0.3, 0.1, 0.2]")
    result.write_text(json.dumps({"latency": {"samples_s": [0.1, 0.2, 0.3]}}))
    one, other = (parse_latency(str(path)) for path in (plain, result))
    assert one is not None
    assert other is not None
    assert set(islice(Late(one, SPEC).delays(0), 200)) == {2, 4, 6}
    assert list(islice(Late(one, SPEC).delays(0), 200)) == list(islice(Late(other, SPEC).delays(0), 200))
    assert Late(one, SPEC).estimate == 6
    assert parse_latency("measured") is None


@pytest.mark.parametrize(
    "text", ["-1", "nan", "inf", "soon", "normal:0.1", "normal:a,b", "uniform:0.2,0.1", "normal:0.1,-1", "lognormal:0.1,0.2,3"]
)
def test_what_is_no_latency_is_refused(text: str):
    with pytest.raises(UsageError, match=text):
        parse_latency(text)


@pytest.mark.parametrize("content", ["[]", "[-1]", '["a"]', "{}", "3", '{"latency": [1]}'])
def test_files_without_samples_are_refused(tmp_path: Path, content: str):
    (tmp_path / "samples.json").write_text(content)
    with pytest.raises(UsageError, match=r"samples\.json"):
        parse_latency(str(tmp_path / "samples.json"))


def carried(actions: np.ndarray, *joins: int) -> Carried:
    return Carried(np.asarray(actions, np.float32), joins, 0, ())


def test_a_straight_line_does_not_accelerate():
    line = np.stack([np.linspace(-1, 1, 65), np.arange(65) % 2], 1)
    found = motion(SPEC, [carried(line, 20, 40)])
    assert found["acceleration"]["max"] < 1e-6, "though the gripper opens and closes at every step"
    assert found["joins"]["max"] == pytest.approx(1 / 64, rel=1e-5), "of a range of 2"
    assert (found["steps"], found["held"]) == (65, 0)


def test_acceleration_and_jumps_are_shares_of_the_range():
    kink = np.array([[0, 0], [0, 0], [0.4, 0], [0.4, 0]])
    found = motion(SPEC, [carried(kink, 2), carried(np.zeros((1, 2)))])
    assert found["joins"]["p50"] == pytest.approx(0.2)
    assert found["acceleration"]["rms"] == pytest.approx(0.2)
    assert motion(SPEC, [])["acceleration"]["rms"] is None
    assert motion(SPEC, [Carried(np.zeros((0, 0), np.float32), (), 0, ())])["joins"]["p99"] is None


def test_the_demonstrations_changes_stay_within_episodes_and_are_measured_as_jumps_are(tmp_path: Path):
    def episode(*actions: float) -> Episode:
        steps = np.array([[value, step % 2] for step, value in enumerate(actions)], np.float32)
        return Episode({"state": np.zeros((len(actions), 1), np.float32), "action": steps})

    write_store(tmp_path / "data", SPEC, [episode(-1, -0.8, -0.6), episode(1, 0.9), episode(0)])
    found = demonstrated(SPEC, open_store(tmp_path / "data"))
    assert (found["episodes"], found["steps"]) == (3, 6)
    assert found["change"]["max"] == pytest.approx(0.1, rel=1e-5), "not the 0.8 from one episode to the next"
    assert found["change"]["p50"] == pytest.approx(0.1, rel=1e-5)
    alike = motion(SPEC, [carried(np.array([[-1, 0], [-0.8, 1], [-0.6, 0]]), 1, 2)])
    assert alike["joins"]["p50"] == pytest.approx(0.1, rel=1e-5)
