"""What LeRobot and diffusion_policy do with diffusers' schedulers, as they come: spacing, clipping and rounding are theirs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from kinoise.policies.core.process import Prediction, ProcessConfig, make_process
from kinoise.policies.core.random import normal
from kinoise.policies.core.sampler import SAMPLERS

THEIRS = {"eps": "epsilon", "x0": "sample"}
LEVELS = 100
WEIGHTS = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0)) / 3


def network(x: torch.Tensor, step: float) -> torch.Tensor:
    """Large enough that beliefs are clipped for most of the way."""
    return 2 * torch.tanh(x @ WEIGHTS[0].to(x) + step / LEVELS) @ WEIGHTS[1].to(x)


@pytest.mark.parametrize("parametrisation", THEIRS)
@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 1), ("ddim", 10), ("ddim", 16), ("ddpm", 7), ("ddpm", 100)])
@pytest.mark.parametrize("clip", [None, 1.0, 0.5])
def test_plans_are_those_of_the_scheduler_with_its_defaults(parametrisation, sampler, steps, clip, monkeypatch):
    scheduler_class = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}[sampler]
    gen = torch.Generator().manual_seed(2)
    monkeypatch.setattr(f"diffusers.schedulers.scheduling_{sampler}.randn_tensor", lambda shape, **_: normal(shape, gen))
    scheduler = scheduler_class(
        num_train_timesteps=LEVELS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=THEIRS[parametrisation],
        clip_sample=clip is not None,
        clip_sample_range=clip or 1.0,
    )
    x = noise = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1))
    scheduler.set_timesteps(steps)
    for step in scheduler.timesteps:
        x = scheduler.step(network(x, float(step)), step, x).prev_sample

    clips = "signal" if sampler == "ddim" else "belief"
    config = ProcessConfig(kind="vp", parametrisation=parametrisation, levels=LEVELS, spacing="leading")
    process = make_process(replace(config, clip=clip, clips=clips))

    def told(x, label, ctx):
        return Prediction(network(x, float(label) * LEVELS - 1))

    def denoise(x, t):
        return process.predict(told, x, t, None)

    mine = SAMPLERS[sampler](process, denoise, noise, process.grid(steps), torch.Generator().manual_seed(2))
    # An unclipped belief of eps grows by 1 / alpha, and rounding errors with it.
    assert (mine - x).abs().max() <= 1e-5 * max(1.0, float(x.abs().max()))
