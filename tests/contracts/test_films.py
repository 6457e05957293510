"""Videos of episodes that have ended: the first of each task that succeeded and that failed, played again as they were."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kinoise.eval.films import chosen, film
from kinoise.eval.ledger import Entry
from kinoise.eval.rollout import Rollout
from kinoise.eval.workers import Workers
from line_world import make
from walker import Walker, line_jobs


@pytest.fixture(scope="module")
def pool() -> Iterator[Workers]:
    with Workers(make, 1) as workers:
        yield workers


@pytest.fixture(scope="module")
def entries(pool: Workers) -> list[Entry]:
    rollout = Rollout(pool, line_jobs("go", "stuck", "raise"), execute=4)
    outcomes = list(rollout.run(Walker()))
    return [Entry(outcome, carried) for outcome, carried in zip(outcomes, rollout.carried, strict=True)]


@pytest.mark.parametrize("most", [0, 1, 2, 9])
def test_the_first_of_each_kind_are_chosen_and_no_errors(entries: list[Entry], most: int):
    picked = chosen(entries[::-1], most)
    for task in ("line/go", "line/stuck", "line/raise"):
        for success in (True, False):
            alike = [item.outcome for item in entries if (item.key[0], item.outcome.success) == (task, success)]
            indices = sorted(item.job.index for item in alike if item.error is None)[:most]
            found = [item.outcome for item in picked if (item.key[0], item.outcome.success) == (task, success)]
            assert [item.job.index for item in found] == indices


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"total": 3.5}, "a return of 3.5, but played from the same actions "),
        ({"initial": {"goal": 0.125}}, "it began in another state"),
    ],
)
def test_a_film_shows_the_episode_that_it_is_named_after(
    pool: Workers, entries: list[Entry], tmp_path: Path, change: dict[str, Any], why: str
):
    lost = next(item for item in entries if item.outcome.error is None and not item.outcome.success)
    _, unfilmed = film(pool, [lost._replace(outcome=replace(lost.outcome, **change))], 1, tmp_path, 1)
    assert why in unfilmed[0]["why"]
    assert not list(tmp_path.iterdir())
    assert not film(pool, [lost], 1, tmp_path, 1)[1]


def test_an_episode_that_goes_another_way_has_no_video_and_it_is_said(pool: Workers, entries: list[Entry], tmp_path: Path):
    ended = [item for item in entries if item.outcome.error is None]
    first = next(item for item in ended if item.outcome.success)
    altered = [
        item._replace(outcome=replace(item.outcome, steps=item.outcome.steps + 1)) if item is first else item for item in ended
    ]
    shown, unfilmed = film(pool, altered, 1, tmp_path, 4)
    ((key, why),) = [((item["task"], item["index"]), item["why"]) for item in unfilmed]
    steps = first.outcome.steps
    assert (key, why) == (
        first.key,
        f"success after {steps + 1} steps, but played from the same actions success after {steps} steps",
    )
    paths = {item.outcome.job.film for item in shown} - {None}
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths if path}
    assert len(paths) == len(chosen(altered, 1)) - 1
    assert [item.outcome for item in shown if item.outcome.job.film is None] == [
        item.outcome for item in altered if item.key not in {other.key for other in chosen(altered, 1)} or item.key == key
    ]
