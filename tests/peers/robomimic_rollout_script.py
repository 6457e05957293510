"""A kinoise run in robomimic's own rollouts of robosuite's Lift: `robomimic_rollout_script.py RUN SEED HORIZON`.

Leaves in RUN/rollouts.npz what `run_rollout` said of three episodes that begin alike, and the actions of the last of them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import torch

# torchvision's wheel expects operators that torch without CUDA lacks; nothing here calls them.
_library = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    _library.define(f"{_name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
sys.modules["mujoco_py"] = ModuleType("mujoco_py")  # robomimic takes an exception's name from it
sys.modules["mujoco_py"].builder = SimpleNamespace(MujocoException=ArithmeticError)  # type: ignore[attr-defined]

from kinoise.envs.robosuite.upstream import load_robosuite  # noqa: E402

load_robosuite()  # without its warnings
from kinoise.eval.robomimic import rollout_policy  # noqa: E402
from robomimic.algo import RolloutPolicy  # noqa: E402
from robomimic.envs.wrappers import FrameStackWrapper  # noqa: E402
from robomimic.utils.env_utils import create_env_from_metadata  # noqa: E402
from robomimic.utils.train_utils import run_rollout  # noqa: E402


def main(run: Path, seed: int, horizon: int) -> None:
    policy = rollout_policy(run, seed=seed)
    assert isinstance(policy, RolloutPolicy)
    env = create_env_from_metadata(policy.policy.recorded)
    envs, results, actions = [env, env, FrameStackWrapper(env, num_frames=3)], [], []
    step = env.step

    def noted(action: np.ndarray) -> tuple:
        actions.append(np.array(action))
        return step(action)

    env.step = noted
    for number, item in enumerate(envs):
        np.random.seed(seed)  # robosuite draws initial states from numpy's global generator
        actions.clear()
        results.append(run_rollout(policy, item, horizon=horizon))
        assert len(actions) == horizon, number
    np.savez(run / "rollouts.npz", results=json.dumps(results), actions=np.stack(actions))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
