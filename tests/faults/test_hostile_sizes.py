"""Tensors that settings ask for, however they are made: seen before there is memory for them."""

from __future__ import annotations

import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from kinoise.policies.bounded import Held, elsewhere, no_larger
from kinoise.spec import KinoiseError
from torch import nn

GROWTH = 100 << 10
"""KiB that refusing may take."""

MADE: dict[str, Callable[[], Any]] = {
    "linspace": lambda: torch.linspace(0, 1, 10**8),
    "arange": lambda: torch.arange(10**8),
    "steps": lambda: torch.arange(0, 10**8, 1, dtype=torch.float64),
    "eye": lambda: torch.eye(10**4),
    "eye, not square": lambda: torch.eye(10, 10**7),
    "full": lambda: torch.full((10**8,), 1.0),
    "randperm": lambda: torch.randperm(10**8, generator=torch.Generator()),
    "window": lambda: torch.hann_window(10**8),
    "new": lambda: torch.zeros(3).new_zeros(10**8),
    "repeat": lambda: torch.zeros(10**4).repeat(10**4),
    "broadcast": lambda: torch.arange(10**4) < torch.arange(10**4)[:, None],
    "expanded": lambda: torch.zeros(1).expand(10**8).clone(),
}


@pytest.mark.parametrize("case", MADE)
def test_what_is_filled_before_a_module_has_it_is_seen_before_it_is_made(case: str, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(KinoiseError, match="do not belong together"), no_larger(Held(0, 0), tmp_path, tmp_path):
        MADE[case]()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH
    with no_larger(Held(10**9, 0), tmp_path, tmp_path):
        assert torch.equal(torch.arange(1, 9, 3), torch.tensor([1, 4, 7]))
        assert torch.equal(torch.eye(2, dtype=torch.int64), torch.tensor([[1, 0], [0, 1]]))


def test_what_other_threads_build_meanwhile_is_theirs(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as other, no_larger(Held(0, 0), tmp_path, tmp_path):
        for _ in range(3):
            built = other.submit(lambda: nn.Linear(5000, 5000)).result()
            assert built.weight.numel() == 25 * 10**6
        with elsewhere(), pytest.raises(KinoiseError, match="do not belong together"):
            other.submit(lambda: _hostile(tmp_path)).result()


def _hostile(path: Path) -> None:
    with no_larger(Held(0, 0), path, path):
        torch.zeros(10**8)
