"""Laws of the bins: what an action comes back as, how far off, and what the vocabularies look like."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from kinoise.policies.core.bins import PLACEMENTS, Bins, BinsConfig
from kinoise.spec import KinoiseError, Stats

placements = pytest.mark.parametrize("placement", PLACEMENTS)
numbers = st.floats(-1e3, 1e3, width=32)
data = hnp.arrays(np.float32, st.tuples(st.integers(2, 20), st.integers(1, 3)), elements=numbers)


def statistics(x: np.ndarray) -> Stats:
    x = x.astype(np.float64)
    rows = (x.mean(0), x.std(0), x.min(0), x.max(0), np.quantile(x, 0.01, 0), np.quantile(x, 0.99, 0))
    quantiles = np.quantile(x, np.linspace(0, 1, 257), axis=0).T
    return Stats(*(tuple(row.tolist()) for row in rows), count=len(x), quantiles=tuple(map(tuple, quantiles.tolist())))


def fit(x: np.ndarray, dims: tuple[int, ...] = (), **config: object) -> Bins:
    return Bins.fit(statistics(x), BinsConfig(**config), dims)


def normal(rows: int = 4000, dims: int = 2) -> np.ndarray:
    return np.random.default_rng(0).normal([3, -20], [1, 0.01], (rows, dims)).astype(np.float32)


def edges(bins: Bins, dimension: int) -> torch.Tensor:
    inner = bins.inner[dimension, : bins.sizes[dimension] - 1]
    return torch.cat([bins.ends[dimension, :1], inner, bins.ends[dimension, 1:]])


@given(data, st.sampled_from(PLACEMENTS), st.integers(2, 300))
def test_what_lies_within_the_range_comes_back_within_half_its_bin(x, placement, count):
    bins = fit(x, placement=placement, count=count)
    actions = torch.from_numpy(x)
    tokens = bins.encode(actions)
    back = bins.decode(tokens)
    assert tokens.min() >= 0
    assert (tokens < torch.tensor(bins.sizes)).all()
    for d in range(x.shape[1]):
        ends = edges(bins, d)
        inside = (actions[:, d] >= ends[0]) & (actions[:, d] <= ends[-1])
        half = ends.diff()[tokens[:, d]] / 2 + 1e-6 * max(1.0, float(actions[:, d].abs().max()))
        assert ((back[:, d] - actions[:, d]).abs() <= half)[inside].all()
        assert (ends.diff() >= 0).all()


@given(data, st.sampled_from(PLACEMENTS))
def test_what_stands_for_a_token_has_that_token(x, placement):
    x = np.concatenate([x, np.abs(x).max(0, keepdims=True) + 1, -np.abs(x).max(0, keepdims=True) - 1])  # no tiny ranges
    bins = fit(x, placement=placement, count=16)
    for d, size in enumerate(bins.sizes):
        actions = torch.zeros(size, x.shape[1])
        ends = edges(bins, d)
        wide = ends.diff() > 1e-4 * max(1.0, float(ends.abs().max()))  # float32 tells the middle from the edges
        actions[:, d] = bins.centres[d, :size]
        assert (bins.encode(actions)[:, d] == torch.arange(size))[wide].all()
        assert ((actions[:, d] > ends[:-1]) & (actions[:, d] < ends[1:]))[wide].all()


@placements
def test_what_lies_outside_goes_to_the_nearest_bin_and_is_counted(placement):
    x = normal()
    bins = fit(x, placement=placement, count=32, range="percentiles")
    assert bins.sizes == (32, 32)
    assert bins.encode(torch.tensor([[-1e9, 1e9]])).tolist() == [[0, 31]]
    assert bins.outside(torch.tensor([[-1e9, -20.0], [3.0, 1e9], [3.0, -20.0]])) == pytest.approx(2 / 6)
    assert bins.outside(bins.ends.T.clone()) == 0, "the ends themselves are inside"
    assert float(bins.outside(torch.from_numpy(x))) == pytest.approx(0.02, abs=2e-3)
    deviations = (bins.ends.numpy() - np.quantile(x, [0.01, 0.99], axis=0).T) / x.std(0)[:, None]
    assert np.abs(deviations).max() < 0.05, "the 1st and 99th percentiles, up to what 257 quantiles know of them"


@placements
def test_what_only_a_few_of_the_data_do_is_within_the_bins(placement):
    """One task of many that turns the hand, as little as half a percent of the data: cut off, it could not be done."""
    x = normal(dims=2)
    x[:20, 0] = 9.0
    for how in ("auto", "full"):
        bins = fit(x, placement=placement, count=256, range=how)
        assert bins.outside(torch.from_numpy(x)) == 0
        assert bins.ends[0, 1] == 9


@placements
def test_a_glitch_does_not_take_the_bins(placement):
    x = normal(dims=2)
    x[0, 0] = 1e6
    bins = fit(x, placement=placement, count=64)
    assert bins.ends[0, 1] < 10
    assert bins.outside(torch.from_numpy(x[:1])) == 0.5
    assert fit(x, placement=placement, count=64, range="full").ends[0, 1] == 1e6


def test_quantile_bins_hold_equally_many_actions_and_uniform_ones_are_equally_wide():
    x = normal()
    tokens = fit(x, placement="quantile", count=16, range="percentiles").encode(torch.from_numpy(x))
    share = torch.bincount(tokens[:, 0], minlength=16) / len(x)
    share[[0, -1]] -= 0.01  # what lies outside
    assert share.numpy() == pytest.approx(0.98 / 16, abs=0.01)
    widths = edges(fit(x, count=16), 0).diff()
    torch.testing.assert_close(widths, widths.mean().expand(16), rtol=1e-3, atol=0)


@placements
@pytest.mark.parametrize("value", [0.0, 0.1, -7.3])
def test_a_constant_dimension_has_one_token_and_comes_back_exactly(placement, value):
    x = normal()
    x[:, 1] = value
    bins = fit(x, placement=placement, count=8)
    assert bins.sizes == (8, 1)
    assert (bins.encode(torch.from_numpy(x))[:, 1] == 0).all()
    assert (bins.decode(bins.encode(torch.tensor([[3.0, value], [9.0, 5.0]])))[:, 1] == np.float32(value)).all()
    assert bins.outside(torch.tensor([[3.0, value]])) == 0


@given(numbers, st.sampled_from(PLACEMENTS))
def test_rounding_around_a_constant_is_no_vocabulary(value, placement):
    above = np.nextafter(np.float32(value), np.float32(np.inf))
    assert fit(np.array([[value], [above], [value]], np.float32), placement=placement).sizes == (1,)


@placements
@pytest.mark.parametrize("rare", [1, 12, 30])
def test_a_rare_value_survives_percentiles_that_coincide(placement, rare):
    """An effort that is spent in a few steps of a thousand still has more than one token."""
    x = np.zeros((1000, 1), np.float32)
    x[:rare] = 1.0
    bins = fit(x, placement=placement, count=50)
    assert bins.sizes[0] >= 2
    zero, one = bins.decode(bins.encode(torch.tensor([[0.0], [1.0]])))[:, 0].tolist()
    assert zero < 0.5 < one
    assert bins.outside(torch.tensor([[0.0], [1.0]])) == 0


@placements
def test_a_gripper_that_only_opens_and_closes_has_its_two_commands_as_tokens(placement):
    x = normal()
    x[:, 1] = np.where(np.random.default_rng(1).random(len(x)) < 0.3, -1.0, 0.8)
    for gripper in ("auto", "binary"):
        bins = fit(x, (1,), placement=placement, count=8, gripper=gripper)
        assert bins.sizes == (8, 2)
        torch.testing.assert_close(bins.decode(bins.encode(torch.from_numpy(x)))[:, 1], torch.from_numpy(x[:, 1]))
        assert bins.encode(torch.tensor([[0.0, -0.15], [0.0, -0.05]]))[:, 1].tolist() == [0, 1], "the nearer of the two"
    assert fit(x, (1,), count=8, gripper="bins").sizes == (8, 8)
    assert fit(x, count=8).sizes == (8, 8), "no gripper, no commands"


def test_a_gripper_that_moves_in_between_is_binned_unless_told_otherwise():
    x = normal()
    x[:, 1] = np.linspace(-1, 1, len(x))
    assert fit(x, (1,), count=8).sizes == (8, 8)
    assert fit(x, (1,), count=8, gripper="binary").sizes == (8, 2)


def test_statistics_without_quantiles_serve_what_does_not_need_them():
    stats = replace(statistics(normal()), quantiles=())
    assert Bins.fit(stats, BinsConfig(count=8)).sizes == (8, 8)
    assert Bins.fit(stats, BinsConfig(count=8, gripper="binary"), (1,)).sizes == (8, 2)
    for config, gripper in ((BinsConfig(placement="quantile"), ()), (BinsConfig(), (1,))):
        with pytest.raises(KinoiseError, match="quantiles of the actions"):
            Bins.fit(stats, config, gripper)


@placements
def test_an_expectation_is_the_token_where_it_is_certain_and_never_leaves_the_range(placement):
    x = normal()
    x[:, 1] = np.where(x[:, 1] < -20, -1.0, 1.0)
    bins = fit(x, (1,), placement=placement, count=12)
    tokens = bins.encode(torch.from_numpy(x[:50])).unflatten(0, (5, 10))
    certain = torch.nn.functional.one_hot(tokens, bins.size).float().clamp(min=1e-30).log()
    torch.testing.assert_close(bins.expect(certain, tokens), bins.decode(tokens))
    logits = torch.randn(5, 10, 2, bins.size, generator=torch.Generator().manual_seed(0))
    logits = logits.masked_fill(torch.arange(bins.size) >= torch.tensor(bins.sizes)[:, None], -1e4)
    mean = bins.expect(logits.log_softmax(-1), tokens)
    assert ((mean >= bins.ends[:, 0]) & (mean <= bins.ends[:, 1])).all()
    assert torch.equal(mean[..., 1], bins.decode(tokens)[..., 1]), "nothing lies between open and closed"
    assert not torch.allclose(mean[..., 0], bins.decode(tokens)[..., 0])


def test_statistics_stay_out_of_the_state_dict():
    assert not fit(normal()).state_dict()


@pytest.mark.parametrize("wrong", [{"count": 1}, {"placement": "even"}, {"gripper": "open"}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(KinoiseError, match=f"bins.{next(iter(wrong))}"):
        BinsConfig(**wrong)
