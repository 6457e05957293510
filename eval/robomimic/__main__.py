"""`python -m kinoise.eval.robomimic --agent RUN ...`: robomimic's run_trained_agent.py, with a kinoise run for its agent."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

from ...config import run
from ...data.robomimic.names import IMAGE
from ...policies.base import Policy
from ...policies.checkpoint import load_policy
from ...spec import KinoiseError, Spec
from .actor import RolloutAdapter, rollout_policy

SCRIPT = "robomimic.scripts.run_trained_agent"
ABOUT = """Runs robomimic's run_trained_agent.py on a kinoise run. The arguments are that script's own (--n_rollouts, --horizon,
--video_path, --dataset_path, ...), which it explains itself: python -m robomimic.scripts.run_trained_agent --help. --seed also
seeds the policy's noise. Beside them there are those below."""


def main(argv: Sequence[str]) -> int:
    """Raises KinoiseError when there is no checkpoint, it doesn't say which environment it is for, or robomimic isn't there."""
    parser = argparse.ArgumentParser("python -m kinoise.eval.robomimic", description=ABOUT, allow_abbrev=False)
    parser.add_argument("--agent", required=True, help="a run, or one of its checkpoints")
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--execute", type=int, help="steps from plan to plan; the policy's own by default")
    parser.add_argument("--instruction", help="what the robot is to do, for policies that know language")
    own, others = parser.parse_known_args(list(argv))
    policy = load_policy(own.agent)
    agent = rollout_policy(policy, execute=own.execute, seed=own.seed or 0, instruction=own.instruction)
    passed = ["--agent", own.agent, *others]
    passed += [] if own.seed is None else ["--seed", str(own.seed)]
    with _loading(agent, _checkpoint(policy, own.agent)), _mujoco_py(), _arguments(passed):
        runpy.run_module(SCRIPT, run_name="__main__")
    return 0


def environment(recorded: Mapping[str, Any], spec: Spec) -> dict[str, Any]:
    """robomimic's `env_metadata`: the demonstrations' environment, with the cameras that the policy looks through."""
    found = deepcopy(dict(recorded))
    cameras = {key.removeprefix(IMAGE): item.shape for key, item in spec.observations.items() if item.kind == "image"}
    if cameras:
        found["env_kwargs"] |= {
            "camera_names": list(cameras),
            "camera_heights": [shape[0] for shape in cameras.values()],
            "camera_widths": [shape[1] for shape in cameras.values()],
        }
    return found


def _checkpoint(policy: Policy, run: str) -> dict[str, Any]:
    """What the script reads of robomimic's own checkpoints. The configuration is robomimic's default, without a frame stack."""
    from robomimic.config import config_factory  # pyright: ignore[reportMissingImports]

    if not isinstance(policy.recorded.get("env_kwargs"), dict) or "env_name" not in policy.recorded:
        raise KinoiseError(
            f"{run} doesn't say which environment robomimic shall make, since its demonstrations had no env_args. Train on "
            f"robomimic's files or on what kinoise collect records in robosuite/..., or make the environment yourself and give "
            f"kinoise.eval.robomimic.rollout_policy to robomimic's run_rollout."
        )
    images = any(item.kind == "image" for item in policy.spec.observations.values())
    return {
        "algo_name": "bc",
        "config": config_factory("bc").dump(),
        "env_metadata": environment(policy.recorded, policy.spec),
        "shape_metadata": {"use_images": images, "ac_dim": policy.spec.action_dim},
    }


@contextmanager
def _loading(agent: RolloutAdapter, checkpoint: Mapping[str, Any]) -> Iterator[None]:
    """Within it robomimic loads this agent, whatever it is asked to load."""
    import robomimic.utils.file_utils as file_utils  # pyright: ignore[reportMissingImports]

    before = file_utils.policy_from_checkpoint
    file_utils.policy_from_checkpoint = lambda *_, **__: (agent, dict(checkpoint))
    try:
        yield
    finally:
        file_utils.policy_from_checkpoint = before


@contextmanager
def _mujoco_py() -> Iterator[None]:
    """robomimic up to 0.3.0 takes an exception's name from mujoco_py, which robosuite since 1.4 neither needs nor uses."""
    name = "mujoco_py"
    if name in sys.modules or find_spec(name) is not None:
        yield
        return
    print(f"{name} is not installed; robomimic takes nothing from it but an exception's name", file=sys.stderr)
    stand_in: Any = ModuleType(name)
    stand_in.builder = SimpleNamespace(MujocoException=type("MujocoException", (Exception,), {}))
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        del sys.modules[name]


@contextmanager
def _arguments(passed: Sequence[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, [SCRIPT, *passed]
    try:
        yield
    finally:
        sys.argv = before


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
