"""Schedules for a `FeatureCache`: which evaluations compute which branch, found from recorded features.

A feature is a branch's output; `[evaluations, samples, numbers]` of it are recorded where everything is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

Features = Mapping[str, Float[Tensor, "evaluations samples numbers"]]
Schedule = dict[str, list[int]]
"""By site, the evaluations in which it is computed, rising; the first is 0."""


def uniform(features: Features, budget: int) -> Schedule:
    """Every branch in the same `budget` evaluations, about equally far apart (FORA, arXiv 2407.01425)."""
    return {name: [round(i * len(item) / budget) for i in range(budget)] for name, item in features.items()}


def smooth(features: Features, budget: int) -> Schedule:
    """A branch is computed when its relative L1 change since it last was passes a bound (SmoothCache, arXiv 2411.10510).

    The bound is one for all branches: the least by which they are computed `budget` times on average, or less often.
    """
    changes = {name: change(item) for name, item in features.items()}

    def within(bound: float) -> Schedule:
        found: Schedule = {}
        for name, table in changes.items():
            when = [0]
            for k in range(1, len(table)):
                if table[when[-1], k] > bound:
                    when.append(k)
            found[name] = when
        return found

    def spent(found: Schedule) -> float:
        return sum(map(len, found.values())) / len(found)

    bounds = np.unique(np.concatenate([table.ravel() for table in changes.values()]))
    low, high = 0, len(bounds) - 1
    while low < high:  # what is spent need not fall with the bound everywhere, but the last bound spends least
        middle = (low + high) // 2
        low, high = (low, middle) if spent(within(bounds[middle])) <= budget else (middle + 1, high)
    return within(bounds[high])


def adaptive(features: Features, budget: int) -> Schedule:
    """For each branch the `budget` evaluations by which what is reused is most alike (arXiv 2506.13456, section 4.2)."""
    return {name: best_refreshes(similarity(item), budget) for name, item in features.items()}


METHODS: dict[str, Callable[[Features, int], Schedule]] = {"adaptive": adaptive, "smooth": smooth, "uniform": uniform}


def best_refreshes(alike: Float64[np.ndarray, "evaluations evaluations"], budget: int) -> list[int]:
    """The `budget` evaluations, 0 among them, for which the sum over k of alike[last refresh up to k, k] is largest.

    Dynamic programming over (refreshes, last of them): O(budget evaluations^2).
    """
    count = len(alike)
    # gain[i, j]: evaluations i to j - 1 served by i.
    summed = np.concatenate([np.zeros((count, 1)), np.cumsum(alike, 1)], 1)
    gain = summed - summed[np.arange(count), np.arange(count)][:, None]
    gain[np.tri(count, count + 1, -1, dtype=bool)] = -np.inf
    best = np.full((budget + 1, count + 1), -np.inf)
    best[0, 0] = 0.0
    before = np.zeros((budget + 1, count + 1), int)
    for spent in range(1, budget + 1):
        totals = best[spent - 1, :count, None] + gain  # [last refresh, where the next one is]
        totals[np.arange(count), np.arange(count)] = -np.inf
        before[spent], best[spent] = totals.argmax(0), totals.max(0)
    when, end = [], count
    for spent in range(budget, 0, -1):
        end = int(before[spent, end])
        when.append(end)
    return when[::-1]


def bubbling(schedule: Schedule, features: Features, count: int) -> Schedule:
    """Bubbling union (arXiv 2506.13456, section 4.3): the `count` feed-forwards whose reuse errs most are computed on what is
    fresh. Every branch before one of them is computed whenever it is, so that errors don't reach it from there.
    """
    order = list(features)
    errors = {name: reuse_error(features[name], schedule[name]) for name in order if name.endswith("feedforward")}
    joined = {name: set(when) for name, when in schedule.items()}
    for chosen in sorted(errors, key=errors.__getitem__, reverse=True)[:count]:
        for name in order[: order.index(chosen)]:
            joined[name] |= set(schedule[chosen])
    return {name: sorted(when) for name, when in joined.items()}


def similarity(item: Float[Tensor, "evaluations samples numbers"]) -> Float64[np.ndarray, "evaluations evaluations"]:
    """The cosine of the features at two evaluations, the mean over samples."""
    unit = torch.nn.functional.normalize(item.double(), dim=-1)
    return torch.einsum("ibn,kbn->ik", unit, unit).div(item.shape[1]).numpy(force=True)


def change(item: Float[Tensor, "evaluations samples numbers"]) -> Float64[np.ndarray, "evaluations evaluations"]:
    """|F_k - F_i| / |F_k|, L1 over all samples, for i (row) and k."""
    flat = item.double().flatten(1)
    far = torch.cdist(flat, flat, p=1)
    return (far / flat.abs().sum(-1).clamp(min=1e-12)).numpy(force=True)


def reuse_error(item: Float[Tensor, "evaluations samples numbers"], when: list[int]) -> float:
    """The mean relative L1 error over evaluations of what stands for a feature: it itself, as it last was computed."""
    table = change(item)
    last = np.maximum.accumulate(np.where(np.isin(np.arange(len(table)), when), np.arange(len(table)), 0))
    return float(table[last, np.arange(len(table))].mean())
