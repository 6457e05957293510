"""Laws of the weight average."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kinoise.spec import KinoiseError
from kinoise.train.ema import Ema
from torch import nn


def parameters(*values: float) -> dict[str, nn.Parameter]:
    return {f"p{index}": nn.Parameter(torch.full((3,), value)) for index, value in enumerate(values)}


def move(live: dict[str, nn.Parameter], value: float) -> None:
    with torch.no_grad():
        for item in live.values():
            item.fill_(value)


@given(st.integers(0, 10**7), st.floats(0.1, 2.0), st.floats(0.0, 1.0))
def test_decay_rises_to_its_bound(updates: int, power: float, maximum: float) -> None:
    ema = Ema(parameters(0.0), power, maximum)
    assert ema.decay(0) == 0.0
    assert 0.0 <= ema.decay(updates) <= ema.decay(updates + 1) <= maximum


def test_decay_is_diffusion_policys() -> None:
    """`EMAModel.get_decay` with inv_gamma 1: 1 - (1 + n)^-0.75 after n updates, at most 0.9999."""
    ema = Ema(parameters(0.0))
    assert ema.decay(1) == pytest.approx(1 - 2**-0.75)
    assert ema.decay(100) == pytest.approx(1 - 101**-0.75)
    assert ema.decay(10**9) == 0.9999


def test_first_update_copies() -> None:
    live = parameters(1.0)
    ema = Ema(live)
    move(live, 7.3)
    ema.update(0)
    assert torch.equal(ema.state()["p0"], live["p0"])


def test_average_of_equal_weights_is_that_weight() -> None:
    live = parameters(0.1, -3.7)
    ema = Ema(live)
    for update in range(50):
        ema.update(update)
    assert all(torch.equal(ema.state()[name], item) for name, item in live.items())


@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=20))
def test_updates_are_the_recursion(values: list[float]) -> None:
    live, expected = parameters(0.0), 0.0
    ema = Ema(live)
    for update, value in enumerate(values):
        move(live, value)
        ema.update(update)
        expected = ema.decay(update) * expected + (1 - ema.decay(update)) * value
    torch.testing.assert_close(ema.state()["p0"], torch.full((3,), expected), atol=1e-5, rtol=1e-5)


def test_state_carries_everything() -> None:
    live = parameters(1.0, 2.0)
    ema = Ema(live)
    move(live, 5.0)
    ema.update(3)
    copy = Ema(live)
    copy.load({**ema.state(), "other": torch.zeros(2)})
    for one in (ema, copy):
        one.update(4)
    assert all(torch.equal(ema.state()[name], copy.state()[name]) for name in live)
    with pytest.raises(KinoiseError, match="p1"):
        copy.load({"p0": torch.zeros(3)})


def test_applied_lends_the_averages_and_takes_them_back() -> None:
    live = parameters(0.1)
    ema = Ema(live)
    move(live, 0.7)
    before, average = live["p0"].detach().clone(), ema.state()["p0"].clone()
    with suppress(ZeroDivisionError), ema.applied():
        assert torch.equal(live["p0"], average)
        raise ZeroDivisionError
    assert torch.equal(live["p0"], before)
    assert torch.equal(ema.state()["p0"], average)
