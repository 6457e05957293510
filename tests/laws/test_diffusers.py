"""The VP table and the samplers against diffusers' schedulers, on the same network."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from kinoise.policies.core.process import Prediction, ProcessConfig, make_process
from kinoise.policies.core.random import normal
from kinoise.policies.core.sampler import SAMPLERS

LEVELS = 100
THEIRS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
parametrisations = pytest.mark.parametrize("parametrisation", THEIRS)
steps_ = pytest.mark.parametrize("steps", [1, 4, 10, 50])
clips = pytest.mark.parametrize("clip", [None, 1.0])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


WEIGHTS = torch.randn(2, 6, 6, generator=generator(0), dtype=torch.float64) / 3


def network(x: torch.Tensor, level: float) -> torch.Tensor:
    """Small, smooth and dependent on the level; `level` in [0, 1]."""
    return torch.tanh(x @ WEIGHTS[0] + level) @ WEIGHTS[1]


def ours(sampler: str, parametrisation: str, clip: float | None, steps: int, x: torch.Tensor, **options) -> torch.Tensor:
    process = make_process(ProcessConfig(kind="vp", parametrisation=parametrisation, levels=LEVELS, clip=clip))

    def denoise(x, t):
        return process.predict(lambda x, noise, ctx: Prediction(network(x, float(noise))), x, t, None)

    return SAMPLERS[sampler](process, denoise, x, process.grid(steps), generator(2), **options)


def theirs(scheduler, steps: int, x: torch.Tensor, **options) -> torch.Tensor:
    """Their chain, with our float64 table in place of their float32 one, so that the formulas alone are compared."""
    process = make_process(ProcessConfig(kind="vp", parametrisation="eps", levels=LEVELS))
    t = torch.arange(1, LEVELS + 1, dtype=torch.float64) / LEVELS
    scheduler.alphas_cumprod = process.schedule.signal_noise(t)[0] ** 2
    scheduler.set_timesteps(steps)
    for i in scheduler.timesteps:
        x = scheduler.step(network(x, (int(i) + 1) / LEVELS), i, x, **options).prev_sample
    return x


def common(parametrisation: str) -> dict:
    return {
        "num_train_timesteps": LEVELS,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": THEIRS[parametrisation],
        "timestep_spacing": "trailing",
    }


def same_noise(monkeypatch, scheduler: str) -> None:
    gen = generator(2)
    name = f"diffusers.schedulers.scheduling_{scheduler}.randn_tensor"
    monkeypatch.setattr(name, lambda shape, **_: normal(shape, gen).double())


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(2, 5, 6, generator=generator(1), dtype=torch.float64)


@pytest.mark.parametrize(
    ("betas", "levels", "settings"),
    [
        ("squaredcos_cap_v2", 100, {"beta_schedule": "squaredcos_cap_v2"}),
        ("squaredcos_cap_v2", 1000, {"beta_schedule": "squaredcos_cap_v2"}),
        ("linear", 1000, {}),
        ("linear", 100, {"beta_start": 1e-3, "beta_end": 0.2}),
    ],
)
def test_the_table_is_diffusers_table(betas, levels, settings):
    process = make_process(ProcessConfig(kind="vp", levels=levels, betas=betas))
    alpha, _ = process.schedule.signal_noise(torch.arange(1, levels + 1, dtype=torch.float64) / levels)
    published = DDPMScheduler(num_train_timesteps=levels, **settings).alphas_cumprod.double()
    torch.testing.assert_close(alpha**2, published, rtol=2e-4, atol=0)


@parametrisations
@steps_
@clips
@pytest.mark.parametrize("eta", [0.0, 0.4])
def test_the_bridge_is_ddim(parametrisation, steps, clip, eta, noise, monkeypatch):
    same_noise(monkeypatch, "ddim")
    scheduler = DDIMScheduler(
        **common(parametrisation), set_alpha_to_one=True, clip_sample=clip is not None, clip_sample_range=clip or 1.0
    )
    published = theirs(scheduler, steps, noise, use_clipped_model_output=True, eta=eta)
    torch.testing.assert_close(ours("ddim", parametrisation, clip, steps, noise, eta=eta), published)


@parametrisations
@pytest.mark.parametrize("steps", [1, 4, 10, 50, 100])
@clips
def test_the_bridge_with_eta_one_is_ddpm(parametrisation, steps, clip, noise, monkeypatch):
    scheduler = DDPMScheduler(
        **common(parametrisation), variance_type="fixed_small", clip_sample=clip is not None, clip_sample_range=clip or 1.0
    )
    same_noise(monkeypatch, "ddpm")
    torch.testing.assert_close(ours("ddpm", parametrisation, clip, steps, noise), theirs(scheduler, steps, noise))


@parametrisations
@steps_
def test_the_multistep_solver_is_dpm_solver_pp(parametrisation, steps, noise):
    scheduler = DPMSolverMultistepScheduler(
        **common(parametrisation),
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
        lower_order_final=True,
    )
    published = theirs(scheduler, steps, noise)
    torch.testing.assert_close(ours("dpmpp_2m", parametrisation, None, steps, noise), published, rtol=1e-4, atol=1e-4)
