"""The numbers that `kinoise report` draws: axes hold their values, thinned curves keep outliers, figures keep their value."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kinoise.eval.charts import Axis, thin
from kinoise.eval.text import number


@given(values=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20), log=st.booleans())
def test_an_axis_holds_its_values_and_has_a_few_ticks_in_order(values: list[float], log: bool) -> None:
    axis = Axis.around(values, log=log)
    assert all(-1e-9 <= axis(value) <= 1 + 1e-9 for value in values)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 12
    assert all(-1e-3 <= axis(tick) <= 1 + 1e-3 for tick in ticks)
    assert all(a < b for a, b in itertools.pairwise(ticks))


@given(values=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=2000), bins=st.integers(1, 200))
def test_thinning_loses_no_outlier(values: list[float], bins: int) -> None:
    thinned = thin(list(enumerate(values)), bins)
    assert len(thinned) <= bins
    assert (min(item.low for item in thinned), max(item.high for item in thinned)) == (min(values), max(values))
    assert all(item.low - 1e-9 <= item.mean <= item.high + 1e-9 for item in thinned)


@given(value=st.floats(1e-12, 1e12))
def test_a_figure_keeps_its_value(value: float) -> None:
    text = number(value).replace("\N{MINUS SIGN}", "-")
    scale = {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1], 1.0)
    assert float(text.rstrip("kMG")) * scale == pytest.approx(value, rel=0.006)
    assert len(text) <= 8
