"""Intervals and paired tests against values that others computed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kinoise.eval.metrics import mcnemar, wilson
from scipy.stats import binomtest, norm

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
