"""Runs as checkpoints of the LeRobot plugin, and back: the same weights, the same plans; what the plugin can't hold is refused.

That LeRobot reads them as well is for the plugin's own tests, which run in its environment.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kinoise import envs
from kinoise.cli import main
from kinoise.config import UsageError
from kinoise.eval.evaluate import evaluate
from kinoise.files import link
from kinoise.policies import build_policy
from kinoise.policies.base import Policy
from kinoise.policies.checkpoint import load_policy, save_policy
from kinoise.policies.core.network import NetworkConfig
from kinoise.policies.decode import DecodeConfig
from kinoise.policies.diffusion import DiffusionConfig
from kinoise.policies.example import example
from kinoise.policies.imports import Robot, import_policy
from kinoise.policies.imports.plugin import export_plugin
from kinoise.spec import Feature, KinoiseError, Spec, SpecMismatch, Stats
from plugin_folders import POLICIES, plans, random
from safetensors.torch import load_file, save_file
from small_policies import SPEC, TEXTS

RENAME = "rename={state: proprio, image.front: image}"


def stats(size: int) -> Stats:
    return Stats((0.0,) * size, (1.0,) * size, (-1.0,) * size, (1.0,) * size, (-1.0,) * size, (1.0,) * size, 10)


def run_of(policy: Policy, folder: Path) -> Path:
    """A run whose average is not its newest weights."""
    average = {name: 0.9 * item.detach() for name, item in policy.named_parameters()}
    save_policy(folder / "checkpoints" / "40", policy, average)
    link(folder / "checkpoints" / "last", "40")
    return folder


@pytest.mark.parametrize("name", POLICIES)
def test_a_run_comes_back_from_the_plugins_folder(name: str, tmp_path: Path) -> None:
    policy = random(name)
    policy.recorded = {"env_name": "Lift"}
    run, folder, back = run_of(policy, tmp_path / "run"), tmp_path / "folder", tmp_path / "back"
    assert main(["export-lerobot", str(run), f"out={folder}", "plugin=true"]) == 0
    assert main(["import-lerobot", str(folder), f"out={back}"]) == 0
    for ema in (True, False):
        one, other = (load_policy(item, device="cpu", ema=ema) for item in (run, back))
        assert other.spec == one.spec
        assert (other.stats, other.texts, other.recorded) == (one.stats, one.texts, one.recorded)
        assert replace(other.config, observations=None) == replace(one.config, observations=None)
        for key, item in one.state_dict().items():
            assert torch.equal(other.state_dict()[key], item), key
        assert torch.equal(plans(other), plans(one))
    assert json.loads((back / "import.json").read_text())["notes"] == []


def test_the_folder_holds_what_the_plugin_writes(tmp_path: Path) -> None:
    policy = random("discrete_vla")
    run = run_of(policy, tmp_path / "run")
    assert main(["export-lerobot", str(run), f"out={tmp_path / 'it'}", "plugin=true", RENAME]) == 0
    value = json.loads((tmp_path / "it" / "config.json").read_text())
    assert value["type"] == "kinoise_discrete_vla"
    assert (value["n_obs_steps"], value["chunk_size"], value["n_action_steps"]) == (1, 4, 2)
    assert value["data"]["names"] == {"state": "observation.proprio", "image.front": "observation.image"}
    assert value["input_features"] == {
        "observation.proprio": {"type": "STATE", "shape": [5]},
        "observation.image": {"type": "VISUAL", "shape": [3, 48, 48]},
    }
    assert value["output_features"] == {"action": {"type": "ACTION", "shape": [3]}}
    assert set(value["normalization_mapping"].values()) == {"IDENTITY"}
    weights = load_file(tmp_path / "it" / "model.safetensors")
    assert weights["updates"] == 40
    keys = policy.state_dict().keys()
    assert weights.keys() == {"updates", *(f"{part}.{key}" for part in ("policy", "average") for key in keys)}
    steps = {
        name: [step["registry_name"] for step in json.loads((tmp_path / "it" / f"policy_{name}.json").read_text())["steps"]]
        for name in ("preprocessor", "postprocessor")
    }
    before = ["rename_observations_processor", "to_batch_processor", "device_processor", "normalizer_processor"]
    assert steps == {"preprocessor": before, "postprocessor": ["unnormalizer_processor", "device_processor"]}


def test_without_averages_the_weights_as_trained_plan(tmp_path: Path) -> None:
    run = run_of(random("diffusion"), tmp_path / "run")
    assert main(["export-lerobot", str(run), f"out={tmp_path / 'it'}", "plugin=true", "ema=false", "decode.steps=2"]) == 0
    value = json.loads((tmp_path / "it" / "config.json").read_text())
    assert (value["ema"], value["decode"]["steps"]) == (False, 2)
    assert not any(name.startswith("average.") for name in load_file(tmp_path / "it" / "model.safetensors"))
    found = import_policy("lerobot", tmp_path / "it", Robot())
    assert not found.average
    assert torch.equal(plans(found.policy), plans(load_policy(run, device="cpu", ema=False, decode={"steps": 2})))


def test_the_robots_data_say_names_units_and_bounds(tmp_path: Path) -> None:
    policy = random("ddim")
    export_plugin(policy, tmp_path)
    told = Spec({"image": Feature((8, 8, 3), "image"), "agent": Feature((5,), names=tuple("abcde"))}, SPEC.action, rate=20.0)
    robot = Robot(told.rate, like=(told, ("another text",)), rename={"state": "agent"})
    found = import_policy("lerobot", tmp_path, robot).policy
    assert found.spec == told.select(["agent"])
    assert found.texts == TEXTS  # whose embeddings are in the weights
    assert found.config.vector.states == {"agent": "meanstd"}
    obs = example(policy, rows=2)
    renamed = replace(obs, values={"agent": obs.values["state"]})
    assert torch.equal(found.plan(renamed, torch.Generator().manual_seed(0)).actions, plans(policy))
    wrong: dict[str, Any] = {"rate: 10.0 there": {"rate": 10.0}, "gripper": {"gripper": (1,)}, "language": {"language": False}}
    wrong["control: absolute there, delta in the policy. Give its own data"] = {"control": "absolute"}
    for words, change in wrong.items():
        other = replace(told, **change)
        with pytest.raises(SpecMismatch, match=words):
            import_policy("lerobot", tmp_path, replace(robot, like=(other, ())))
    with pytest.raises(UsageError, match=r"says itself how its robot is commanded \(delta, 20 times a second, gripper \[\]\)"):
        import_policy("lerobot", tmp_path, Robot(10.0))


def test_without_language_it_plays_where_instructions_are_given(tmp_path: Path) -> None:
    """As `lerobot-train --policy.language=false` leaves it: under LeRobot's names, and with nothing of the simulator's."""
    pytest.importorskip("gym_pusht")
    with closing(envs.make("pusht")) as env:
        told = env.spec
    sizes = {"state": told.observations["agent"].shape, "environment_state": told.observations["keypoints"].shape}
    spec = Spec({key: Feature(shape) for key, shape in sizes.items()}, Feature((2,)), told.rate, "absolute", language=False)
    known = {key: stats(item.shape[0]) for key, item in (*spec.observations.items(), ("action", spec.action))}
    config = DiffusionConfig(network=NetworkConfig(width=16, depth=1, heads=2), decode=DecodeConfig(steps=1))
    export_plugin(build_policy(config, spec, known, ()).eval(), tmp_path / "it")
    words = ["env=pusht", "rename={state: agent, environment_state: keypoints}"]
    assert main(["import-lerobot", str(tmp_path / "it"), f"out={tmp_path / 'run'}", *words]) == 0
    found = load_policy(tmp_path / "run", device="cpu")
    assert told.language
    assert found.spec == replace(told.select(["agent", "keypoints"]), language=False)
    assert evaluate(found, "pusht", episodes=1, horizon=8)["success"]["n"] == 1


def several_robots() -> Policy:
    policy = random("diffusion")
    policy.frames = {name: (policy.spec, policy.stats) for name in ("metres", "inches")}
    return policy


CANNOT: dict[str, tuple[Callable[[], Policy], dict[str, str], str]] = {
    "several robots": (several_robots, {}, "metres, inches.*frame="),
    "a slash": (lambda: random("diffusion"), {"state": "arm/joints"}, "'/', such as observation.arm/joints: give others with"),
    "unknown": (lambda: random("diffusion"), {"stat": "agent"}, r"rename has \['stat'\]"),
    "twice": (lambda: random("discrete_vla"), {"state": "image.front"}, r"called \['image.front'\]"),
    "twice there": (lambda: random("discrete_vla"), {"state": "images.front"}, "several observations observation.images.front"),
}


@pytest.mark.parametrize("case", CANNOT)
def test_what_the_plugin_cannot_hold_is_refused(case: str, tmp_path: Path) -> None:
    make, rename, words = CANNOT[case]
    with pytest.raises(KinoiseError, match=words):
        export_plugin(make(), tmp_path, rename=rename)
    assert not list(tmp_path.iterdir())


def test_one_of_several_robots_can_be_chosen(tmp_path: Path) -> None:
    run = run_of(several_robots(), tmp_path / "run")
    assert main(["export-lerobot", str(run), f"out={tmp_path / 'it'}", "plugin=true"]) == 1
    assert not (tmp_path / "it").exists()
    assert main(["export-lerobot", str(run), f"out={tmp_path / 'it'}", "plugin=true", "frame=inches"]) == 0


def test_new_names_are_for_the_plugin(tmp_path: Path) -> None:
    assert main(["export-lerobot", str(tmp_path), f"out={tmp_path / 'it'}", RENAME]) == 2


Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]
DAMAGE: dict[str, tuple[Change, str]] = {
    "type": (lambda value, _: value.update(type="kinoise_act"), "policy 'act' is unknown"),
    "data": (lambda value, _: value.pop("data"), "'data' is damaged"),
    "spec": (lambda value, _: value["data"]["spec"].update(rate="fast"), "'rate' has to be a number"),
    "statistics": (lambda value, _: value["data"]["stats"].pop("action"), r"statistics of \['action'\] are missing"),
    "setting": (lambda value, _: value["network"].update(widht=3), "widht"),
    "size": (lambda value, _: value["network"].update(width=10**9), "width.* is 1000000000: expected 1048576 at most"),
    "width": (lambda value, _: value["network"].update(width=2**19), "do not belong together|no policy can be built"),
    "weight": (lambda _, weights: weights.pop(next(iter(sorted(weights)))), "average.* is missing"),
    "more": (lambda _, weights: weights.update(other=torch.zeros(1)), "other is unknown"),
    "averages": (lambda value, _: value.update(ema=False), "average.* is unknown"),
    "NaN": (lambda _, weights: weights[max(weights, key=lambda key: weights[key].ndim)].fill_(torch.nan), "holds NaN"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_checkpoint_is_refused(case: str, tmp_path: Path) -> None:
    change, words = DAMAGE[case]
    policy = random("diffusion")
    export_plugin(policy, tmp_path, trained=policy.state_dict())
    value, weights = json.loads((tmp_path / "config.json").read_text()), load_file(tmp_path / "model.safetensors")
    change(value, weights)
    (tmp_path / "config.json").write_text(json.dumps(value))
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(KinoiseError, match=words):
        import_policy("lerobot", tmp_path, Robot())


def test_a_checkpoint_of_others_still_needs_its_robots_rate(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="rate= in steps a second"):
        Robot().spec({"state": Feature((1,))}, 1)
    assert main(["import-lerobot", str(tmp_path), f"out={tmp_path / 'run'}", "rate=-1"]) == 2
