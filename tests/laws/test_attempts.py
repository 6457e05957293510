"""What is kept of a collection depends on nothing but which attempts succeed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kinoise.eval.attempts import HOPELESS, TRIES, Ledger
from kinoise.spec import KinoiseError

outcomes = st.lists(st.booleans(), min_size=40, max_size=40).filter(lambda items: sum(items) >= 10)


def collect(ledger: Ledger, successes: list[bool], data: st.DataObject, workers: int) -> None:
    """Plays what the ledger wants by several workers, who finish in any order."""
    under_way: list[int] = []
    while under_way or ledger.wanted:
        while ledger.wanted and len(under_way) < workers:
            under_way.append(ledger.start())
        index = under_way.pop(data.draw(st.integers(0, len(under_way) - 1)))
        ledger.enter(index, successes[index])


def first(successes: list[bool], episodes: int) -> list[int]:
    return [index for index, success in enumerate(successes) if success][:episodes]


@given(outcomes, st.integers(1, 10), st.integers(1, 4), st.data())
def test_the_first_successes_are_kept_in_whatever_order_attempts_finish(successes, episodes, workers, data):
    ledger = Ledger("a/b", episodes, {})
    collect(ledger, successes, data, workers)
    assert list(ledger.kept) == first(successes, episodes)
    last = max(ledger.kept)
    assert sum(ledger.kept.values()) == successes[:last].count(False)
    assert len(ledger.found) <= last + workers, "more was tried than could have been needed"


@given(outcomes, st.integers(1, 10), st.sets(st.integers(0, 39)), st.data())
def test_what_was_found_from_before_is_used_and_changes_nothing(successes, episodes, before, data):
    ledger = Ledger("a/b", episodes, {index: successes[index] for index in before})
    assert not set(ledger.wanted) & before
    collect(ledger, successes, data, 2)
    assert list(ledger.kept) == first(successes, episodes)


def test_an_expert_that_nearly_always_fails_is_an_error_that_names_the_task():
    ledger = Ledger("metaworld/push", 50, {})
    for index in range(TRIES - 1):
        ledger.enter(index, False)
    with pytest.raises(KinoiseError, match="metaworld/push failed in 50 of its first 50"):
        ledger.enter(TRIES - 1, False)


def test_an_expert_that_often_fails_is_not():
    ledger = Ledger("metaworld/push", 50, {})
    every = round(1 / (1 - HOPELESS))
    for index in range(4 * TRIES):
        ledger.enter(index, index % every == 0)
    assert len(ledger.kept) == 4 * TRIES // every
