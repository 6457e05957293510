"""Laws of the codecs: what is encoded comes back, and what never varies cannot blow up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from kinoise.policies.core.codec import CODECS, RESOLUTION, Affine
from kinoise.spec import KinoiseError, Stats

modes = st.sampled_from(sorted(CODECS))
scaling = st.sampled_from(sorted(CODECS.keys() - {"none"}))
numbers = st.floats(-1e4, 1e4, width=32)
data = hnp.arrays(np.float32, st.tuples(st.integers(2, 20), st.integers(1, 4)), elements=numbers)


def statistics(x: np.ndarray) -> Stats:
    x = x.astype(np.float64)
    rows = (x.mean(0), x.std(0), x.min(0), x.max(0), np.quantile(x, 0.01, 0), np.quantile(x, 0.99, 0))
    return Stats(*(tuple(row.tolist()) for row in rows), count=len(x))


@given(data, modes)
def test_what_is_encoded_comes_back(x, mode):
    codec, size = Affine.fit(statistics(x), mode), np.maximum(np.abs(x).max(0), 1)
    back = codec.decode(codec.encode(torch.from_numpy(x))).numpy()
    assert (np.abs(back - x) <= 2 * RESOLUTION * size).all()


@given(data, scaling, st.integers(0, 3), numbers)
def test_a_constant_dimension_is_zero_and_back_exactly(x, mode, dimension, value):
    dimension %= x.shape[1]
    x[:, dimension] = value
    codec = Affine.fit(statistics(x), mode)
    z = codec.encode(torch.from_numpy(x))
    assert (z[:, dimension] == 0).all()
    assert (codec.decode(z)[:, dimension] == value).all()
    anything = torch.randn(5, x.shape[1], generator=torch.Generator().manual_seed(0))
    assert (codec.decode(anything)[:, dimension] == value).all(), "whatever the network says"


@given(numbers, modes)
def test_a_constant_is_exact_even_where_its_mean_is_rounded(value, mode):
    codec = Affine.fit(Stats(*((item,) for item in (value * (1 + 1e-5), 0.0, value, value, value, value)), count=9), mode)
    assert codec.decode(codec.encode(torch.tensor([[value]]))) == value


@given(numbers, scaling)
def test_rounding_around_a_constant_is_not_blown_up(value, mode):
    above = np.nextafter(np.float32(value), np.float32(np.inf))
    codec = Affine.fit(statistics(np.array([[value], [above], [value]], np.float32)), mode)
    assert codec.encode(torch.tensor([[value], [above], [value + 100]])).abs().max() == 0


@given(data)
def test_numbers_as_they_are_are_as_they_are(x):
    assert torch.equal(Affine.fit(statistics(x), "none").encode(torch.from_numpy(x)), torch.from_numpy(x))


@given(data)
def test_minmax_fills_minus_one_to_one(x):
    z = Affine.fit(statistics(x), "minmax").encode(torch.from_numpy(x))
    varies = torch.from_numpy(np.ptp(x, 0) > 1e-3 * np.maximum(np.abs(x).max(0), 1))
    torch.testing.assert_close(z.amin(0)[varies], -torch.ones(int(varies.sum())), rtol=0, atol=1e-3)
    torch.testing.assert_close(z.amax(0)[varies], torch.ones(int(varies.sum())), rtol=0, atol=1e-3)


def test_each_mode_centres_and_scales_as_it_says():
    x = np.random.default_rng(0).normal(3, 2, (5000, 1)).astype(np.float32)
    stats = statistics(x)
    z = {mode: Affine.fit(stats, mode).encode(torch.from_numpy(x)) for mode in CODECS}
    assert (float(z["meanstd"].mean()), float(z["meanstd"].std())) == pytest.approx((0, 1), abs=1e-3)
    assert ((z["quantile"].abs() <= 1).float().mean()) == pytest.approx(0.98, abs=1e-3)
    assert z["minmax"].abs().max() == pytest.approx(1, abs=1e-6)


@given(st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=5))
def test_a_rare_value_survives_quantiles(values):
    """A gripper that is closed in one step of a thousand has equal quantiles, but it does move."""
    assume(max(values) - min(values) > 0.1)
    x = np.array([values[0]] * 5000 + values, np.float32)[:, None]
    codec = Affine.fit(statistics(x), "quantile")
    torch.testing.assert_close(codec.decode(codec.encode(torch.from_numpy(x))), torch.from_numpy(x), rtol=0, atol=1e-5)


def test_physical_bounds_take_the_place_of_extremes():
    stats = statistics(np.array([[0.2, 5.0], [0.4, 5.0]], np.float32))
    codec = Affine.fit(stats, "minmax", low=(-1.0, 0.0), high=(1.0, 10.0))
    torch.testing.assert_close(codec.encode(torch.tensor([[0.2, 5.0], [1.0, 0.0]])), torch.tensor([[0.2, 0.0], [1.0, -1.0]]))


def test_resized_dimensions_are_so_many_times_as_large_and_come_back():
    x = torch.tensor([[0.2, 5.0, -1.0], [0.4, 7.0, 1.0]])
    whole = Affine.fit(statistics(x.numpy()), "minmax")
    small = whole.resized((2,), 0.1)
    torch.testing.assert_close(small.encode(x), whole.encode(x) * torch.tensor([1.0, 1.0, 0.1]))
    torch.testing.assert_close(small.decode(small.encode(x)), x)


def test_statistics_stay_out_of_the_state_dict():
    assert not Affine.fit(statistics(np.eye(3, dtype=np.float32))).state_dict()


def test_wrong_modes_and_bounds_are_errors():
    stats = statistics(np.eye(3, dtype=np.float32))
    with pytest.raises(KinoiseError, match="minmax, quantile, meanstd"):
        Affine.fit(stats, "std")
    with pytest.raises(KinoiseError, match="feature of 3"):
        Affine.fit(stats, "minmax", low=(0.0,))
