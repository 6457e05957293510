"""Checkpoints of the LeRobot plugin that say something else than what kinoise wrote: followed, or refused with a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kinoise.config import UsageError
from kinoise.policies.caching import fingerprint
from kinoise.policies.checkpoint import load_policy
from kinoise.policies.decode import CacheSchedule
from kinoise.policies.example import example
from kinoise.policies.imports import Robot, import_policy
from kinoise.policies.imports.plugin import export_plugin
from kinoise.spec import KinoiseError, SpecMismatch
from kinoise.train.import_policy import main as import_main
from plugin_folders import changed, piped, plans, random
from safetensors.torch import load_file, save_file
from small_policies import SPEC


def test_a_guess_of_what_actions_mean_is_settled_by_whoever_knows(tmp_path: Path) -> None:
    """LeRobot's data sets don't say it: its training guesses by names, and the checkpoint says that it did."""
    export_plugin(random("diffusion"), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["data"]["guessed"] is False
    with pytest.raises(UsageError, match="says itself how its robot is commanded"):
        import_policy("lerobot", tmp_path, Robot(control="absolute"))
    changed(tmp_path, lambda value: value["data"].update(guessed=True))
    found = import_policy("lerobot", tmp_path, Robot())
    assert (found.policy.spec.control, len(found.notes)) == ("delta", 1)
    assert "control=delta is a guess" in found.notes[0]
    for other in (Robot(control="absolute", rate=50.0), Robot(control="absolute", gripper=(0,))):
        with pytest.raises(UsageError, match="leave out rate= and gripper="):
            import_policy("lerobot", tmp_path, other)
    told = import_policy("lerobot", tmp_path, Robot(control="absolute"))
    assert (told.policy.spec.control, told.notes) == ("absolute", [])
    like = replace(SPEC, control="absolute")
    with pytest.raises(
        SpecMismatch, match=r"control: absolute there, delta in the policy, which the training guessed.*=absolute"
    ):
        import_policy("lerobot", tmp_path, Robot(like.rate, like=(like, ())))
    assert import_policy("lerobot", tmp_path, Robot(like.rate, "absolute", like=(like, ()))).policy.spec.control == "absolute"
    with pytest.raises(SpecMismatch, match="control: absolute there, relative in the policy, which you said"):
        import_policy("lerobot", tmp_path, Robot(like.rate, "relative", like=(like, ())))
    changed(tmp_path, lambda value: [value["data"].pop(key) for key in ("guessed", "format")])
    assert "is a guess" in import_policy("lerobot", tmp_path, Robot()).notes[0]


PIPES: dict[str, tuple[str, Callable[[list[dict[str, Any]]], Any], str]] = {
    "unknown": ("pre", lambda steps: steps.append({"registry_name": "my_scaler"}), "'my_scaler' changes what the policy sees"),
    "after": ("post", lambda steps: steps.insert(0, {"class": "clip"}), "postprocessor.json: the step 'clip' changes"),
    "mode": ("pre", lambda steps: steps[3]["config"].update(norm_map={"STATE": "MIN_MAX"}), "scales by .*MIN_MAX.*IDENTITY"),
    "actions": ("post", lambda steps: steps[0]["config"].update(norm_map={"ACTION": "MEAN_STD"}), "scales by .*MEAN_STD"),
    "rounded": ("pre", lambda steps: steps[2]["config"].update(float_dtype="float16"), "rounds numbers to 'float16'"),
    "two maps": ("pre", lambda steps: steps.extend([{**steps[0], "config": {"rename_map": {"a": "b"}}}] * 2), "expected one"),
    "one name": ("pre", lambda steps: steps[0]["config"].update(rename_map={"a": "c", "b": "c"}), "names of their own"),
    "odd": ("pre", lambda steps: steps[0]["config"].update(rename_map={"a": 3}), "are damaged"),
    "gone": ("pre", lambda steps: steps.append(3), "expected a list of steps"),
}


@pytest.mark.parametrize("case", PIPES)
def test_what_lerobots_pipelines_do_to_numbers_is_refused(case: str, tmp_path: Path) -> None:
    name, change, words = PIPES[case]
    export_plugin(random("diffusion"), tmp_path)
    piped(tmp_path, name, change)
    with pytest.raises(KinoiseError, match=words):
        import_policy("lerobot", tmp_path, Robot())


def test_a_pipeline_that_is_missing_alone_is_refused_and_none_is_as_the_policy_alone(tmp_path: Path) -> None:
    export_plugin(random("diffusion"), tmp_path)
    (tmp_path / "policy_postprocessor.json").unlink()
    with pytest.raises(KinoiseError, match=r"policy_postprocessor\.json"):
        import_policy("lerobot", tmp_path, Robot())
    (tmp_path / "policy_preprocessor.json").unlink()
    assert import_policy("lerobot", tmp_path, Robot()).notes == []


@pytest.mark.parametrize("name", ["diffusion", "mode", "discrete_vla"])
def test_no_setting_that_is_written_may_be_missing(name: str, tmp_path: Path) -> None:
    """Or today's default would stand for it without a word."""
    export_plugin(random(name), tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    inner = [(part, key) for part in ("decode", "network") for key in written[part]]
    for place in [(key,) for key in written if key not in ("type", "device", "data")] + inner[:1] + inner[-1:]:
        value = json.loads(json.dumps(written))
        inside = value if len(place) == 1 else value[place[0]]
        del inside[place[-1]]
        (tmp_path / "config.json").write_text(json.dumps(value))
        with pytest.raises(KinoiseError, match=rf"{'.'.join(place)} is missing|normalization_mapping is None|input_features"):
            import_policy("lerobot", tmp_path, Robot())


CHANGED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "misspelt": (lambda value: value.update(decod={"steps": 50}), "decod is unknown"),
    "newer": (lambda value: value.update(goal_drop=1, another=2), "another is unknown; goal_drop is unknown"),
    "format": (lambda value: value["data"].update(format=3), "'data' has format 3: expected one up to 2"),
    "no number": (lambda value: value["data"].update(format="2"), "'data' has format '2'"),
    "no guess": (lambda value: value["data"].pop("guessed"), "'data' is damaged"),
    "odd guess": (lambda value: value["data"].update(guessed="no"), "'data' is damaged.*neither true nor false"),
    "names": (lambda value: value["data"].update(names={}), "'data' is damaged.*the names are not those"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_what_neither_kinoise_nor_its_plugin_writes_is_refused(case: str, tmp_path: Path) -> None:
    change, words = CHANGED[case]
    export_plugin(random("diffusion"), tmp_path)
    changed(tmp_path, change)
    with pytest.raises(KinoiseError, match=words):
        import_policy("lerobot", tmp_path, Robot())


def test_normalisation_by_lerobot_is_refused(tmp_path: Path) -> None:
    export_plugin(random("diffusion"), tmp_path)
    changed(tmp_path, lambda value: value["normalization_mapping"].update(ACTION="MIN_MAX"))
    with pytest.raises(KinoiseError, match=r"normalization_mapping is .*MIN_MAX.*expected IDENTITY"):
        import_policy("lerobot", tmp_path, Robot())


def test_observations_that_lerobot_renames_have_the_robots_names(tmp_path: Path) -> None:
    policy = random("ddim")
    export_plugin(policy, tmp_path, rename={"state": "proprio"})
    piped(tmp_path, "pre", lambda steps: steps[0]["config"].update(rename_map={"observation.arm": "observation.proprio"}))
    found = import_policy("lerobot", tmp_path, Robot()).policy
    assert list(found.spec.observations) == found.config.observations == ["arm"]
    assert found.config.vector.states == {"arm": "meanstd"}
    obs = example(policy, rows=2)
    renamed = replace(obs, values={"arm": obs.values["state"]})
    assert torch.equal(found.plan(renamed, torch.Generator().manual_seed(0)).actions, plans(policy))
    again = import_policy("lerobot", tmp_path, Robot(rename={"arm": "agent"})).policy
    assert list(again.spec.observations) == list(again.stats)[:1] == ["agent"]


@pytest.mark.parametrize("averaged", [True, False])
def test_a_cache_comes_in_with_the_weights_that_it_was_fitted_to(averaged: bool, tmp_path: Path) -> None:
    policy = random("diffusion")
    decode, known = policy.config.decode, fingerprint(policy)
    schedule = CacheSchedule("by hand", decode.sampler, policy.evaluations, known, {"0.attention": [0, 2]})
    policy.config.decode = replace(decode, cache="fitted", schedule=schedule)
    own = policy.state_dict()
    export_plugin(policy, tmp_path, trained={name: 0.5 * item for name, item in own.items()} if averaged else None)
    assert import_main([str(tmp_path), f"out={tmp_path / 'run'}"]) == 0
    assert load_policy(tmp_path / "run", device="cpu").config.decode.schedule.weights == known
    weights = load_file(tmp_path / "model.safetensors")
    moved = {
        name: item + 1 if name.startswith("average." if averaged else "policy.") else item for name, item in weights.items()
    }
    save_file(moved, tmp_path / "model.safetensors")
    with pytest.raises(
        KinoiseError, match=r"config\.json: the cache's schedule was fitted to other weights .*cache=none there"
    ):
        import_policy("lerobot", tmp_path, Robot())
