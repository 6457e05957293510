"""A run in robomimic's rollouts acts as in `kinoise eval`, sees what its data held, and refuses what it can't see."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kinoise.config import UsageError
from kinoise.data.robomimic.reader import RobomimicStore
from kinoise.eval.robomimic import RolloutAdapter, rollout_policy
from kinoise.eval.robomimic.__main__ import environment, main
from kinoise.eval.robomimic.observe import values
from kinoise.eval.rollout import Rollout
from kinoise.eval.slot import Job, Terms
from kinoise.eval.workers import Workers
from kinoise.policies import build_policy, choices
from kinoise.policies.base import Policy
from kinoise.policies.checkpoint import load_policy, save_policy
from kinoise.spec import Feature, KinoiseError, Spec, Stats
from line_world import SPEC, LineWorld, make
from omegaconf import OmegaConf
from robomimic_files import ENV_ARGS, foreign

SEED, STEPS = 5, 17
NUMBERS = {"state": 3, "image.top": 3}
ACTS = Stats((0.0,), (0.05,), (-0.12,), (0.12,), (-0.1,), (0.1,), 9)
STATS = {key: Stats((0.1,) * n, (0.5,) * n, (-1.0,) * n, (1.0,) * n, (-0.9,) * n, (0.9,) * n, 9) for key, n in NUMBERS.items()}
STATS["action"] = ACTS
PICTURED = Spec({"image.agentview": Feature((2, 128, 3), "image"), "object": Feature((6,))}, Feature((2,)), rate=20.0)


def policy(**over: Any) -> Policy:
    """A tiny policy of LineWorld with weights of noise."""
    small = {"network": {"width": 32, "depth": 1}, "encoder": {"shared_cameras": True, "pool": "average"}}
    settings = {**small, "chunk": 6, "execute": 3, "history": 2, **over}
    config = OmegaConf.merge(OmegaConf.structured(choices()["diffusion"]), settings)
    made = build_policy(OmegaConf.to_object(config), SPEC, STATS, ("do go",), seed=0)
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():  # fresh weights end in zeros, which would make all plans alike
        for item in made.parameters():
            item.add_(0.03 * torch.randn(item.shape, generator=gen))
    return made.eval()


class TheirWorld:
    """LineWorld as an environment of robomimic shows it: images as [channel, height, width] from 0 to 1, frames stacked."""

    def __init__(self, frames: int = 0, prepared: bool = True) -> None:
        self.world, self.prepared, self.actions = LineWorld("line/go"), prepared, list[np.ndarray]()
        self.stack: deque[dict[str, np.ndarray]] | None = deque(maxlen=frames) if frames else None
        self.won = False

    def reset(self) -> dict[str, np.ndarray]:
        self.actions.clear()
        shown = self._prepared(self.world.reset(seed=SEED)[0])
        if self.stack is not None:
            self.stack.extend([shown] * (self.stack.maxlen or 0))
        return self._stacked(shown)

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, dict]:
        assert isinstance(action, np.ndarray)
        self.actions.append(action)
        observation, reward, _, _, info = self.world.step(action)
        self.won = info["success"]
        shown = self._prepared(observation)
        if self.stack is not None:
            self.stack.append(shown)
        return self._stacked(shown), reward, False, {}

    def is_success(self) -> dict[str, bool]:
        return {"task": self.won}

    def _prepared(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        image = observation["image.top"]
        seen = np.moveaxis(image.astype(np.float32) / 255.0, -1, 0) if self.prepared else image
        return {"state": observation["state"].astype(np.float64), "top_image": seen, "clutter": np.zeros(4)}

    def _stacked(self, shown: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return shown if self.stack is None else {key: np.stack([item[key] for item in self.stack]) for key in shown}


def rolled_out(adapter: RolloutAdapter, env: TheirWorld, horizon: int = STEPS) -> np.ndarray:
    """What robomimic's `run_rollout` does with a policy; the actions carried out."""
    adapter.start_episode()
    ob, goal = env.reset(), None
    success = {"task": False}
    for _ in range(horizon):
        ob, _, done, _ = env.step(adapter(ob=ob, goal=goal))
        success["task"] = success["task"] or env.is_success()["task"]
        if done or success["task"]:
            break
    return np.stack(env.actions)


@pytest.fixture(scope="module")
def pool() -> Iterator[Workers]:
    with Workers(make, 1) as workers:
        yield workers


PLAYED: dict[str, tuple[dict[str, Any], float | None, TheirWorld]] = {
    "plain": ({}, None, TheirWorld()),
    "one frame": ({"history": 1, "execute": 6}, None, TheirWorld(frames=2)),
    "warm": ({"decode": {"warm": 0.6, "steps": 4}}, None, TheirWorld(frames=5)),
    "ensemble": ({"execute": 2}, 0.1, TheirWorld(prepared=False)),
}
"""Settings, the weights' decay in an ensemble, and what robomimic shows: stacks of frames, images as they are stored."""


@pytest.mark.parametrize("name", PLAYED)
def test_an_episode_is_that_of_kinoise_eval(name: str, pool: Workers) -> None:
    over, ensemble, env = PLAYED[name]
    own = policy(**over)
    job = Job("line/go", 0, SEED, Terms(own.config.history, tuple(own.spec.observations), STEPS))
    carry = own.config.decode.warm < 1
    rollout = Rollout(pool, [job], execute=own.config.execute, carry=carry, ensemble=ensemble)
    [outcome] = rollout.run(own)
    assert (outcome.error, outcome.steps) == (None, STEPS)
    adapter = RolloutAdapter(own, seed=SEED, instruction="do go", ensemble=ensemble)
    first, _, third = (rolled_out(adapter, env) for _ in range(3))  # the noise of this one is that of kinoise eval
    wanted = np.clip(rollout.carried[0].actions, SPEC.action.low, SPEC.action.high).astype(np.float32)
    np.testing.assert_array_equal(third, wanted)
    assert len(np.unique(third)) > STEPS // 2
    assert third.dtype == np.float32
    assert not np.array_equal(first, third)
    again = RolloutAdapter(own, seed=SEED, instruction="do go", ensemble=ensemble)
    np.testing.assert_array_equal(rolled_out(again, env), first)


def test_what_is_seen_are_the_numbers_that_the_data_held(tmp_path: Path) -> None:
    """By the names of a file that robomimic wrote, which `data.robomimic` reads."""
    store = RobomimicStore(foreign(tmp_path / "low_dim.hdf5"))
    frame = store.decode(0, tuple(store.spec.observations))
    image = np.moveaxis(frame["image.agentview"][2].astype(np.float32) / 255.0, -1, 0)
    ob = {"agentview_image": image, "object": frame["object"][2], "robot0_eef_pos": frame["robot0_eef_pos"][2]}
    seen = values(ob, store.spec)
    assert seen.keys() == store.spec.observations.keys()
    for key, array in seen.items():
        np.testing.assert_array_equal(array, frame[key][2])
        assert array.dtype == store.spec.observations[key].dtype


@pytest.mark.parametrize("name", ["agentview_image", "agentview_rgb", "image.agentview"])
def test_every_level_of_an_image_comes_back_and_poses_are_laid_out(name: str) -> None:
    image = np.arange(2 * 128 * 3, dtype=np.uint8).reshape(2, 128, 3)
    chw = np.moveaxis(image.astype(np.float32) / 255.0, -1, 0)
    for shown in (image, image / 255.0, chw, np.stack([chw * 0, chw])):
        seen = values({name: shown, "object": np.arange(6.0).reshape(2, 3)}, PICTURED)
        np.testing.assert_array_equal(seen["image.agentview"], image)
        np.testing.assert_array_equal(seen["object"], np.arange(6))


BLACK = np.zeros((2, 128, 3), np.uint8)
BAD: dict[str, tuple[Mapping[str, Any], str]] = {
    "absent": (
        {"object": np.zeros(6), "robot0_eef_pos": 1},
        r"show 'image.agentview' \(agentview_image or .*use_image_obs",
    ),
    "size": ({"object": np.zeros(7), "agentview_image": BLACK}, r"'object': .* 6 numbers, .* float64\[7\]"),
    "nan": ({"object": np.full(6, np.nan), "agentview_image": BLACK}, "'object' is NaN"),
    "picture": ({"object": np.zeros(6), "agentview_image": BLACK[:, :96]}, "camera_heights=2 and camera_widths=128"),
    "levels": ({"object": np.zeros(6), "agentview_image": BLACK + 255.0}, "from 0 to 1 .* from 255 to 255"),
    "dark": ({"object": np.zeros(6), "agentview_image": BLACK + np.nan}, "from 0 to 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused(name: str) -> None:
    ob, said = BAD[name]
    with pytest.raises(KinoiseError, match=said):
        values(ob, PICTURED)


def test_wrong_use_is_refused() -> None:
    own = policy()
    adapter = RolloutAdapter(own, instruction="do go")
    ob = TheirWorld().reset()
    with pytest.raises(KinoiseError, match="start_episode"):
        adapter(ob=ob)
    adapter.start_episode()
    with pytest.raises(KinoiseError, match="use_goals=False"):
        adapter(ob=ob, goal=ob)
    with pytest.raises(KinoiseError, match="instruction=, such as 'do go'"):
        RolloutAdapter(own)
    with pytest.raises(UsageError, match="execute=7"):
        RolloutAdapter(own, instruction="do go", execute=7)
    with torch.no_grad():
        for item in own.parameters():
            item.fill_(torch.nan)
    with pytest.raises(KinoiseError, match="not finite"):
        adapter(ob=ob)


def test_the_instruction_of_an_episode_reaches_the_policy() -> None:
    adapter, seen = RolloutAdapter(policy(), instruction="do go"), []
    adapter._planner.policy.plan, plan = lambda obs, gen: seen.append(obs.texts) or plan(obs, gen), adapter.policy.plan
    for lang in (None, "do another"):
        adapter.start_episode(lang=lang)
        adapter(ob=TheirWorld().reset())
    assert seen == [("do go",), ("do another",)]


THEIRS = {
    "__init__.py": "",
    "algo.py": "class RolloutPolicy:\n    def __init__(self, policy): raise AssertionError('not for ours')\n",
    "config.py": "class Config:\n    def dump(self): return '{}'\n\ndef config_factory(name): return Config()\n",
    "utils/__init__.py": "",
    "utils/obs_utils.py": "said = []\ninitialize_obs_utils_with_obs_specs = said.append\n",
    "utils/file_utils.py": "def policy_from_checkpoint(**_): raise AssertionError('a pickle is read')\n",
    "scripts/__init__.py": "",
    "scripts/run_trained_agent.py": """
import json, sys
import mujoco_py
import robomimic.utils.file_utils as FileUtils
from robomimic.algo import RolloutPolicy

policy, checkpoint = FileUtils.policy_from_checkpoint(ckpt_path=sys.argv[2], device=None, verbose=True)
assert isinstance(policy, RolloutPolicy)
policy.start_episode()
json.dump({"argv": sys.argv, "agent": repr(policy), **checkpoint}, sys.stdout)
""",
}
"""What robomimic has to have for its script to evaluate a run."""


@pytest.fixture
def robomimic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in THEIRS.items():
        (tmp_path / "lib/robomimic" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lib/robomimic" / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "robomimic"]:
        del sys.modules[name]


def test_robomimics_script_is_given_the_run(robomimic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = policy()
    made.recorded = {**ENV_ARGS, "env_kwargs": {**ENV_ARGS["env_kwargs"], "use_camera_obs": False}}
    save_policy(robomimic / "run", made, {})
    words = ["--agent", str(robomimic / "run"), "--n_rollouts", "2", "--seed", "7", "--instruction", "do go", "--execute", "2"]
    assert main(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["argv"][1:] == ["--agent", str(robomimic / "run"), "--n_rollouts", "2", "--seed", "7"]
    assert "diffusion: state, image.top -> 1 numbers; history 2, 2 of 6 actions" in said["agent"]
    assert said["shape_metadata"] == {"use_images": True, "ac_dim": 1}
    kwargs = said["env_metadata"]["env_kwargs"]
    assert (kwargs["camera_names"], kwargs["camera_heights"], kwargs["camera_widths"]) == (["top"], [4], [6])
    assert kwargs["robots"] == ["Panda"]
    assert "camera_names" not in made.recorded["env_kwargs"]
    assert "mujoco_py" not in sys.modules
    specs = {"obs": {"low_dim": ["state"], "rgb": ["top_image", "top_rgb", "image.top"]}}
    assert sys.modules["robomimic.utils.obs_utils"].said == [specs]
    assert environment(ENV_ARGS, SPEC.select(["state"])) == ENV_ARGS


def test_a_run_without_env_args_or_without_robomimic_is_refused(robomimic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_policy(robomimic / "run", policy(), {})
    with pytest.raises(KinoiseError, match=r"no env_args.*rollout_policy"):
        main(["--agent", str(robomimic / "run"), "--instruction", "do go"])
    agent = rollout_policy(load_policy(robomimic / "run"), instruction="do go")
    assert isinstance(agent, sys.modules["robomimic.algo"].RolloutPolicy)
    for name in [name for name in sys.modules if name.split(".")[0] == "robomimic"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "robomimic", None)
    with pytest.raises(KinoiseError, match=r"robomimic can't be imported .*Install it"):
        rollout_policy(robomimic / "run", instruction="do go")
