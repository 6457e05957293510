"""What `kinoise calibrate` takes for near, and which of what is near it chooses."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from kinoise.data import Episode, EpisodeStore, open_store, write_store
from kinoise.eval.calibrate import Settings, Trial, calibrate, choice
from kinoise.spec import Feature, KinoiseError, Plan, Spec
from small_policies import small


def demonstrations(folder: Path, steps: int = 60) -> EpisodeStore:
    rng = np.random.default_rng(0)
    spec = Spec({"state": Feature((5,))}, Feature((3,), low=(-1.0,) * 3, high=(1.0,) * 3), rate=20.0, language=True)
    values = {"state": rng.normal(size=(steps, 5)).astype(np.float32), "action": rng.normal(size=(steps, 3)).astype(np.float32)}
    write_store(folder / "store", spec, [Episode(values, "open the drawer")])
    return open_store(folder / "store")


def test_the_mean_of_the_full_plans_is_further_from_them_than_plans_like_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Full plans go one of two ways; from level 0.5 they do so too, from 0.8 they are what is between, alike each time."""
    policy = small("diffusion")

    def plan(obs, gen, **told):
        rows, level = len(obs.text), policy.config.decode.warm
        way = torch.randint(0, 2, (rows, 1, 1), generator=gen) * 2.0 - 1.0
        return Plan((way if level != 0.8 else way * 0.0).expand(rows, 4, 3), dt=0.05, nfe=1)

    monkeypatch.setattr(policy, "plan", plan)
    settings = Settings(run="", data="", levels=[0.5, 0.8], steps=[1], windows=40)
    _, apart, (alike, mean) = calibrate(policy, demonstrations(tmp_path), settings)
    assert apart == pytest.approx(1, abs=0.4)  # 2 in half of the cases
    assert abs(alike.distance) < 0.4
    assert mean.distance == pytest.approx(1 - apart / 2)
    assert choice([alike, mean], reach=0.4) == alike


def test_episodes_that_are_too_short_are_said_with_how_many_replans_fit(tmp_path: Path):
    policy, store = small("diffusion").eval(), demonstrations(tmp_path)
    few = {"levels": [0.5], "steps": [1], "windows": 2}
    with pytest.raises(KinoiseError, match=r"the longest has 60\. Take replans=") as caught:
        calibrate(policy, store, Settings(run="", data="", replans=100, **few))
    fitting = int(re.findall(r"replans=(\d+)", str(caught.value))[-1])
    with pytest.raises(KinoiseError, match=f"Take replans={fitting}"):
        calibrate(policy, store, Settings(run="", data="", replans=fitting + 1, **few))
    assert calibrate(policy, store, Settings(run="", data="", replans=fitting, **few))
    with pytest.raises(KinoiseError, match="Take a smaller execute="):
        calibrate(policy, demonstrations(tmp_path / "shorter", steps=2), Settings(run="", data="", execute=2, **few))


def test_the_fewest_steps_within_reach_and_then_the_lowest_level_about_as_near_as_the_nearest():
    trials = [
        Trial(0.2, 1, 1.0, 0.09),
        Trial(0.4, 1, 1.1, 0.028),
        Trial(0.5, 1, 1.0, 0.021),
        Trial(0.6, 1, 1.0, 0.02),
        Trial(0.6, 2, 2.0, 0.001),
    ]
    assert choice(trials, reach=0.06) == trials[1]
    assert choice(trials, reach=0.025) == trials[2]
    assert choice(trials, reach=0.01) == trials[4]
    assert choice(trials, reach=0.0005) is None
