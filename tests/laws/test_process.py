"""Laws of the Gaussian processes: one algebra for every schedule with every parametrisation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kinoise.policies.core.process import PARAMETRISATIONS, Gaussian, Prediction, ProcessConfig, make_process
from kinoise.policies.core.process.gaussian import ALPHA_FLOOR
from kinoise.policies.core.process.schedule import EDM, VP, Flow
from kinoise.policies.core.random import normal
from kinoise.spec import KinoiseError

SCHEDULES = {
    "vp": VP(100),
    "vp-linear": VP(100, "linear"),
    "vp-continuous": VP(None),
    "vp-linear-continuous": VP(None, "linear"),
    "edm": EDM(),
    "edm-karras": EDM(spacing="karras"),
    "flow": Flow(),
}
schedules = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
parametrisations = pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
TIMES = torch.tensor([1e-4, 0.01, 0.1, 0.33, 0.5, 0.8, 0.99, 1.0], dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 3, 2, generator=generator(seed), dtype=torch.float64)


def time(t: float) -> torch.Tensor:
    return torch.tensor(t, dtype=torch.float64)


def levels(process: Gaussian, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    alpha, sigma = process.schedule.signal_noise(t)
    return alpha[:, None, None], sigma[:, None, None]


def published(
    parametrisation: str, x0: torch.Tensor, eps: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """What the papers ask of the network."""
    if parametrisation == "F":
        sd, x = 0.5, alpha * x0 + sigma * eps
        c_skip = alpha * sd**2 / (sigma**2 + (alpha * sd) ** 2)
        return (x0 - c_skip * x) * (sigma**2 + (alpha * sd) ** 2).sqrt() / (sigma * sd)
    v = (alpha * eps - sigma * x0) / (alpha**2 + sigma**2).sqrt()
    return {"x0": x0, "eps": eps, "v": v, "u": eps - x0}[parametrisation]


@schedules
@parametrisations
def test_the_published_target_is_the_one_that_inverts(schedule, parametrisation):
    process = Gaussian(schedule, parametrisation)
    x0, eps = sample(len(TIMES)), sample(len(TIMES), 1)
    alpha, sigma = levels(process, TIMES)
    exact = published(parametrisation, x0, eps, alpha, sigma)
    if parametrisation == "eps" and process.schedule.signal_noise(time(1.0))[0] == 0:
        exact = exact - (ALPHA_FLOOR - alpha).clamp(min=0) * x0

    belief = process.predict(lambda x, noise, ctx: Prediction(exact), alpha * x0 + sigma * eps, TIMES, None)
    torch.testing.assert_close(belief, x0, rtol=0, atol=1e-9)

    valid = torch.ones(len(TIMES), 3, dtype=torch.bool)
    losses = process.loss_at(lambda x, noise, ctx: Prediction(exact), x0, None, valid, TIMES, eps)
    assert losses.per_sample.max() < 1e-18
    wrong = process.loss_at(lambda x, noise, ctx: Prediction(exact + 1), x0, None, valid, TIMES, eps)
    torch.testing.assert_close(wrong.per_sample, torch.ones_like(TIMES))


@schedules
@parametrisations
def test_clean_stays_clean_whatever_the_network_says(schedule, parametrisation):
    process, x = Gaussian(schedule, parametrisation), sample(2)

    def network(x, noise, ctx):
        assert noise.isfinite().all()
        return Prediction(x + 7)

    for t in (time(0.0), torch.zeros(2, dtype=torch.float64)):
        assert torch.equal(process.corrupt(x, t, generator()), x)
        assert torch.equal(process.predict(network, x, t, None), x)


@schedules
@parametrisations
def test_one_time_for_all_equals_that_time_for_each(schedule, parametrisation):
    process, x = Gaussian(schedule, parametrisation, clip=1.0), sample(4)
    seen = []

    def network(x, noise, ctx):
        seen.append((x, noise.expand(4)))
        return Prediction(torch.tanh(x + noise.expand(4)[:, None, None]))

    for t in TIMES:
        one, each = (process.predict(network, x, at, None) for at in (t, t.expand(4)))
        torch.testing.assert_close(one, each)
        assert one.abs().max() <= 1
        torch.testing.assert_close(seen[-1], seen[-2])
        torch.testing.assert_close(process.label(t).expand(4), seen[-1][1])
        torch.testing.assert_close(*(process.corrupt(x, at, generator()) for at in (t, t.expand(4))))


@schedules
def test_schedules_run_from_clean_to_noise(schedule):
    t = torch.linspace(0, 1, 401, dtype=torch.float64)
    alpha, sigma = schedule.signal_noise(t)
    assert alpha[0] == 1
    assert sigma[0] == 0
    assert (sigma / alpha).diff().min() > 0
    if isinstance(schedule, EDM):
        assert (alpha == 1).all()
        torch.testing.assert_close(sigma[-1], time(80.0))
        torch.testing.assert_close(schedule.time(sigma), t)
        torch.testing.assert_close(schedule.label(t[200:]), sigma[200:].log() / 4)
    elif isinstance(schedule, VP):
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t), rtol=0, atol=1e-14)
        assert alpha[-1] < 0.01
    if schedule in (Flow(), VP(None)):
        assert alpha[-1] == 0


@pytest.mark.parametrize("betas", ["squaredcos_cap_v2", "linear"])
def test_a_table_with_many_levels_is_the_continuous_schedule(betas):
    t = torch.linspace(0, 1, 50, dtype=torch.float64)
    table, continuous = VP(20_000, betas).signal_noise(t), VP(None, betas).signal_noise(t)
    torch.testing.assert_close(table, continuous, rtol=0, atol=2e-3)


@schedules
def test_grids_fall_from_their_start_to_zero_and_a_later_start_is_a_tail(schedule):
    process = Gaussian(schedule, "v")
    grid = process.grid(10)
    assert grid.dtype == torch.float64
    assert (grid[0], grid[-1], len(grid)) == (1, 0, 11)
    assert grid.diff().max() < 0
    for first in range(10):
        torch.testing.assert_close(process.grid(10 - first, float(grid[first])), grid[first:], rtol=0, atol=1e-12)
    assert torch.equal(process.grid(1), torch.tensor([1.0, 0.0], dtype=torch.float64))


def test_edm_grids_are_the_published_ones():
    sigma = EDM().signal_noise(EDM().grid(10, 1.0))[1]
    torch.testing.assert_close(sigma[1:-1] / sigma[:-2], torch.full((9,), (0.001 / 80) ** (1 / 9), dtype=torch.float64))
    karras = EDM(spacing="karras")
    ramp = torch.linspace(0, 1, 10, dtype=torch.float64)
    published = (80 ** (1 / 7) + ramp * (0.001 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(karras.signal_noise(karras.grid(10, 1.0))[1][:-1], published)


def test_a_grid_that_does_not_fit_is_an_error():
    with pytest.raises(KinoiseError, match="at most 30"):
        Gaussian(VP(100), "eps").grid(31, 0.3)
    with pytest.raises(KinoiseError, match="start higher"):
        Gaussian(EDM(), "F").grid(2, 0.01)
    for steps, start in ((0, 1.0), (5, 0.0), (5, 1.5)):
        with pytest.raises(KinoiseError, match="expected at least 1 step"):
            Gaussian(Flow(), "u").grid(steps, start)


def test_a_chain_that_starts_on_a_table_starts_at_a_level():
    assert Gaussian(VP(100), "eps").grid(3, 0.3333)[0] == 0.33


@schedules
def test_training_times_are_trained_times(schedule, monkeypatch):
    process = Gaussian(schedule, "v")
    t = process.times(4096, generator())
    assert t.dtype == torch.float64
    assert t.min() > 0
    assert t.max() <= 1
    if schedule == VP(100):
        assert torch.equal((t * 100).round() / 100, t)
        assert len(t.unique()) == 100
    monkeypatch.setattr("kinoise.policies.core.process.gaussian.uniform", lambda shape, gen: torch.zeros(shape))
    assert process.times(1, generator()) > 0, "not even for the least number that a generator gives"


@given(st.floats(1e-6, 1.0))
def test_edm_trains_on_the_truncated_log_logistic(u):
    def below(sigma):
        return 1 / (1 + math.exp(-(math.log(sigma) - math.log(0.5)) / 0.5))

    sigma = float(EDM().signal_noise(EDM().quantile(time(u)))[1])
    assert (below(sigma) - below(0.001)) / (below(80.0) - below(0.001)) == pytest.approx(u, abs=1e-9)


def test_logit_normal_times_are_normal_logits():
    process = make_process(ProcessConfig(kind="flow", time="logit_normal"))
    logits = torch.logit(process.times(20_000, generator()))
    assert logits.mean() == pytest.approx(0, abs=0.03)
    assert logits.std() == pytest.approx(1, abs=0.03)


PAIRS = [(1.0, 0.9), (1.0, 0.1), (0.5, 0.49), (0.2, 0.01)]


@schedules
@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_a_bridge_with_eta_one_is_the_posterior(schedule, t, s):
    """q(x_s | x_t, x0) by conditioning the joint normal of (x_s, x_t) given x0 on x_t."""
    process, x, x0 = Gaussian(schedule, "v"), sample(2), sample(2, 1)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (schedule.signal_noise(time(at)) for at in (t, s))
    covariance = alpha_t / alpha_s * sigma_s**2
    mean = alpha_s * x0 + covariance / sigma_t**2 * (x - alpha_t * x0)
    deviation = (sigma_s**2 - covariance**2 / sigma_t**2).sqrt()
    drawn = process.bridge(x, x0, time(t), time(s), generator(3), eta=1.0)
    noise = normal(x.shape, generator(3)).double()
    torch.testing.assert_close(drawn, mean + deviation * noise, rtol=1e-8, atol=1e-10)


@schedules
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_a_bridge_keeps_the_marginal(schedule, eta):
    """From x_t = alpha_t x0 + sigma_t e it makes alpha_s x0 + sigma_s (a e + b z) with a^2 + b^2 = 1."""
    process, x0, t, s = Gaussian(schedule, "v"), sample(1), time(0.6), time(0.4)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.signal_noise(t), schedule.signal_noise(s)
    none, one = (process.bridge(alpha_t * x0 + sigma_t * e, x0, t, s, generator(), eta) for e in (0.0, 1.0))
    kept = (one - none) / sigma_s
    new = (none - alpha_s * x0) / sigma_s / normal(x0.shape, generator()).double()
    torch.testing.assert_close(kept**2 + new**2, torch.ones_like(x0))


@schedules
def test_a_bridge_in_two_steps_is_the_bridge_in_one(schedule):
    process, x, x0, gen = Gaussian(schedule, "v"), sample(2), sample(2, 1), generator()
    t, s, r = time(1.0), time(0.6), time(0.2)
    there = process.bridge(process.bridge(x, x0, t, s, gen), x0, s, r, gen)
    torch.testing.assert_close(there, process.bridge(x, x0, t, r, gen))
    assert torch.equal(process.bridge(x, x0, t, time(0.0), gen), x0)
    assert torch.equal(gen.get_state(), generator().get_state()), "eta = 0 draws nothing"


@schedules
def test_a_bridge_takes_a_time_per_row(schedule):
    process, x, x0 = Gaussian(schedule, "v"), sample(2), sample(2, 1)
    t, s = torch.tensor([1.0, 0.5], dtype=torch.float64), torch.tensor([0.7, 0.0], dtype=torch.float64)
    rows = [process.bridge(x[i : i + 1], x0[i : i + 1], t[i], s[i], generator()) for i in range(2)]
    torch.testing.assert_close(process.bridge(x, x0, t, s, generator()), torch.cat(rows))


def test_euler_for_edm_and_flow_is_the_bridge():
    x, x0 = sample(2), sample(2, 1)
    edm, t, s = Gaussian(EDM(), "F"), time(0.8), time(0.5)
    sigma_t, sigma_s = (edm.schedule.signal_noise(at)[1] for at in (t, s))
    karras = x + (sigma_s - sigma_t) * (x - x0) / sigma_t
    torch.testing.assert_close(edm.bridge(x, x0, t, s, generator()), karras)
    flow = Gaussian(Flow(), "u")
    velocity = (x - x0) / t
    torch.testing.assert_close(flow.bridge(x, x0, t, s, generator()), x + (s - t) * velocity)


def test_networks_see_unit_size_and_f_has_unit_size():
    x0, eps = (
        0.5 * torch.randn(2, 50_000, generator=generator()).double(),
        torch.randn(2, 50_000, generator=generator(1)).double(),
    )
    for schedule in SCHEDULES.values():
        process = Gaussian(schedule, "F")
        for t in (0.05, 0.5, 1.0):
            at = process.at(time(t), x0)
            assert (at.into * (at.alpha * x0 + at.sigma * eps)).std() == pytest.approx(1, abs=0.02)
            assert (at.clean * x0 + at.noise * eps).std() == pytest.approx(1, abs=0.02)


def test_invalid_steps_have_no_part_in_the_loss():
    process, clean = Gaussian(Flow(), "u"), sample(3)
    valid = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    spoiled = torch.where(valid[..., None], clean, 1e6)

    def network(x, noise, ctx):
        return Prediction(torch.tanh(x) + noise[:, None, None], torch.tensor(0.25))

    one, other = (process.loss(network, actions, None, valid, generator(5)) for actions in (clean, spoiled))
    assert torch.equal(one.per_sample, other.per_sample)
    assert one.per_sample[2] == 0
    torch.testing.assert_close(one.total, one.per_sample.mean() + 0.25)


def test_the_loss_is_the_mean_over_valid_steps():
    process, x0, eps, t = Gaussian(Flow(), "u"), sample(2), sample(2, 1), torch.tensor([0.3, 0.9]).double()
    valid = torch.tensor([[True, True, False], [False, True, False]])
    losses = process.loss_at(lambda x, noise, ctx: Prediction(x), x0, None, valid, t, eps)
    x = (1 - t)[:, None, None] * x0 + t[:, None, None] * eps
    squares = (x - (eps - x0)) ** 2
    torch.testing.assert_close(losses.per_sample, torch.stack([squares[0, :2].mean(), squares[1, 1].mean()]))
    torch.testing.assert_close(losses.total, losses.per_sample.mean())


def test_planning_first_leaves_training_possible():
    """Tables and coefficients made in inference mode must not reach autograd."""
    process = Gaussian(VP(37, "linear"), "v")
    with torch.inference_mode():
        process.predict(lambda x, noise, ctx: Prediction(x), sample(2), time(0.5), None)
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    valid = torch.ones(2, 3, dtype=torch.bool)
    process.loss(lambda x, noise, ctx: Prediction(weight * x), sample(2), None, valid, generator()).total.backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"kind": "ve"}, "vp, edm, flow"),
        ({"parametrisation": "f"}, "eps, x0, v, u, F"),
        ({"betas": "cosine"}, "squaredcos_cap_v2, linear"),
        ({"grid": "log"}, "exponential, karras, uniform"),
        ({"time": "beta"}, "default, uniform, logit_normal"),
        ({"levels": 0}, "at least 1"),
        ({"sigma_min": 90.0}, "sigma_min < sigma_max"),
        ({"clip": -1.0}, "positive"),
    ],
)
def test_wrong_settings_are_errors_that_list_the_right_ones(setting, message):
    with pytest.raises(KinoiseError, match=message):
        ProcessConfig(**setting)
