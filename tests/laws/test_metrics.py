"""Intervals and paired tests against values that others computed."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kinoise.eval.metrics import compare_paired, holm, mcnemar, paired_difference, wilson
from scipy.stats import binomtest, multinomial, norm

Pairs = list[tuple[bool, bool]]

counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts, st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_is_scipys(count: tuple[int, int], confidence: float):
    successes, n = count
    expected = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert wilson(successes, n, confidence) == pytest.approx((successes / n, expected.low, expected.high), abs=1e-12)


@given(counts)
def test_wilsons_bounds_are_where_the_score_test_just_rejects(count: tuple[int, int]):
    successes, n = count
    rate, low, high = wilson(successes, n)
    assert 0 <= low <= rate <= high <= 1
    z = norm.ppf(0.975)
    for bound in (low, high):
        if 0 < bound < 1:
            assert (rate - bound) ** 2 == pytest.approx(z * z * bound * (1 - bound) / n, rel=1e-6, abs=1e-12)


def test_wilson_of_published_examples():
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3 (score without continuity correction).
    for successes, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson(successes, n)[1:] == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("successes", "n", "confidence"), [(1, 0, 0.95), (-1, 3, 0.95), (4, 3, 0.95), (1, 3, 1.0)])
def test_wilson_refuses_what_is_no_share(successes: int, n: int, confidence: float):
    with pytest.raises(ValueError, match="needs"):
        wilson(successes, n, confidence)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=200))
def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs(pairs: list[tuple[bool, bool]]):
    first, second, p = mcnemar([a for a, _ in pairs], [b for _, b in pairs])
    assert (first, second) == (sum(a > b for a, b in pairs), sum(b > a for a, b in pairs))
    assert p == pytest.approx(binomtest(first, first + second, 0.5).pvalue if first + second else 1.0, rel=1e-9)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60), st.integers(0, 50))
def test_mcnemar_is_symmetric_and_ignores_agreement(pairs: list[tuple[bool, bool]], agreeing: int):
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    forth, back = mcnemar(first, second), mcnemar(second, first)
    assert (forth.first, forth.second, forth.p) == (back.second, back.first, back.p)
    assert mcnemar(first + [True] * agreeing, second + [True] * agreeing) == forth


def test_mcnemar_needs_pairs():
    with pytest.raises(ValueError, match="both"):
        mcnemar([True], [True, False])


def _outcomes(both: int, first: int, second: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Two policies' outcomes, given how many episodes were solved by both, by one of them, by none."""
    return [True] * (both + first) + [False] * (second + neither), (
        [True] * both + [False] * first + [True] * second + [False] * neither
    )


def test_paired_difference_of_a_published_example():
    # Fagerland, Lydersen & Laake 2014, Statistics in Medicine 33:2850: airway hyper-responsiveness, Newcombe's interval.
    assert paired_difference(*_outcomes(1, 1, 7, 12)) == pytest.approx((-6 / 21, -0.507, -0.026), abs=5e-4)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80), st.sampled_from([0.8, 0.95, 0.99]))
def test_paired_difference_changes_sign_with_the_order_and_contains_what_was_seen(pairs: Pairs, confidence: float):
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    value, low, high = paired_difference(first, second, confidence)
    assert value == pytest.approx((sum(first) - sum(second)) / len(pairs))
    assert -1 <= low <= value <= high <= 1
    assert low < high
    assert paired_difference(second, first, confidence) == pytest.approx((-value, -high, -low), abs=1e-12)


@pytest.mark.parametrize("chances", [(0.8, 0.1, 0.05, 0.05), (0.55, 0.05, 0.25, 0.15), (0.25, 0.25, 0.25, 0.25)])
def test_paired_difference_covers_the_truth_as_often_as_it_promises(chances: tuple[float, float, float, float]):
    n, covered = 16, 0.0
    for both in range(n + 1):
        for first in range(n + 1 - both):
            for second in range(n + 1 - both - first):
                table = (both, first, second, n - both - first - second)
                _, low, high = paired_difference(*_outcomes(*table), 0.9)
                if low <= chances[1] - chances[2] <= high:
                    covered += multinomial.pmf(table, n, chances)
    assert 0.88 < covered < 0.97


@pytest.mark.parametrize("n", range(9))
def test_mcnemar_counts_the_coins_that_fall_at_least_as_far_apart(n: int):
    for only_first in range(n + 1):
        apart = abs(2 * only_first - n)
        extreme = sum(abs(2 * sum(coins) - n) >= apart for coins in product((0, 1), repeat=n))
        assert mcnemar(*_outcomes(3, only_first, n - only_first, 2)).p == extreme / 2**n


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60), st.integers(2, 5))
def test_paired_difference_narrows_with_more_of_the_same(pairs: Pairs, times: int):
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    value, low, high = paired_difference(first, second)
    more = paired_difference(first * times, second * times)
    assert more.value == pytest.approx(value)
    assert more.high - more.low < high - low


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80), st.sampled_from([0.8, 0.95]))
def test_compare_paired_is_its_parts_and_changes_sides_with_the_order(pairs: Pairs, confidence: float):
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    forth, back = compare_paired(first, second, confidence), compare_paired(second, first, confidence)
    assert forth.n == len(pairs)
    assert (forth.first, forth.second) == (wilson(sum(first), len(pairs), confidence), back.first)
    assert (forth.difference, forth.test) == (paired_difference(first, second, confidence), mcnemar(first, second))
    assert forth.test.p == back.test.p
    assert forth.difference.value == -back.difference.value == pytest.approx(forth.first.rate - forth.second.rate)
    assert (forth.difference.low, forth.difference.high) == pytest.approx((-back.difference.high, -back.difference.low))


@given(st.lists(st.booleans(), min_size=1, max_size=80))
def test_compare_paired_of_equal_outcomes_finds_nothing(outcomes: list[bool]):
    found = compare_paired(outcomes, list(outcomes))
    assert (found.difference.value, found.test) == (0, (0, 0, 1))
    assert found.difference.low == pytest.approx(-found.difference.high)


def test_paired_difference_needs_pairs():
    with pytest.raises(ValueError, match="both"):
        paired_difference([True], [True, False])
    with pytest.raises(ValueError, match="n >= 1"):
        paired_difference([], [])


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.001, 0.5))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values: list[float], alpha: float):
    rejected: set[int] = set()
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda item: p_values[item])):
        if p_values[index] * (len(p_values) - place) > alpha:
            break
        rejected.add(index)
    adjusted = holm(p_values)
    assert rejected == {index for index, value in enumerate(adjusted) if value <= alpha}
    assert all(p <= value <= 1 for p, value in zip(p_values, adjusted, strict=True))
