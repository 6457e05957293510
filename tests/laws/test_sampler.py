"""Laws of the samplers, on data whose every answer is known: x0 ~ N(MEAN, DEVIATION^2)."""

from __future__ import annotations

import math

import pytest
import torch
from kinoise.policies.core.process import Gaussian
from kinoise.policies.core.process.schedule import EDM, VP, Flow
from kinoise.policies.core.sampler import SAMPLERS

MEAN, DEVIATION = 0.4, 0.3
PROCESSES = {
    "vp": Gaussian(VP(None), "v"),
    "vp-linear": Gaussian(VP(None, "linear"), "v"),
    "edm": Gaussian(EDM(), "F"),
    "flow": Gaussian(Flow(), "u"),
}
processes = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
samplers = pytest.mark.parametrize("sampler", SAMPLERS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def marginal(process: Gaussian, t: torch.Tensor) -> tuple[float, float]:
    """Mean and deviation of x_t."""
    alpha, sigma = (float(item) for item in process.schedule.signal_noise(t))
    return alpha * MEAN, math.hypot(alpha * DEVIATION, sigma)


def posterior_mean(process: Gaussian):
    """E[x0 | x_t], exactly."""

    def denoise(x, t):
        alpha = float(process.schedule.signal_noise(t)[0])
        mean, deviation = marginal(process, t)
        return MEAN + alpha * DEVIATION**2 / deviation**2 * (x - mean)

    return denoise


def error(process: Gaussian, sampler: str, grid: torch.Tensor) -> float:
    """Of the deterministic chain's end, against the probability flow's: the monotone map between the two marginals."""
    (first, wide), (last, narrow) = (marginal(process, grid[i]) for i in (0, -1))
    z = torch.tensor([-1.5, 0.0, 0.5, 2.0], dtype=torch.float64)
    end = SAMPLERS[sampler](process, posterior_mean(process), first + wide * z, grid, generator())
    return float((end - (last + narrow * z)).abs().max())


@processes
@pytest.mark.parametrize(("sampler", "order"), [("bridge", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_the_error_falls_with_the_sampler_s_order(process, sampler, order):
    coarse, fine = (error(process, sampler, torch.linspace(1, 0.05, steps + 1, dtype=torch.float64)) for steps in (128, 256))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


TOLERANCE = {"bridge": 0.02, "ddim": 0.02, "ddpm": 0.035, "heun": 0.005, "dpmpp_2m": 0.005}
"""Of the deviation: what the sampler's order leaves, and the chance of 20,000 draws."""


@processes
@samplers
@pytest.mark.parametrize("start", [1.0, 0.5])
def test_a_chain_has_the_data_s_mean_and_deviation(process, sampler, start):
    z = process.prior((10_000, 1, 1), generator()).double() / process.schedule.signal_noise(torch.ones(()).double())[1]
    grid = process.grid(100, start)
    mean, deviation = marginal(process, grid[0])
    x = mean + deviation * torch.cat([z, -z])
    end = SAMPLERS[sampler](process, posterior_mean(process), x, grid, generator(1))
    assert float(end.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(end.std()) == pytest.approx(DEVIATION, abs=TOLERANCE[sampler])


@processes
@samplers
def test_one_perfect_belief_is_enough(process, sampler):
    """Where the belief does not depend on x, every sampler ends exactly on it, in any number of steps."""
    belief = torch.randn(3, 4, 2, generator=generator(), dtype=torch.float64)
    for steps in (1, 2, 7):
        x = process.prior(belief.shape, generator(1)).double()
        end = SAMPLERS[sampler](process, lambda x, t: belief, x, process.grid(steps), generator(2))
        assert torch.equal(end, belief)


@processes
@samplers
def test_a_sampler_spends_one_evaluation_a_step_and_heun_two_but_for_the_last(process, sampler):
    for steps in (1, 2, 5):
        calls = []

        def denoise(x, t, calls=calls):
            calls.append(float(t))
            return x / 2

        SAMPLERS[sampler](process, denoise, process.prior((2, 3, 1), generator()), process.grid(steps), generator())
        assert len(calls) == (2 * steps - 1 if sampler == "heun" else steps)
        assert min(calls) > 0, "the clean end is never asked about"
        assert calls[0] == 1


@processes
@samplers
def test_a_row_does_not_depend_on_its_batch(process, sampler):
    def chain(gens):
        x = process.prior((len(gens), 4, 2), gens)
        return SAMPLERS[sampler](process, posterior_mean(process), x, process.grid(5), gens)

    together = chain([generator(seed) for seed in range(3)])
    for seed in range(3):
        assert torch.equal(together[seed : seed + 1], chain([generator(seed)]))
