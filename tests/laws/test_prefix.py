"""Laws of prefixes: given to a network that was trained so, or pulled towards through one that was not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from kinoise.policies.core.guidance import fixed, pulled, softening
from kinoise.policies.core.process import Gaussian, Prediction, ProcessConfig, make_process
from kinoise.policies.core.sampler import SAMPLERS

PROCESSES = {
    "flow": ProcessConfig(kind="flow", parametrisation="u"),
    "edm": ProcessConfig(kind="edm", parametrisation="F", sigma_min=0.05, sigma_max=5.0),
    "vp": ProcessConfig(kind="vp", parametrisation="eps", levels=100),
}
processes = pytest.mark.parametrize("name", PROCESSES)
CHUNK, KNOWN, PREFIX = 6, 5, 2
ROOT = torch.linalg.cholesky(0.9 ** (torch.arange(CHUNK)[:, None] - torch.arange(CHUNK)).abs().double())
"""Of the covariance of smooth chunks, as x0 ~ N(0, ROOT ROOT^T) here: each action is much like its neighbours."""


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def posterior_mean(process: Gaussian):
    """E[x0 | x_t] of such chunks, exactly."""

    def denoise(x, t):
        at = process.at(t, x)
        covariance = ROOT @ ROOT.T
        gain = at.alpha * covariance @ torch.linalg.inv(at.alpha**2 * covariance + at.sigma**2 * torch.eye(CHUNK))
        return torch.einsum("ij,bjd->bid", gain, x)

    return denoise


def chunks(rows: int, seed: int) -> torch.Tensor:
    return torch.einsum("ij,bjd->bid", ROOT, torch.randn(rows, CHUNK, 1, dtype=torch.float64, generator=gen(seed)))


@pytest.mark.parametrize(("prefix", "known"), [(0, 5), (2, 5), (5, 5), (3, 6), (6, 6)])
def test_the_soft_mask_holds_the_prefix_and_fades_until_nothing_is_known(prefix, known):
    weight = softening(prefix, known, CHUNK)
    assert (weight[:prefix] == 1).all()
    assert (weight[known:] == 0).all()
    fading = weight[max(0, prefix - 1) : known + 1]
    assert (fading.diff() < 0).all()
    for index in range(prefix, known):  # equation 5 of arXiv 2506.07339
        c = (known - index) / (known - prefix + 1)
        assert weight[index].item() == pytest.approx(c * (math.exp(c) - 1) / (math.e - 1))


@processes
def test_towards_where_nothing_is_known_nothing_pulls(name):
    process, x, t = make_process(PROCESSES[name]), chunks(3, 1), torch.tensor(0.5, dtype=torch.float64)
    denoise = posterior_mean(process)
    found = pulled(process, denoise, chunks(3, 2), torch.zeros(CHUNK, dtype=torch.float64), 5.0)(x, t)
    torch.testing.assert_close(found, denoise(x, t))


@processes
@pytest.mark.parametrize("t", [0.3, 0.9, 1.0])
def test_what_is_pulled_stays_within_the_process_s_clip(name, t):
    process = make_process(replace(PROCESSES[name], clip=1.0))

    def denoise(x, t):
        return process.predict(lambda x, noise, ctx: Prediction(torch.tanh(x)), x, t, None)

    x, towards = chunks(3, 1), 5 * chunks(3, 2)
    pull = pulled(process, denoise, towards, softening(PREFIX, KNOWN, CHUNK).double(), 5.0)
    assert pull(x, torch.tensor(t, dtype=torch.float64)).abs().max() <= 1.0


@pytest.mark.parametrize("t", [0.02, 0.3, 0.7, 0.98])
def test_on_the_flow_process_it_is_the_paper_s_velocity(t):
    """With the paper's time, 1 - t, and its velocity, (x1 - x) / (1 - t), by finite differences of the belief."""
    process, time = make_process(PROCESSES["flow"]), torch.tensor(t, dtype=torch.float64)
    x, towards = chunks(1, 1), chunks(1, 2)
    weight, most = softening(PREFIX, KNOWN, CHUNK).double(), 5.0

    def denoise(x, t):
        return posterior_mean(process)(x, t).tanh()

    belief, step = denoise(x, time), 1e-6
    columns = [(denoise(x + step * unit.view(1, CHUNK, 1), time) - belief) / step for unit in torch.eye(CHUNK).double()]
    jacobian = torch.cat([item.view(CHUNK, 1) for item in columns], 1)
    theirs = 1 - t
    strength = min((1 - theirs) / theirs * (theirs**2 + (1 - theirs) ** 2) / (1 - theirs) ** 2, most)
    correction = jacobian.T @ (weight * (towards - belief).flatten())
    velocity = (belief - x).flatten() / (1 - theirs) + strength * correction
    found = pulled(process, denoise, towards, weight, most)(x, time)
    torch.testing.assert_close((found - x).flatten() / (1 - theirs), velocity, atol=1e-4, rtol=1e-4)


@processes
def test_what_is_pulled_ends_near_what_is_known_and_goes_on_from_there(name):
    """The actions after the prefix follow it too, although nothing pulls at the last: chunks are smooth."""
    process, towards = make_process(PROCESSES[name]), chunks(200, 2)
    weight = softening(PREFIX, PREFIX, CHUNK).double()
    denoise, grid = posterior_mean(process), process.grid(20)
    ends = [
        SAMPLERS["ddim"](process, one, process.prior(towards.shape, gen(3)).double(), grid, gen(4))
        for one in (denoise, pulled(process, denoise, towards, weight, 5.0))
    ]
    free, kept = ((end - towards).square().mean((0, 2)).sqrt() for end in ends)
    assert (kept[:PREFIX] < 0.2 * free[:PREFIX]).all()
    assert kept[PREFIX] < 0.6 * free[PREFIX]


@processes
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_given_actions_are_seen_clean_and_come_back(name, sampler):
    process, actions = make_process(PROCESSES[name]), torch.randn(2, PREFIX, 3, generator=gen(1))
    clean = process.at(torch.zeros((), dtype=torch.float64), actions).into * actions
    seen = []

    def network(x, noise, ctx):
        seen.append(x[:, :PREFIX])
        return Prediction(torch.zeros_like(x))

    def denoise(x, t):
        return process.predict(network, x, t, None)

    x = process.prior((2, CHUNK, 3), gen())
    end = SAMPLERS[sampler](process, fixed(process, denoise, actions), x, process.grid(6), gen(2))
    torch.testing.assert_close(end[:, :PREFIX], actions)
    for item in seen:
        torch.testing.assert_close(item, clean)


@processes
def test_training_shows_given_actions_clean_and_does_not_ask_for_them(name):
    process, clean = make_process(PROCESSES[name]), torch.randn(4, CHUNK, 3, generator=gen(1))
    known = torch.arange(CHUNK) < torch.tensor([0, 1, 3, CHUNK])[:, None]
    into = process.at(torch.zeros((), dtype=torch.float64), clean).into
    seen = []

    def network(x, noise, ctx):
        seen.append(x)
        return Prediction(torch.zeros_like(x))

    valid, t = torch.ones(4, CHUNK, dtype=torch.bool), torch.full((4,), 0.5, dtype=torch.float64)
    losses = []
    for seed in (2, 3):
        eps = torch.randn(clean.shape, generator=gen(2))
        eps[known] = torch.randn(clean.shape, generator=gen(seed))[known]
        losses.append(process.loss_at(network, clean, None, valid, t, eps, known).per_sample)
        torch.testing.assert_close(seen[-1][known], (into * clean)[known])
        others = process.loss_at(network, clean, None, valid & ~known, t, eps).per_sample
        torch.testing.assert_close(losses[-1], others)
        assert not torch.equal(seen[-1][known], (into * clean)[known])
    torch.testing.assert_close(*losses)
    assert losses[0][3] == 0
