"""Demonstrations, and a run on them, for the tests of `kinoise train`."""

from __future__ import annotations

from pathlib import Path

import pytest
from short_runs import train, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("train") / "data")


@pytest.fixture(scope="module")
def whole(data: Path) -> Path:
    """A run that nothing disturbed."""
    out = data.parent / "whole"
    assert train(data, out) == 0
    return out
