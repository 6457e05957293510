"""`lerobot-eval --policy.path=CHECKPOINT`: in a small environment, and with decoding that is changed on the command line."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from kinoise.cli import main as kinoise
from kinoise.config import UsageError
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.policies.factory import make_policy
from lerobot.scripts import lerobot_eval
from lerobot_policy_kinoise import KinoiseModeConfig, KinoiseModePolicy

STEPS = 6


class World(gym.Env):
    """Shows a state of three numbers, and succeeds at its last step if every action was finite."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = gym.spaces.Dict({"agent_pos": gym.spaces.Box(-9, 9, (3,), np.float64)})
    action_space = gym.spaces.Box(-100, 100, (2,), np.float32)
    task_description = "open the drawer"
    _max_episode_steps = STEPS

    def __init__(self, render_mode: str = "rgb_array") -> None:
        self.render_mode, self.step_count, self.sound = render_mode, 0, True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.step_count, self.sound = 0, True
        return self._seen(), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        self.step_count += 1
        self.sound &= bool(np.isfinite(action).all())
        done = self.step_count == STEPS
        success = done and self.sound
        return self._seen(), float(success), done, False, {"is_success": success}

    def render(self) -> np.ndarray:
        return np.zeros((32, 32, 3), np.uint8)

    def _seen(self) -> dict[str, np.ndarray]:
        return {"agent_pos": np.full(3, self.step_count / STEPS)}


@EnvConfig.register_subclass("kinoise_test_world")
@dataclass
class WorldConfig(EnvConfig):
    task: str | None = "World-v0"
    fps: int = 10
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {
            "action": PolicyFeature(FeatureType.ACTION, (2,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (3,)),
        }
    )
    features_map: dict[str, str] = field(default_factory=lambda: {"action": "action", "agent_pos": "observation.state"})

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {}


gym.register("gym_kinoise_test_world/World-v0", entry_point=World)


def evaluate(monkeypatch: pytest.MonkeyPatch, checkpoint: Path, out: Path, *words: str) -> dict[str, Any]:
    line = ["lerobot-eval", f"--policy.path={checkpoint}", "--env.type=kinoise_test_world", "--eval.n_episodes=3"]
    line += ["--eval.batch_size=2", "--policy.device=cpu", f"--output_dir={out}", *words]
    monkeypatch.setattr(sys, "argv", line)
    lerobot_eval.main()
    return json.loads((out / "eval_info.json").read_text())


def test_lerobots_evaluation_runs_a_checkpoint(trained, tmp_path, monkeypatch):
    info = evaluate(monkeypatch, trained("kinoise_diffusion"), tmp_path / "out")
    assert info["overall"]["pc_success"] == 100.0
    assert info["overall"]["n_episodes"] == 3


def test_lerobots_evaluation_runs_what_kinoise_exported(trained, tmp_path, monkeypatch):
    run, out = tmp_path / "run", tmp_path / "exported"
    assert kinoise(["import-lerobot", str(trained("kinoise_diffusion")), f"out={run}"]) == 0
    assert kinoise(["export-lerobot", str(run), f"out={out}", "plugin=true"]) == 0
    info = evaluate(monkeypatch, out, tmp_path / "out")
    assert info["overall"]["pc_success"] == 100.0


def test_decoding_is_changed_on_the_command_line(trained, tmp_path, monkeypatch):
    steps: list[int] = []
    plan = KinoiseModePolicy._planned

    def spied(self: KinoiseModePolicy, *words: Any, **given: Any) -> Any:
        found = plan(self, *words, **given)
        steps.append(found.nfe)
        return found

    monkeypatch.setattr(KinoiseModePolicy, "_planned", spied)
    evaluate(monkeypatch, trained("kinoise_mode"), tmp_path / "out", "--policy.decode.steps=7", "--policy.n_action_steps=3")
    # Three episodes, two at a time, of two plans each.
    assert steps == [7] * 4


def test_a_policy_without_data_is_refused():
    config = KinoiseModeConfig(device="cpu")
    with pytest.raises(UsageError, match="needs a data set"):
        make_policy(config, env_cfg=WorldConfig())


def test_a_checkpoint_elsewhere_is_refused(trained):
    checkpoint = trained("kinoise_mode")
    config = PreTrainedConfig.from_pretrained(checkpoint)
    config.pretrained_path = checkpoint
    world = WorldConfig()
    world.features["action"] = PolicyFeature(FeatureType.ACTION, (5,))
    with pytest.raises(Exception, match="commands 2 numbers"):
        make_policy(config, env_cfg=world)
