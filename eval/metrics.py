"""What can be said from a number of episodes: intervals and paired tests."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, sqrt
from statistics import NormalDist
from typing import NamedTuple


class Interval(NamedTuple):
    """A share of successes with a confidence interval; all within [0, 1]."""

    rate: float
    low: float
    high: float


class Paired(NamedTuple):
    """McNemar's test: episodes that only the first solved, that only the second solved, and the two-sided p-value."""

    first: int
    second: int
    p: float


class Difference(NamedTuple):
    """The first share of successes minus the second, with a confidence interval; all from -1 to 1."""

    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """Two policies on the same `n` episodes: the share of successes of each, their difference, and McNemar's test."""

    n: int
    first: Interval
    second: Interval
    difference: Difference
    test: Paired


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval for a binomial share (Wilson 1927, J. Am. Stat. Assoc. 22:209).

    It covers what it promises for few episodes and for shares near 0 and 1, where the normal approximation fails: ten
    successes of ten give [0.72, 1].

    Args:
        successes: in [0, n].
        n: number of trials, at least 1.
        confidence: probability that the interval covers the true share, in (0, 1).

    Raises:
        ValueError: arguments outside these ranges.
    """
    if not 0 <= successes <= n or n < 1 or not 0 < confidence < 1:
        raise ValueError(f"wilson({successes}, {n}, {confidence}): needs 0 <= successes <= n, n >= 1, confidence in (0, 1)")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate = successes / n
    centre = rate + z * z / (2 * n)
    spread = z * sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At 0 and n the bound is exactly the rate; rounding would leave 1e-17 beside it.
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == n else (centre + spread) / scale
    return Interval(rate, low, high)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """Exact McNemar test of two policies on the same episodes (McNemar 1947, Psychometrika 12:153).

    Only the episodes that one solved and the other did not carry information. If the policies are equally good, each of
    these is a fair coin: the p-value is the two-sided binomial tail.

    Args:
        first, second: outcomes in the same order, one pair an episode.

    Raises:
        ValueError: of different lengths.
    """
    if len(first) != len(second):
        raise ValueError(f"mcnemar: {len(first)} outcomes against {len(second)}; every episode needs both")
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    n = only_first + only_second
    tail = sum(comb(n, k) for k in range(min(only_first, only_second) + 1))
    return Paired(only_first, only_second, min(1.0, 2 * tail / 2**n))


def paired_difference(first: Sequence[bool], second: Sequence[bool], confidence: float = 0.95) -> Difference:
    """How much more often the first policy succeeds than the second, both on the same episodes.

    Newcombe's method 10 (Newcombe 1998, Statistics in Medicine 17:2635): both shares' Wilson intervals, joined by the
    correlation of the outcomes, from which half an episode is taken where it is positive. Unlike the normal approximation it
    has a width where no episode, or hardly any, tells the two apart.

    Args:
        first, second: outcomes in the same order, one pair an episode; at least one.
        confidence: probability that the interval covers the true difference, in (0, 1).

    Raises:
        ValueError: of different lengths, empty, or another confidence.
    """
    only_first, only_second, _ = mcnemar(first, second)
    n, successes, others = len(first), sum(first), sum(second)
    a, b = wilson(successes, n, confidence), wilson(others, n, confidence)
    both = successes - only_first
    neither = n - both - only_first - only_second
    agreement = both * neither - only_first * only_second
    margins = successes * (n - successes) * others * (n - others)
    phi = (max(agreement - n / 2, 0) if agreement > 0 else agreement) / sqrt(margins) if margins else 0.0
    value = (only_first - only_second) / n
    below = _joined(a.rate - a.low, b.high - b.rate, phi)
    above = _joined(a.high - a.rate, b.rate - b.low, phi)
    return Difference(value, max(-1.0, value - below), min(1.0, value + above))


def compare_paired(first: Sequence[bool], second: Sequence[bool], confidence: float = 0.95) -> Comparison:
    """`wilson` of each, `paired_difference` and `mcnemar` of both; arguments and errors are those of `paired_difference`."""
    return Comparison(
        len(first),
        wilson(sum(first), len(first), confidence),
        wilson(sum(second), len(second), confidence),
        paired_difference(first, second, confidence),
        mcnemar(first, second),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being several (Holm 1979, Scandinavian Journal of Statistics 6:65), in the order given.

    Calling those below alpha different is wrong about any of the equal ones with a probability of at most alpha.
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _joined(x: float, y: float, correlation: float) -> float:
    """The length of two errors' difference. Rounding may leave less than nothing under the root."""
    return sqrt(max(0.0, x * x - 2 * correlation * x * y + y * y))
