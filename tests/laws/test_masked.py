"""Laws of the masked process: how much is hidden when, and what a belief about the hidden costs."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kinoise.policies.core.process import Prediction, Process
from kinoise.policies.core.process.masked import SCHEDULES, WEIGHTS, Masked, MaskedConfig, gumbel, sample, surest
from kinoise.policies.core.sampler import TOKEN_SAMPLERS, Reveal
from kinoise.policies.core.sampler.reveal import CONFIDENCES
from kinoise.spec import KinoiseError

SIZES = (7, 2, 4)
CHUNK = 5
TOKENS = CHUNK * len(SIZES)
schedules = pytest.mark.parametrize("schedule", SCHEDULES)
weights = pytest.mark.parametrize("weight", WEIGHTS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def process_of(schedule: str = "cosine", sizes: tuple[int, ...] = SIZES, **config: object) -> Masked:
    return Masked(MaskedConfig(schedule=schedule, **{"full": 0.0, "smooth": 0.0, **config}), sizes)


def clean_tokens(rows: int = 6, seed: int = 0) -> torch.Tensor:
    draws = torch.rand(rows, CHUNK, len(SIZES), generator=generator(seed))
    return (draws * torch.tensor(SIZES)).long()


def time(t: float) -> torch.Tensor:
    return torch.tensor(t, dtype=torch.float64)


def certain(tokens: torch.Tensor, size: int = max(SIZES)) -> torch.Tensor:
    """Logits of one who knows."""
    return torch.nn.functional.one_hot(tokens, size) * 200.0 - 100


def hidden(process: Masked, x: torch.Tensor) -> torch.Tensor:
    return (x == process.mask).flatten(1).sum(-1)


@schedules
def test_a_schedule_runs_from_nothing_to_all_and_its_slope_is_its_derivative(schedule):
    gamma, slope = SCHEDULES[schedule]
    t = torch.linspace(0, 1, 401, dtype=torch.float64, requires_grad=True)
    shares = gamma(t)
    assert (shares[0].item(), shares[-1].item()) == pytest.approx((0, 1), abs=1e-12)
    assert (shares.diff() > 0).all()
    (derivative,) = torch.autograd.grad(shares.sum(), t)
    torch.testing.assert_close(slope(t), derivative)


@given(st.sampled_from(sorted(SCHEDULES)), st.floats(0, 1, exclude_min=True), st.integers(0, 99))
def test_the_masked_share_is_the_schedule_s(schedule, t, seed):
    process, clean = process_of(schedule), clean_tokens(2)
    x = process.corrupt(clean, time(t), generator(seed))
    expected = max(1, round(float(process.share(time(t))) * TOKENS))
    assert hidden(process, x).tolist() == [expected] * 2
    assert ((x == clean) | (x == process.mask)).all()
    each = process.corrupt(clean, time(t).expand(2), generator(seed))
    assert torch.equal(each, x), "one time for all is that time for each"


@schedules
def test_every_place_is_hidden_as_often_as_any_other(schedule):
    process = process_of(schedule)
    clean = clean_tokens(1).expand(4000, -1, -1).contiguous()
    t = torch.rand(4000, generator=generator(), dtype=torch.float64)
    masked = (process.corrupt(clean, t, generator(1)) == process.mask).float().mean(0)
    mean = {"linear": 0.5, "cosine": 2 / math.pi}[schedule]
    assert masked.numpy() == pytest.approx(mean, abs=0.04)
    assert float(masked.mean()) == pytest.approx(mean, abs=0.015)


@schedules
def test_at_the_ends_nothing_and_everything_is_hidden(schedule):
    process, clean = process_of(schedule), clean_tokens()
    assert torch.equal(process.corrupt(clean, time(0), generator()), clean)
    assert torch.equal(process.corrupt(clean, torch.zeros(6, dtype=torch.float64), generator()), clean)
    assert torch.equal(process.corrupt(clean, time(1), generator()), process.prior(clean.shape, generator()))
    assert isinstance(process, Process)


def test_rows_are_hidden_by_their_own_generators():
    process, clean, t = process_of(), clean_tokens(3), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    together = process.corrupt(clean, t, [generator(seed) for seed in range(3)])
    for row in range(3):
        alone = process.corrupt(clean[row : row + 1], t[row : row + 1], [generator(row)])
        assert torch.equal(alone[0], together[row])


def test_the_published_schedule_commits_these():
    """Discrete Diffusion VLA: 8 actions of 7 numbers in 12 rounds."""
    process = process_of(sizes=(256,) * 7)
    left = torch.tensor([process.count(t, 56) for t in process.grid(12)])
    assert (-left.diff()).tolist() == [1, 1, 3, 3, 4, 5, 5, 6, 7, 7, 7, 7]


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 60), st.integers(1, 80))
def test_a_decoder_leaves_ever_fewer_and_none_before_the_end(schedule, steps, tokens):
    process = process_of(schedule)
    left = [process.count(t, tokens) for t in process.grid(steps)]
    assert left[0] == tokens
    assert left[-1] == 0
    assert all(before >= after for before, after in pairwise(left))
    assert all(0 < item < max(tokens, 2) for item in left[1:-1])


@pytest.mark.parametrize("confidence", CONFIDENCES)
@pytest.mark.parametrize("sampler", TOKEN_SAMPLERS)
@schedules
def test_who_knows_the_tokens_finds_them_again(schedule, sampler, confidence):
    process, clean = process_of(schedule), clean_tokens()
    for t in (0.1, 0.6, 1.0):
        x = process.corrupt(clean, time(t), generator())
        for steps in (1, 3, 12):
            how = Reveal(confidence=confidence, temperature=1.0, noise="tokens")
            belief = certain(clean).log_softmax(-1)
            end = TOKEN_SAMPLERS[sampler](process, lambda x, t, b=belief: b, x, process.grid(steps), generator(1), how)
            assert torch.equal(end, clean)


def network(logits: torch.Tensor):
    return lambda x, noise, ctx: Prediction(logits)


@schedules
@weights
def test_knowing_costs_nothing(schedule, weight):
    process, clean = process_of(schedule, weight=weight), clean_tokens()
    losses = process.loss(network(certain(clean)), clean, None, torch.ones(6, CHUNK, dtype=torch.bool), generator())
    assert losses.per_sample.abs().max() < 1e-6
    assert not losses.auxiliary


@schedules
@weights
def test_only_hidden_tokens_of_real_steps_count(schedule, weight):
    process, clean = process_of(schedule, weight=weight), clean_tokens()
    valid = torch.arange(CHUNK)[None] < torch.tensor([1, 2, 3, 4, 5, 5])[:, None]
    t = torch.full((6,), 0.5, dtype=torch.float64)
    x = process.corrupt(clean, t, generator())
    counted = (x == process.mask) & valid[..., None]
    assert counted.any() and not counted.all()  # noqa: PT018
    logits = torch.randn(*clean.shape, max(SIZES), generator=generator(2))
    before = process.loss_at(network(logits), clean, None, valid, t, x).per_sample
    elsewhere = torch.where(counted, clean, (clean + 1) % torch.tensor(SIZES))
    assert torch.equal(process.loss_at(network(logits), elsewhere, None, valid, t, x).per_sample, before)
    moved = torch.where(counted[..., None], logits, torch.randn(logits.shape, generator=generator(3)))
    assert torch.equal(process.loss_at(network(moved), clean, None, valid, t, x).per_sample, before)
    there = torch.where(counted, (clean + 1) % torch.tensor(SIZES), clean)
    after = process.loss_at(network(logits), there, None, valid, t, x).per_sample
    assert ((after != before) == counted.flatten(1).any(-1)).all()
    nothing = process.loss_at(network(logits), clean, None, torch.zeros_like(valid), t, x).per_sample
    assert torch.equal(nothing, torch.zeros(6)), "a row without any"


@schedules
@weights
def test_believing_nothing_costs_the_logarithm_of_the_vocabulary(schedule, weight):
    """For the bound that is so on average over times, which are those of a fine grid here."""
    process = process_of(schedule, sizes=(6, 6, 6), weight=weight)
    rows = 4000
    t = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
    clean = torch.zeros(rows, CHUNK, 3, dtype=torch.int64)
    x = process.corrupt(clean, t, generator())
    valid = torch.ones(rows, CHUNK, dtype=torch.bool)
    found = process.loss_at(network(torch.zeros(rows, CHUNK, 3, 6)), clean, None, valid, t, x).per_sample
    assert float(found.mean()) == pytest.approx(math.log(6), rel=0.03)
    if weight == "masked":
        torch.testing.assert_close(found, torch.full((rows,), math.log(6)))


def test_a_uniform_belief_costs_each_dimension_its_own_vocabulary():
    process, clean = process_of(), clean_tokens(1)
    valid, t = torch.ones(1, CHUNK, dtype=torch.bool), torch.ones(1, dtype=torch.float64)
    logits = torch.zeros(1, CHUNK, 3, 7).masked_fill(torch.arange(7) >= torch.tensor(SIZES)[:, None], -1e4)
    x = process.prior(clean.shape, generator())
    found = process.loss_at(network(logits), clean, None, valid, t, x).per_sample
    assert found.item() == pytest.approx(sum(map(math.log, SIZES)) / 3)


def test_the_bound_s_weight_is_one_over_t_and_never_more_than_the_tokens():
    """One token is hidden even at the smallest time; a weight without bound would make its expected loss infinite."""
    process = process_of("linear", sizes=(6, 6, 6), weight="bound")
    t = torch.tensor([1e-7, 1e-3, 0.1, 0.25, 0.5, 1.0], dtype=torch.float64)
    clean, valid = torch.zeros(6, CHUNK, 3, dtype=torch.int64), torch.ones(6, CHUNK, dtype=torch.bool)
    x = process.corrupt(clean, t, generator())
    found = process.loss_at(network(torch.zeros(6, CHUNK, 3, 6)), clean, None, valid, t, x).per_sample
    weight = found / math.log(6) / hidden(process, x) * TOKENS
    torch.testing.assert_close(weight, (1 / t).clamp(max=TOKENS).float())


@pytest.mark.parametrize("full", [0.0, 0.25, 0.9])
def test_so_many_samples_are_trained_with_everything_hidden_and_the_others_at_uniform_times(full):
    process, seen = process_of("linear", full=full), []

    def noted(x, noise, ctx):
        seen.append(noise)
        return Prediction(torch.zeros(*x.shape, max(SIZES)))

    rows = 20_000
    clean, valid = torch.zeros(rows, 1, 3, dtype=torch.int64), torch.ones(rows, 1, dtype=torch.bool)
    process.loss(noted, clean, None, valid, generator())
    t = seen[0]
    assert float((t == 1).double().mean()) == pytest.approx(full, abs=0.01)
    assert t.min() > 0
    rest = t[t < 1].sort().values
    torch.testing.assert_close(rest, torch.linspace(0, 1, len(rest), dtype=torch.float64), rtol=0, atol=0.04)


@pytest.mark.parametrize("smooth", [0.05, 1.0, 3.0])
def test_smooth_targets_are_distributions_within_each_vocabulary(smooth):
    tables = process_of(smooth=smooth)._targets
    assert tables.shape == (3, 7, 7)
    for table, size in zip(tables, SIZES, strict=True):
        torch.testing.assert_close(table.sum(-1), torch.ones(7))
        assert (table >= 0).all()
        if size == 2:
            assert torch.equal(table[:2], torch.eye(7)[:2]), "open is no neighbour of closed"
        else:
            assert not table[:, size:].any()
            assert torch.equal(table[:size].argmax(-1), torch.arange(size))
            torch.testing.assert_close(table[:size, :size], table[:size, :size].flip(0, 1))


def test_a_smooth_target_costs_its_entropy_at_best():
    process, clean, valid = process_of(smooth=1.0), clean_tokens(), torch.ones(6, CHUNK, dtype=torch.bool)
    t = torch.ones(6, dtype=torch.float64)
    x = process.prior(clean.shape, generator())
    target = process._targets[torch.arange(3), clean]
    best = process.loss_at(network(target.clamp(min=1e-30).log()), clean, None, valid, t, x).per_sample
    entropy = -torch.special.xlogy(target, target).sum(-1).flatten(1).mean(-1)
    torch.testing.assert_close(best, entropy)
    assert (process.loss_at(network(certain(clean)), clean, None, valid, t, x).per_sample > best).all()


@schedules
def test_a_new_step_has_the_posterior_s_marginals(schedule):
    """q(x_s | x_t, x0): what is masked stays so with probability gamma(s) / gamma(t), what is there stays."""
    process, t, s = process_of(schedule, sizes=(4, 4, 4)), time(0.8), time(0.3)
    x = torch.full((3000, CHUNK, 3), process.mask)
    x[:, 0] = 1
    p = torch.tensor([0.1, 0.2, 0.3, 0.4])
    end = process.bridge(x, p.log().expand(*x.shape, 4), t, s, generator(), eta=1.0)
    assert (end[:, 0] == 1).all()
    stays = float(process.share(s) / process.share(t))
    assert float((end[:, 1:] == process.mask).float().mean()) == pytest.approx(stays, abs=0.01)
    appeared = end[:, 1:][end[:, 1:] != process.mask]
    torch.testing.assert_close(torch.bincount(appeared, minlength=4) / len(appeared), p, rtol=0, atol=0.02)
    assert not (process.bridge(x, p.log().expand(*x.shape, 4), s, time(0), generator(), eta=1.0) == process.mask).any()


def test_between_new_noise_and_none_there_is_nothing():
    process = process_of()
    x = process.prior((1, CHUNK, 3), generator())
    with pytest.raises(KinoiseError, match=r"eta=0\.5"):
        process.bridge(x, torch.zeros(1, CHUNK, 3, 7), time(1), time(0.5), generator(), eta=0.5)


def test_a_draw_has_the_belief_s_probabilities_and_no_temperature_is_the_likeliest():
    p = torch.tensor([0.5, 0.3, 0.2])
    log_p = p.log().expand(20_000, 3)
    torch.testing.assert_close(torch.bincount(sample(log_p, generator())) / 20_000, p, rtol=0, atol=0.02)
    sharp = p.square() / p.square().sum()
    torch.testing.assert_close(torch.bincount(sample(log_p, generator(), 0.5)) / 20_000, sharp, rtol=0, atol=0.02)
    gen = generator()
    assert (sample(log_p, gen, 0.0) == 0).all()
    assert torch.equal(gen.get_state(), generator().get_state()), "nothing is drawn"
    noise = gumbel((50_000,), generator(), "cpu")
    assert noise.isfinite().all()
    assert (float(noise.mean()), float(noise.std())) == pytest.approx((0.5772, math.pi / 6**0.5), abs=0.02)


def test_the_surest_of_the_masked_are_committed_and_ties_go_to_the_first():
    score = torch.tensor([[[3.0, 1.0], [2.0, 5.0]], [[1.0, 1.0], [1.0, 1.0]]])
    masked = torch.tensor([[[True, True], [True, False]], [[True, True], [True, True]]])
    assert surest(score, masked, 1).tolist() == [[[True, False], [True, False]], [[True, True], [True, False]]]
    assert surest(score, masked, torch.tensor([3, 0])).tolist() == [[[False] * 2] * 2, [[True] * 2] * 2]
    assert not surest(score, masked, 9).any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"schedule": "sine"},
        {"weight": "all"},
        {"smooth": -0.1},
        {"smooth": math.inf},
        {"smooth": math.nan},
        {"full": -0.1},
        {"full": 1.0},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(KinoiseError, match=f"process.{next(iter(wrong))}"):
        MaskedConfig(**wrong)


@pytest.mark.parametrize(("steps", "start"), [(0, 1.0), (3, 0.0), (3, 1.5)])
def test_wrong_grids_are_refused(steps, start):
    with pytest.raises(KinoiseError, match="grid"):
        process_of().grid(steps, start)


@given(counts=st.lists(st.integers(0, CHUNK - 1), min_size=1, max_size=4), t=st.floats(0.01, 1), seed=st.integers(0, 9))
def test_given_actions_are_never_masked_and_of_the_others_the_same_share_is(counts, t, seed):
    process, clean = process_of(), clean_tokens(len(counts))
    known = torch.arange(CHUNK) < torch.tensor(counts)[:, None]
    x = process.corrupt(clean, time(t), generator(seed), known)
    assert torch.equal(x[known], clean[known])
    others = (CHUNK - torch.tensor(counts)) * len(SIZES)
    assert torch.equal(hidden(process, x), (process.share(time(t)) * others).round().clamp(min=1).long())
