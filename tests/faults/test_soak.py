"""The verdict of `benchmarks.soak` on series whose slope is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest


def series(slope: float, seed: int, noise: float = 1.0, count: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """An hour of values around 100 that grow by `slope`; neighbours' noise is alike."""
    gen = np.random.default_rng(seed)
    found = np.zeros(count)
    for index in range(1, count):
        found[index] = 0.5 * found[index - 1] + gen.normal()
    times = np.linspace(0, 3600, count)
    return times, 100 + slope * times / 3600 + noise * found / found.std()


def test_the_interval_holds_the_slope_about_as_often_as_it_says() -> None:
    from benchmarks.soak import slope

    inside = 0
    for seed in range(200):
        _, low, high = slope(*series(5.0, seed), seed)
        inside += low <= 5.0 / 3600 <= high
    assert 0.85 < inside / 200 <= 1.0


@pytest.mark.parametrize(
    ("grows", "noise", "count", "said"),
    [(0.0, 0.3, 240, "flat"), (8.0, 0.3, 240, "not flat"), (0.0, 30.0, 240, "undecided"), (0.0, 0.3, 7, "undecided")],
)
def test_the_verdict_needs_the_whole_interval(grows: float, noise: float, count: int, said: str) -> None:
    from benchmarks.soak import verdict

    assert verdict(*series(grows, 1, noise, count), bound=0.02)["verdict"] == said


def test_medians_are_of_each_interval() -> None:
    from benchmarks.soak import medians

    found = medians([0.0, 0.1, 0.2, 1.1, 3.5], [1.0, 5.0, 2.0, 7.0, 9.0], 1.0)["latency"]
    assert [item.tolist() for item in found] == [[0.0, 1.0, 3.0], [2.0, 7.0, 9.0]]


def test_an_hour_that_was_cut_short_is_a_row_of_the_table_too(tmp_path: Path) -> None:
    from benchmarks.tables import soak

    found = {"latency": {"intervals": 3, "verdict": "undecided"}}
    record = {"side": "server", "found": found, "bounds_per_hour": {"latency": 0.05}, "unit": {"latency": "ms"}}
    (tmp_path / "soak_server.json").write_text(json.dumps(record))
    assert "undecided" in soak(tmp_path)
