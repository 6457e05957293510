"""Every process with every parametrisation and every sampler: it trains, and it runs from noise to a sample."""

from __future__ import annotations

import pytest
import torch
from kinoise.policies.core.process import PARAMETRISATIONS, PROCESSES, Prediction, Process, ProcessConfig, make_process
from kinoise.policies.core.sampler import SAMPLERS

SHAPE = (3, 4, 2)
VARIANTS = [
    *({"kind": kind} for kind in PROCESSES),
    {"kind": "vp", "levels": None},
    {"kind": "vp", "betas": "linear"},
    {"kind": "vp", "levels": None, "betas": "linear"},
    {"kind": "edm", "grid": "karras"},
    {"kind": "edm", "grid": "uniform", "time": "uniform"},
    {"kind": "flow", "time": "logit_normal"},
]
variants = pytest.mark.parametrize("variant", VARIANTS, ids=lambda item: "-".join(map(str, item.values())))
parametrisations = pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
samplers = pytest.mark.parametrize("sampler", SAMPLERS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(x: torch.Tensor, noise: torch.Tensor, ctx: torch.Tensor) -> Prediction:
    """float32 in and out, aware of noise and context; `noise` is 0-d or `[batch]`."""
    assert noise.shape in ((), (SHAPE[0],))
    assert noise.isfinite().all()
    noise = noise.float().reshape(-1, 1, 1)
    return Prediction(torch.sin(x + noise) * ctx, noise.mean().square())


def process_of(variant: dict, parametrisation: str) -> Process:
    return make_process(ProcessConfig(parametrisation=parametrisation, **variant))


@variants
@parametrisations
@samplers
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_chains_are_finite_and_repeat_under_a_seed(variant, parametrisation, sampler, steps):
    process, ctx = process_of(variant, parametrisation), torch.tensor(0.7)

    def chain(seed):
        gen = generator(seed)
        x = process.prior(SHAPE, gen)
        return SAMPLERS[sampler](process, lambda x, t: process.predict(network, x, t, ctx), x, process.grid(steps), gen)

    x = chain(0)
    assert x.shape == SHAPE
    assert x.dtype == torch.float32
    assert x.isfinite().all()
    assert torch.equal(x, chain(0))
    assert not torch.equal(x, chain(1))


@variants
@parametrisations
def test_losses_are_finite_differentiable_and_repeat_under_a_seed(variant, parametrisation):
    process, valid = process_of(variant, parametrisation), torch.ones(SHAPE[:2], dtype=torch.bool)
    clean = torch.rand(SHAPE, generator=generator(), dtype=torch.float32)

    def loss(seed):
        ctx = torch.tensor(0.7, requires_grad=True)
        losses = process.loss(network, clean, ctx, valid, generator(seed))
        losses.total.backward()
        return losses, ctx.grad

    losses, grad = loss(0)
    assert losses.per_sample.shape == SHAPE[:1]
    assert losses.per_sample.isfinite().all()
    assert set(losses.auxiliary) == {"balance"}
    assert grad.isfinite()
    assert grad != 0
    assert torch.equal(losses.per_sample, loss(0)[0].per_sample)
    assert not torch.equal(losses.per_sample, loss(1)[0].per_sample)


@variants
@parametrisations
def test_members_keep_the_protocol(variant, parametrisation):
    process = process_of(variant, parametrisation)
    assert isinstance(process, Process)
    clean = torch.rand(SHAPE, generator=generator())
    t = process.grid(2)[1]
    assert process.label(t).shape == ()
    assert process.corrupt(clean, t, generator()).dtype == clean.dtype
    assert process.corrupt(clean, t.expand(SHAPE[0]), generator()).shape == SHAPE
