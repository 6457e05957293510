"""A kinoise run in robomimic 0.3.0's own `run_rollout`, on its environment of robosuite: as `kinoise eval` plays it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from kinoise import envs
from kinoise.eval.rollout import Rollout
from kinoise.eval.slot import Job, Terms
from kinoise.eval.workers import Workers
from kinoise.policies import build_policy, choices
from kinoise.policies.checkpoint import load_policy, save_policy
from kinoise.spec import Stats
from omegaconf import OmegaConf

if find_spec("robosuite") is None:
    pytest.skip("robosuite isn't installed", allow_module_level=True)

SCRIPT = Path(__file__).with_name("robomimic_rollout_script.py")
TASK, SEED, HORIZON = "robosuite/lift", 11, 14


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose plans are noise that hangs on what is seen."""
    directory, env = tmp_path_factory.mktemp("run"), envs.make(TASK)
    sizes = {**{key: item.shape[0] for key, item in env.spec.observations.items()}, "action": env.spec.action_dim}
    stats = {
        key: Stats((0.0,) * n, (0.5,) * n, (-0.5,) * n, (0.5,) * n, (-0.5,) * n, (0.5,) * n, 10) for key, n in sizes.items()
    }
    settings = {"network": {"width": 32, "depth": 1}, "chunk": 8, "execute": 4, "history": 2, "decode": {"warm": 0.6}}
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(choices()["diffusion"]), settings))
    policy = build_policy(config, env.spec, stats, (), seed=0)
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for item in policy.parameters():
            item.add_(0.03 * torch.randn(item.shape, generator=gen))
    policy.recorded = env.meta()["robomimic"]["env_args"]
    save_policy(directory, policy, {})
    env.close()
    return directory


def test_robomimics_rollout_is_the_episode_of_kinoise_eval(robomimic: Path, run: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(robomimic), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(SCRIPT), str(run), str(SEED), str(HORIZON)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(run / "rollouts.npz") as given:
        results, theirs = json.loads(str(given["results"])), given["actions"]
    assert [item["Horizon"] for item in results] == [HORIZON] * 3
    policy = load_policy(run)
    job = Job(TASK, 0, SEED, Terms(2, tuple(policy.spec.observations), HORIZON))
    with Workers(envs.showing(policy.spec), 1) as pool:
        rollout = Rollout(pool, [job], execute=4, carry=True)
        [outcome] = rollout.run(policy)
    assert outcome.error is None
    ours = np.clip(rollout.carried[0].actions, -1, 1)
    assert np.unique(ours).size > HORIZON
    np.testing.assert_allclose(theirs[:4], ours[:4], rtol=0, atol=1e-5)  # the first plan sees the same, in another process
    np.testing.assert_allclose(theirs, ours, atol=2e-3)  # later ones what two solvers' tolerances leave
