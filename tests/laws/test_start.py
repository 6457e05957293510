"""Laws of warm starts: what a guess is, and where decoding begins with one."""

from __future__ import annotations

import pytest
import torch
from kinoise.policies.core.process import ProcessConfig, make_process
from kinoise.policies.core.process.masked import Masked, MaskedConfig
from kinoise.policies.core.sampler import SAMPLERS, Reveal, reveal
from kinoise.policies.core.start import distance, remembering, shift, warm_noise, warm_tokens
from kinoise.spec import KinoiseError

PROCESSES = {
    "flow": ProcessConfig(kind="flow", parametrisation="u"),
    "edm": ProcessConfig(kind="edm", parametrisation="F", sigma_min=0.05, sigma_max=5.0),
    "vp": ProcessConfig(kind="vp", parametrisation="eps", levels=100),
}


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("elapsed", range(6))
def test_a_shifted_chunk_is_its_tail_and_then_its_last_action(elapsed: int) -> None:
    plan = torch.arange(12.0).view(1, 6, 2)
    found = shift(plan, elapsed)
    assert torch.equal(found[:, : 6 - elapsed], plan[:, elapsed:])
    assert (found[:, 6 - elapsed :] == plan[:, -1:]).all()
    assert found.shape == plan.shape


@pytest.mark.parametrize("elapsed", [-1, 6, 7])
def test_a_plan_that_is_used_up_guesses_nothing(elapsed: int) -> None:
    with pytest.raises(KinoiseError, match="from 0 to 5"):
        shift(torch.zeros(1, 6, 2), elapsed)


@pytest.mark.parametrize("name", PROCESSES)
def test_level_one_is_a_cold_start(name: str) -> None:
    process, guess = make_process(PROCESSES[name]), torch.randn(2, 4, 3, generator=gen(1))
    assert torch.equal(warm_noise(process, guess, 1.0, gen()), process.prior(guess.shape, gen()))
    masked = Masked(MaskedConfig(), (5, 5))
    tokens = torch.zeros(2, 4, 2, dtype=torch.int64)
    assert torch.equal(warm_tokens(masked, tokens, 1.0, 0), masked.prior(tokens.shape, gen()))


@pytest.mark.parametrize("level", [0.0, -0.5, 1.5, float("nan")])
def test_levels_lie_above_clean_and_up_to_noise(level: float) -> None:
    with pytest.raises(KinoiseError, match="warm start at level"):
        warm_noise(make_process(PROCESSES["flow"]), torch.zeros(1, 2, 1), level, gen())


@pytest.mark.parametrize("renoise", [True, False])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", PROCESSES)
def test_from_the_exact_plan_with_nothing_consumed_the_plan_comes_back(name: str, sampler: str, renoise: bool) -> None:
    """With a network that knows the answer, whatever noise the start adds is taken away again."""
    process, plan = make_process(PROCESSES[name]), torch.randn(2, 4, 3, generator=gen(1))
    x = warm_noise(process, shift(plan, 0), 0.3, gen(), renoise)
    found = SAMPLERS[sampler](process, lambda x, t: plan, x, process.grid(3, 0.3), gen(2))
    torch.testing.assert_close(found, plan, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("elapsed", [0, 2, 5])
def test_tokens_of_the_unknown_tail_and_the_least_sure_are_masked(level: float, elapsed: int) -> None:
    process = Masked(MaskedConfig(), (7, 7, 7))
    tokens, sure = torch.randint(0, 7, (3, 6, 3), generator=gen()), torch.rand(3, 6, 3, generator=gen(1))
    x = warm_tokens(process, tokens, level, elapsed, sure)
    masked = x == process.mask
    assert masked[:, 6 - elapsed :].all()
    known = 18 - 3 * elapsed
    assert (masked.flatten(1).sum(1) == 3 * elapsed + process.count(torch.tensor(level), known)).all()
    assert masked[:, : 6 - elapsed].any((1, 2)).all(), "nothing is asked about the guess"
    assert torch.equal(x[~masked], tokens[~masked])
    for row in range(3):
        known = masked[row, : 6 - elapsed]
        doubted, kept = sure[row, : 6 - elapsed][known], sure[row, : 6 - elapsed][~known]
        assert not len(doubted) or not len(kept) or doubted.max() <= kept.min()


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("elapsed", "prefix"), [(0, 2), (2, 3), (2, 4), (0, 6)])
def test_what_is_settled_is_never_masked_and_something_else_always_is(level: float, elapsed: int, prefix: int) -> None:
    process = Masked(MaskedConfig(), (7, 7, 7))
    tokens, sure = torch.randint(0, 7, (3, 6, 3), generator=gen()), torch.rand(3, 6, 3, generator=gen(1))
    sure[:, :prefix] = 0.0
    masked = warm_tokens(process, tokens, level, elapsed, sure, prefix) == process.mask
    assert not masked[:, :prefix].any()
    assert masked[:, 6 - elapsed :].all()
    asked = masked[:, prefix : 6 - elapsed].flatten(1)
    assert (asked.sum(1) == min(process.count(torch.tensor(level), asked.shape[1]), asked.shape[1])).all()
    assert asked.shape[1] == 0 or asked.any(1).all()


def test_kept_tokens_survive_the_rounds_of_a_warm_start() -> None:
    process = Masked(MaskedConfig(), (7, 7, 7))
    tokens = torch.randint(0, 7, (2, 6, 3), generator=gen())
    x = warm_tokens(process, tokens, 0.4, 1)
    belief = torch.randn(2, 6, 3, 7, generator=gen(1)).log_softmax(-1)
    found = reveal(process, lambda x, t: belief, x, process.grid(3, 0.4), gen(), Reveal())
    kept = x != process.mask
    assert torch.equal(found[kept], tokens[kept])
    assert torch.equal(found[~kept], belief.argmax(-1)[~kept])


def test_surprise_is_the_distance_over_what_was_known() -> None:
    guess = torch.zeros(2, 4, 2)
    belief = torch.stack([torch.full((4, 2), 0.5), torch.zeros(4, 2)])
    belief[1, 3] = 9.0
    assert distance(belief, guess, 1) == pytest.approx((0.5, 0.0))
    seen: list[torch.Tensor] = []
    asked = torch.zeros(2, 4, 2, dtype=torch.bool)
    asked[0, 0, 0] = True
    belief[0, 0, 0] = 0.7
    assert distance(belief, guess, 1, asked) == pytest.approx((0.7, 0.0))
    denoise = remembering(lambda x, t: x + 1, seen)
    denoise(torch.zeros(1), torch.ones(()))
    denoise(torch.ones(1), torch.ones(()))
    assert [item.item() for item in seen] == [1.0]
