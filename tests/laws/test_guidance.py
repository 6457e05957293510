"""Laws of classifier-free guidance."""

from __future__ import annotations

import pytest
import torch
from kinoise.policies.core.guidance import guided
from kinoise.policies.core.process import PARAMETRISATIONS, Gaussian, Prediction
from kinoise.policies.core.process.schedule import VP

T = torch.tensor(0.5, dtype=torch.float64)


def counted(value: float):
    def denoise(x, t):
        denoise.calls += 1
        return x * value

    denoise.calls = 0
    return denoise


@pytest.mark.parametrize(
    ("scale", "expected", "calls"), [(1.0, 3.0, (1, 0)), (0.0, 2.0, (0, 1)), (2.5, 4.5, (1, 1)), (-1.0, 1.0, (1, 1))]
)
def test_the_scale_runs_along_the_line_through_both_beliefs(scale, expected, calls):
    conditional, unconditional = counted(3.0), counted(2.0)
    x = torch.randn(2, 3, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(guided(conditional, unconditional, scale)(x, T), expected * x)
    assert (conditional.calls, unconditional.calls) == calls


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
def test_guiding_beliefs_is_guiding_the_network(parametrisation):
    process = Gaussian(VP(100), parametrisation)
    x = torch.randn(2, 3, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def bound(network):
        return lambda x, t: process.predict(lambda x, noise, ctx: Prediction(network(x)), x, t, None)

    beliefs = guided(bound(torch.tanh), bound(torch.sin), 3.0)(x, T)
    network = bound(lambda x: torch.sin(x) + 3 * (torch.tanh(x) - torch.sin(x)))(x, T)
    torch.testing.assert_close(beliefs, network)
