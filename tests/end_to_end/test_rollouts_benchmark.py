"""`benchmarks.rollouts` on a policy that hardly thinks; no figure of time is looked at."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from kinoise import envs
from kinoise.policies import POLICIES, build_policy
from kinoise.policies.checkpoint import save_policy
from kinoise.policies.core.network import NetworkConfig
from kinoise.spec import Stats

ROOT = Path(__file__).resolve().parents[2]


def test_it_plays_the_same_episodes_three_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT)])
    from benchmarks import record, rollouts

    monkeypatch.setattr(record, "RESULTS", tmp_path)
    env = envs.make("metaworld/reach")
    config = POLICIES["mode"].config(observations=["state"], chunk=4, execute=2)
    config.network = NetworkConfig(**{**vars(config.network), "width": 16, "depth": 1, "heads": 2})
    sizes = {"state": 39, "action": 4}
    stats = {
        key: Stats((0.0,) * n, (1.0,) * n, (-1.0,) * n, (1.0,) * n, (-0.9,) * n, (0.9,) * n, 9) for key, n in sizes.items()
    }
    save_policy(tmp_path / "policy", build_policy(config, env.spec, stats, (env.instruction,)).eval(), {})
    env.close()
    threads = torch.get_num_threads()
    try:
        given = ["env=metaworld/reach", "episodes=3", "horizon=6", "repeats=2", "workers=1", "slots=2"]
        assert rollouts.main([str(tmp_path / "policy"), *given]) == 0
    finally:
        torch.set_num_threads(threads)
    figures = json.loads((tmp_path / "rollouts.json").read_text())
    for key in ("episodes_per_s", "env_steps_per_s"):
        assert figures[key].keys() == {"sequential", "batched", "bare"}
        assert all(len(values) == 2 and min(values) > 0 for values in figures[key].values())
    assert figures["protocol"]["horizon"] == 6
    assert figures["episodes"]["ratio"] > 0 < figures["steps"]["ratio"]
