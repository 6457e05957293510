"""Laws of the ring in which a run keeps its newest numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kinoise.deploy.ring import Ring

NUMBERS = st.floats(allow_nan=False)


@given(st.lists(NUMBERS, max_size=30), st.integers(1, 12))
def test_it_holds_the_newest_in_their_order(values: list[float], kept: int) -> None:
    ring = Ring(kept)
    for value in values:
        ring.append(value)
    newest = values[-kept:]
    assert (len(ring), list(ring), np.asarray(ring).tolist()) == (len(newest), newest, newest)
    assert (ring[:2], ring[-2:]) == (newest[:2], newest[-2:])
    assert [ring[place] for place in range(-len(newest), len(newest))] == newest + newest
    assert list(reversed(ring)) == newest[::-1]
    with pytest.raises(IndexError):
        ring[len(newest)]


def test_what_has_fields_comes_back_as_it_was_put_in() -> None:
    ring = Ring(2, np.dtype([("tick", np.int64), ("seconds", np.float64)]))
    for value in ((1, 0.5), (2, 0.25), (3, 0.125)):
        ring.append(value)
    assert list(ring) == [ring[0], ring[1]] == [(2, 0.25), (3, 0.125)]
