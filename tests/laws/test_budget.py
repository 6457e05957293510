"""Laws of decoding against the clock."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kinoise.policies.core import budget
from kinoise.policies.core.budget import Budget
from kinoise.policies.core.process import ProcessConfig, make_process
from kinoise.policies.core.process.masked import Masked, MaskedConfig
from kinoise.policies.core.sampler import SAMPLERS, TOKEN_SAMPLERS, Reveal
from kinoise.spec import KinoiseError

PROCESSES = {
    "flow": ProcessConfig(kind="flow", parametrisation="u"),
    "edm": ProcessConfig(kind="edm", parametrisation="F", sigma_min=0.05, sigma_max=5.0),
    "vp": ProcessConfig(kind="vp", parametrisation="eps", levels=100),
}


class Clock:
    """A time that passes when it is told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def perf_counter(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(budget, "time", found)
    return found


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_there_is_no_plan_in_no_time(seconds):
    with pytest.raises(KinoiseError, match="budget"):
        Budget(seconds)


def test_steps_are_as_many_as_there_is_time_for(clock):
    ample = Budget(1.0, 0.125)
    assert [ample.steps(most) for most in (1, 7, 8, 9, 100)] == [1, 7, 8, 8, 8]
    clock.seconds = 0.5
    assert ample.steps(100) == 4
    clock.seconds = 2.0
    assert ample.steps(100) == 1
    assert Budget(1e-9).steps(100) == 100
    assert Budget(float("inf"), 0.125).steps(100) == 100
    clock.seconds = 0.0
    assert [Budget(1.0, 0.125).steps(100, each) for each in (1, 2, 4, 9)] == [8, 4, 2, 1]


@given(costs=st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=12), seconds=st.floats(1e-3, 4.0))
def test_no_evaluation_begins_that_would_end_too_late_if_it_were_like_those_before(costs, seconds):
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(budget, "time", clock)
        limit, left, begun = Budget(seconds), iter(costs), []

        def denoise(x, t):
            begun.append(clock.seconds)
            clock.seconds += next(left)
            return x + len(begun)

        asked = limit.keep(denoise)
        answers = [asked(torch.zeros(1), torch.tensor(1.0)).item() for _ in costs]
    spent = clock.seconds
    assert answers == sorted(answers)
    assert answers[0] == 1
    assert spent <= seconds + max(costs[: len(begun)])
    for index, begin in enumerate(begun[1:], 1):
        assert begin + max(costs[:index]) <= seconds + 1e-9
    if len(begun) < len(costs):
        assert spent + max(costs[: len(begun)]) > seconds


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_out_of_time_every_sampler_ends_at_the_last_belief(name, sampler, clock):
    process, belief = make_process(PROCESSES[name]), torch.randn(2, 4, 3, generator=gen(1))
    calls = []

    def denoise(x, t):
        calls.append(t)
        clock.seconds += 1.0
        return belief

    x = process.prior(belief.shape, gen())
    end = SAMPLERS[sampler](process, Budget(0.5).keep(denoise), x, process.grid(8), gen(2))
    assert len(calls) == 1
    torch.testing.assert_close(end, belief, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sampler", TOKEN_SAMPLERS)
def test_out_of_time_all_tokens_are_revealed(sampler, clock):
    process = Masked(MaskedConfig(), (5, 3))
    calls = []

    def denoise(x, t):
        calls.append(t)
        clock.seconds += 1.0
        belief = torch.randn(2, 4, 2, 5, generator=gen(1))
        belief[:, :, 1, 3:] = -1e4
        return belief.log_softmax(-1)

    x = process.prior((2, 4, 2), gen())
    end = TOKEN_SAMPLERS[sampler](process, Budget(2.5).keep(denoise), x, process.grid(6), gen(2), Reveal())
    assert len(calls) == 2
    assert (end != process.mask).all()
