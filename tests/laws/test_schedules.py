"""Laws of caching schedules, and of what stands for a feature between two refreshes."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kinoise.policies.core.cache import Every, FeatureCache, Fitted, extrapolation
from kinoise.policies.core.schedules import (
    METHODS,
    adaptive,
    best_refreshes,
    bubbling,
    reuse_error,
    similarity,
    smooth,
    uniform,
)


def drifting(seed: int, evaluations: int = 40) -> dict[str, torch.Tensor]:
    """Features of two blocks that change fast at first, and then ever less, each at a pace of its own."""
    gen = torch.Generator().manual_seed(seed)
    names = ("0.attention", "0.feedforward", "1.attention", "1.feedforward")
    found = {}
    for pace, name in enumerate(names, 1):
        angle = (1 - torch.exp(-pace * torch.arange(evaluations) / 12)) * 3
        first, second = torch.randn(2, 5, 30, generator=gen)
        found[name] = angle.cos()[:, None, None] * first + angle.sin()[:, None, None] * second
    return found


@given(st.integers(1, 6), st.integers(0, 4), st.integers(0, 1000))
def test_dynamic_programming_finds_what_trying_everything_finds(budget: int, more: int, seed: int):
    count = budget + more
    alike = np.random.default_rng(seed).uniform(-1, 1, (count, count))

    def worth(when: tuple[int, ...]) -> float:
        return sum(alike[max(i for i in when if i <= k), k] for k in range(count))

    every = [(0, *rest) for rest in combinations(range(1, count), budget - 1)]
    found = best_refreshes(alike, budget)
    assert len(found) == budget
    assert found[0] == 0
    assert worth(tuple(found)) == pytest.approx(max(map(worth, every)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [1, 7, 39, 40])
def test_a_schedule_keeps_its_budget_and_begins_with_the_first_evaluation(method: str, budget: int):
    features = drifting(0)
    schedule = METHODS[method](features, budget)
    assert list(schedule) == list(features)
    for when in schedule.values():
        assert when[0] == 0
        assert when == sorted(set(when))
        assert when[-1] < 40
    assert sum(map(len, schedule.values())) <= budget * len(features)
    if method != "smooth":
        assert {len(when) for when in schedule.values()} == {budget}


@pytest.mark.parametrize("method", [adaptive, smooth])
def test_a_fitted_schedule_errs_less_than_the_uniform_one_on_other_samples(method):
    schedule, other = method(drifting(0), 8), drifting(1)
    equal = uniform(other, 8)
    errors = [sum(reuse_error(other[name], item[name]) for name in other) for item in (schedule, equal)]
    assert errors[0] < 0.8 * errors[1]


@given(st.integers(0, 4), st.integers(2, 12), st.integers(0, 50))
def test_a_union_only_adds_and_all_before_a_chosen_feedforward_is_fresh_when_it_is(count: int, budget: int, seed: int):
    features = drifting(seed)
    before = adaptive(features, budget)
    after = bubbling(before, features, count)
    assert all(set(before[name]) <= set(after[name]) for name in features)
    assert after["1.feedforward"] == before["1.feedforward"]  # nothing is after it
    if count >= 2:
        assert all(set(before["1.feedforward"]) <= set(after[name]) for name in features)
    if count == 0:
        assert after == before


def test_a_feature_is_like_itself_and_errs_nothing_where_it_is_computed():
    item = drifting(3)["1.attention"]
    assert np.diag(similarity(item)) == pytest.approx(np.ones(40))
    assert reuse_error(item, list(range(40))) == 0


@given(st.integers(0, 3), st.integers(1, 4))
def test_an_extrapolation_of_order_n_is_exact_for_polynomials_of_that_degree(order: int, every: int):
    factors = torch.randn(order + 1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(order))

    def feature(k: int) -> torch.Tensor:
        return sum((factors[i] * (k / 10) ** i for i in range(order + 1)), torch.zeros(6, dtype=torch.float64))

    cache, computed = FeatureCache(Every(every), order), 0
    for k in range(20):

        def compute(k: int = k) -> torch.Tensor:
            nonlocal computed
            computed += 1
            return feature(k)

        cache.advance()
        value = cache.residual("0.attention", compute)
        if k >= every * order:
            assert torch.allclose(value, feature(k))
    assert computed == -(-20 // every)


def test_the_first_order_is_taylorseers_finite_difference():
    last, before, ahead, every = 12, 9, 2, 3
    assert extrapolation([before, last], last + ahead) == pytest.approx([-ahead / every, 1 + ahead / every])


def test_each_branch_follows_its_own_list():
    cache = FeatureCache(Fitted({"0.attention": [0, 2], "0.feedforward": [0, 3]}))
    seen: dict[str, list[float]] = {"0.attention": [], "0.feedforward": []}
    for k in range(5):
        cache.advance()
        for name, values in seen.items():
            values.append(cache.residual(name, lambda k=k: torch.tensor(float(k))).item())
    assert seen == {"0.attention": [0, 0, 2, 2, 2], "0.feedforward": [0, 0, 0, 3, 3]}
