"""Laws of training's order of data, its noise, and its learning rate: functions of (seed, update) alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kinoise.policies.core.random import branched, normal, uniform
from kinoise.spec import KinoiseError
from kinoise.train.config import TrainConfig
from kinoise.train.optimizer import learning_rate
from kinoise.train.order import CYCLE, ORDER, VALIDATION, MixedOrder, Order, generator, quotas

WINDOWS, BATCH = st.integers(1, 60), st.integers(1, 40)


@given(WINDOWS, BATCH, st.integers(0, 2**31))
def test_every_epoch_is_a_permutation(windows: int, batch: int, seed: int) -> None:
    order = Order(windows, batch, seed)
    seen = np.concatenate([order.indices(step) for step in range(-(-3 * windows // batch))])
    for epoch in range(3):
        assert sorted(seen[epoch * windows : (epoch + 1) * windows]) == list(range(windows))


@given(WINDOWS, BATCH, st.lists(st.integers(0, 200), min_size=1, max_size=8))
def test_order_has_no_memory(windows: int, batch: int, steps: list[int]) -> None:
    used = Order(windows, batch, 5)
    for step in steps:
        assert np.array_equal(used.indices(step), Order(windows, batch, 5).indices(step))
        assert torch.equal(uniform((batch, 3), used.noise(step)), uniform((batch, 3), Order(windows, batch, 5).noise(step)))


@given(WINDOWS, BATCH, st.integers(1, 4), st.integers(1, 3), st.integers(0, 50))
def test_processes_and_their_parts_share_windows_and_noise(
    windows: int, more: int, processes: int, parts: int, step: int
) -> None:
    batch = processes * parts + more - 1
    whole = Order(windows, batch, 1)
    orders = [Order(windows, batch, 1, rank, processes, parts) for rank in range(processes)]
    stretches = [(order, part) for order in orders for part in range(parts)]
    indices = [order.indices(step, part) for order, part in stretches]
    assert np.array_equal(np.concatenate(indices), whole.indices(step))
    assert {len(item) for item in indices} <= {batch // (processes * parts), batch // (processes * parts) + 1}
    noise, of_all = [order.noise(step, part) for order, part in stretches], whole.noise(step)
    for shape in ((), (3, 2)):  # one draw after the other
        drawn = [normal((len(item), *shape), gen) for item, gen in zip(indices, noise, strict=True)]
        assert torch.equal(torch.cat(drawn), normal((batch, *shape), of_all))
    drawn = [uniform((len(item),), branched(gen)) for item, gen in zip(indices, noise, strict=True)]
    assert torch.equal(torch.cat(drawn), uniform((batch,), branched(of_all)))


def test_noise_for_another_number_of_rows_is_refused() -> None:
    with pytest.raises(KinoiseError, match="3 rows of a batch, where 4"):
        normal((4, 2), Order(10, 6, 0, 1, 2).noise(0))


SIZES, WEIGHTS = st.lists(st.integers(1, 12), min_size=1, max_size=4), st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 7.0])


def mixed(sizes: list[int], weights: list[float], *rest: int) -> MixedOrder:
    groups = np.split(np.random.default_rng(0).permutation(sum(sizes)), np.cumsum(sizes)[:-1])
    return MixedOrder(groups, weights, *rest)


@given(SIZES, st.data(), BATCH, st.integers(0, 2**31))
def test_shares_are_exact_over_every_cycle_and_groups_have_epochs_of_their_own(
    sizes: list[int], data: st.DataObject, batch: int, seed: int
) -> None:
    weights = [data.draw(WEIGHTS) for _ in sizes]
    order = mixed(sizes, weights, batch, seed)
    cycle = int(order.quotas.sum())
    seen = np.concatenate([order.indices(step) for step in range(-(-3 * cycle // batch))])
    counts = np.array([[np.isin(part, group).sum() for group in order.groups] for part in seen[: 3 * cycle].reshape(3, cycle)])
    assert (counts == order.quotas).all()
    np.testing.assert_allclose(order.quotas / cycle, np.array(weights) / sum(weights))
    for group in order.groups:
        own = seen[np.isin(seen, group)]
        for epoch in range(len(own) // len(group)):
            assert sorted(own[epoch * len(group) : (epoch + 1) * len(group)]) == sorted(group)


@given(SIZES, st.data(), st.lists(st.integers(0, 500), min_size=1, max_size=6))
def test_mixed_order_has_no_memory_and_processes_share_its_batches(
    sizes: list[int], data: st.DataObject, steps: list[int]
) -> None:
    weights = [data.draw(WEIGHTS) for _ in sizes]
    used = mixed(sizes, weights, 12, 5)
    for step in steps:
        whole = used.indices(step)
        assert np.array_equal(whole, mixed(sizes, weights, 12, 5).indices(step))
        shares = [mixed(sizes, weights, 12, 5, rank, 5).indices(step) for rank in range(5)]
        assert np.array_equal(np.concatenate(shares), whole)
        parts = [mixed(sizes, weights, 12, 5, rank, 2, 2).indices(step, part) for rank in range(2) for part in range(2)]
        assert np.array_equal(np.concatenate(parts), whole)


@given(st.lists(WEIGHTS, min_size=2, max_size=4), st.integers(0, 300), BATCH)
def test_every_batch_holds_its_share_but_for_a_place_or_two(weights: list[float], step: int, batch: int) -> None:
    order = mixed([5] * len(weights), weights, batch, 0)
    found = order.indices(step)
    for group, quota in zip(order.groups, order.quotas, strict=True):
        assert abs(np.isin(found, group).sum() - batch * quota / order.quotas.sum()) < 2


def test_quotas_are_the_smallest_whole_numbers() -> None:
    assert quotas([3.0, 1.0]).tolist() == [3, 1]
    assert quotas([0.2, 0.3, 0.5]).tolist() == [2, 3, 5]
    assert quotas([1e-3, 2e-3]).tolist() == [1, 2]
    assert quotas([4.0]).tolist() == [1]
    rounded = quotas([0.123456789, 1e-9, 1.0])
    assert rounded.min() == 1
    assert rounded.sum() == pytest.approx(CYCLE, abs=2)
    assert rounded[0] / rounded[2] == pytest.approx(0.123456789, abs=2 / CYCLE)


def test_seeds_and_groups_shuffle_apart() -> None:
    order = MixedOrder([np.arange(100), np.arange(100, 200)], [1.0, 1.0], 200, 0)
    first = order.indices(0)
    assert not np.array_equal(first[first < 100], first[first >= 100] - 100)
    assert not np.array_equal(first, order.indices(1))
    assert not np.array_equal(first, MixedOrder(order.groups, [1.0, 1.0], 200, 1).indices(0))


def test_epochs_seeds_updates_windows_and_streams_differ() -> None:
    order = Order(1000, 1000, 0)
    assert not np.array_equal(order.indices(0), order.indices(1))
    assert not np.array_equal(order.indices(0), Order(1000, 1000, 1).indices(0))
    generators = [order.noise(0), order.noise(1), Order(1000, 1000, 1).noise(0)]
    draws = {float(uniform((1,), gen)) for gen in (*generators, generator(0, ORDER, 0), generator(0, VALIDATION, 0))}
    assert len(draws) == 5


def test_learning_rate_rises_then_falls_to_the_floor() -> None:
    config = TrainConfig(steps=100, lr=2.0, warmup=10, floor=0.1)
    rates = [learning_rate(config, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == max(rates) == 2.0
    assert np.all(np.diff(rates[:10]) > 0)
    assert np.all(np.diff(rates[10:]) < 0)
    assert rates[55] == pytest.approx(2.0 * 0.55)
    assert rates[100] == pytest.approx(0.2)


def test_no_warmup_starts_at_the_peak() -> None:
    assert learning_rate(TrainConfig(steps=10, lr=2.0, warmup=0), 0) == 2.0
