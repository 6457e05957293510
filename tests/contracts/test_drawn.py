"""Pictures that nobody looks at: left out of what is observed, and of no consequence for the rest."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from kinoise import envs

STEPS = 4


NEEDED = {"pusht": "gym_pusht", "libero/spatial-0": "libero"}


@pytest.mark.parametrize(
    ("task", "camera"), [("pusht", "top"), ("metaworld/push", "corner"), ("libero/spatial-0", "agentview")]
)
def test_steps_that_are_not_drawn_change_nothing(task: str, camera: str):
    if task in NEEDED:
        pytest.importorskip(NEEDED[task])
    key = f"image.{camera}"
    shown = {"cameras": [camera], "size": 32}
    with closing(envs.make(task, **shown)) as one, closing(envs.make(task, **shown)) as other:
        gen = np.random.default_rng(0)
        low, high = np.asarray(one.spec.action.low), np.asarray(one.spec.action.high)
        first, _ = one.reset(seed=3)
        other.drawn = False
        begun, _ = other.reset(seed=3)
        assert begun.keys() == first.keys() - {key}
        for step in range(STEPS):
            other.drawn = step == STEPS - 1
            action = gen.uniform(low, high)
            seen, reward, *_ = one.step(action)
            found, paid, *_ = other.step(action)
            assert found.keys() == (seen.keys() if other.drawn else seen.keys() - {key})
            assert reward == paid
            assert all(np.array_equal(item, seen[name]) for name, item in found.items())
        assert seen[key].std() > 0
