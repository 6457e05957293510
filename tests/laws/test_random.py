"""Laws of randomness: explicit generators, and rows that know nothing of each other."""

from __future__ import annotations

import pytest
import torch
from kinoise.policies.core.process import Gaussian, Prediction
from kinoise.policies.core.process.schedule import EDM
from kinoise.policies.core.random import normal, uniform
from kinoise.spec import KinoiseError

draws = pytest.mark.parametrize("draw", [normal, uniform])
SHAPES = [(4,), (4, 3), (4, 5, 7), (4, 16, 16)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@draws
@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_of_a_batch_is_that_row_alone(draw, shape):
    batch = draw(shape, [generator(seed) for seed in range(4)])
    assert batch.shape == shape
    for seed in range(4):
        assert torch.equal(batch[seed : seed + 1], draw((1, *shape[1:]), [generator(seed)]))
        assert torch.equal(batch[seed : seed + 1], draw((1, *shape[1:]), generator(seed)))


@draws
def test_the_global_generator_is_left_alone(draw):
    before = torch.random.get_rng_state()
    assert torch.equal(draw((3, 2), generator()), draw((3, 2), generator()))
    assert torch.equal(before, torch.random.get_rng_state())


def test_distributions():
    z, u = normal((100_000,), generator()), uniform((100_000,), generator())
    assert (float(z.mean()), float(z.std())) == pytest.approx((0, 1), abs=0.01)
    assert (float(u.mean()), float(u.std())) == pytest.approx((0.5, 12**-0.5), abs=0.01)
    assert u.min() >= 0
    assert u.max() < 1


@draws
def test_generators_are_one_or_one_per_row(draw):
    with pytest.raises(KinoiseError, match="one per row"):
        draw((3, 2), [generator(), generator()])


def test_a_row_s_loss_does_not_depend_on_its_batch():
    process, clean = Gaussian(EDM(), "F"), torch.rand(3, 4, 2, generator=generator())
    valid = torch.ones(3, 4, dtype=torch.bool)

    def loss(rows, gens):
        return process.loss(lambda x, noise, ctx: Prediction(torch.tanh(x)), clean[rows], None, valid[rows], gens).per_sample

    together = loss(slice(0, 3), [generator(seed) for seed in range(3)])
    alone = [loss(slice(seed, seed + 1), [generator(seed)]) for seed in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))
