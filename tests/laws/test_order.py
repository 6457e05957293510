"""Laws of training's order of data, its noise, and its learning rate: functions of (seed, update) alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kinoise.train.config import TrainConfig
from kinoise.train.optimizer import learning_rate
from kinoise.train.order import NOISE, ORDER, Order, generator

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
        noise = torch.randn(4, generator=used.noise(step))
        assert torch.equal(noise, torch.randn(4, generator=Order(windows, batch, 5).noise(step)))


@given(WINDOWS, st.integers(1, 10), st.integers(1, 4), st.integers(0, 50))
def test_processes_share_the_batch(windows: int, share: int, processes: int, step: int) -> None:
    whole = Order(windows, share * processes, 1).indices(step)
    parts = [Order(windows, share * processes, 1, rank, processes).indices(step) for rank in range(processes)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_epochs_seeds_updates_ranks_and_streams_differ() -> None:
    order = Order(1000, 1000, 0)
    assert not np.array_equal(order.indices(0), order.indices(1))
    assert not np.array_equal(order.indices(0), Order(1000, 1000, 1).indices(0))
    generators = [order.noise(0), order.noise(1), Order(1000, 1000, 1).noise(0), Order(1000, 1000, 0, 1, 2).noise(0)]
    generators += [generator(0, ORDER, 0, 0), generator(0, NOISE, 0)]
    draws = [float(torch.rand((), generator=item)) for item in generators]
    assert len(set(draws)) == len(draws)


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
