"""The pipelines beside LeRobot's models: the statistics that they hold, and what they may do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kinoise.policies.base import Policy
from kinoise.policies.example import example
from kinoise.policies.imports import Robot, export_lerobot, import_policy
from kinoise.policies.imports.lerobot_stats import our_stats
from kinoise.spec import KinoiseError
from lerobot_unets import small
from safetensors.torch import load_file, save_file


def plans(policy: Policy) -> torch.Tensor:
    return policy.plan(example(policy, rows=2), torch.Generator().manual_seed(0)).actions


def kept(folder: Path, *names: str) -> None:
    """Takes statistics away: those of others than `names` (`action.min`)."""
    for path in folder.glob("policy_*.safetensors"):
        found = load_file(path)
        save_file({name: item for name, item in found.items() if name in names}, path)


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (
            ["observation.state.mean", "observation.state.std", "action.min", "action.max"],
            r"state .*MIN_MAX.* lack min and max",
        ),
        (["observation.state.min", "observation.state.max"], "postprocessor.*action .*MIN_MAX.* lack min and max .*none"),
        (["action.min", "action.max"], None),
    ],
)
def test_statistics_are_those_of_their_mode_or_refused(tmp_path, names, why):
    export_lerobot(small(), tmp_path)
    kept(tmp_path, *names)
    if why is None:  # LeRobot leaves such an observation as it is
        assert "observation.state: no statistics, so it isn't scaled" in import_policy("lerobot", tmp_path, Robot(10.0)).notes
        return
    with pytest.raises(KinoiseError, match=why):
        import_policy("lerobot", tmp_path, Robot(10.0))


def test_percentiles_that_coincide_are_constant_as_for_lerobot(tmp_path):
    policy = small(actions="quantile")
    export_lerobot(policy, tmp_path)
    for path in tmp_path.glob("policy_*.safetensors"):
        found = load_file(path)
        save_file({**found, "action.q99": torch.tensor([found["action.q01"][0], found["action.q99"][1]])}, path)
    flat = import_policy("lerobot", tmp_path, Robot(10.0)).policy
    low = policy.stats["action"].q01[0]
    torch.testing.assert_close(plans(flat)[..., 0], torch.full((2, 7), low))
    torch.testing.assert_close(plans(flat)[..., 1], plans(policy)[..., 1], rtol=1e-5, atol=1e-5)


def test_percentiles_go_to_lerobot_as_they_scale_here(tmp_path):
    policy = small(actions="quantile")
    own = policy.stats["action"]
    policy.stats["action"] = replace(own, q01=(0.0, own.q01[1]), q99=(0.0, own.q99[1]))  # a gripper that is rarely closed
    export_lerobot(policy, tmp_path)
    for path in tmp_path.glob("policy_*.safetensors"):
        found = load_file(path)
        torch.testing.assert_close(found["action.q01"], torch.tensor(own.min))
        torch.testing.assert_close(found["action.q99"], torch.tensor(own.max))


def test_a_processor_that_does_more_is_refused(tmp_path):
    export_lerobot(small(), tmp_path)
    path = tmp_path / "policy_preprocessor.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "steps": [{"registry_name": "delta_action_processor"}, *value["steps"]]}))
    with pytest.raises(KinoiseError, match="'delta_action_processor' changes what the policy sees"):
        import_policy("lerobot", tmp_path, Robot(10.0))


NORMALISER = -1
"""The preprocessor's, its last step."""
PIPES = {
    "twice": (lambda steps: steps.append(steps[NORMALISER]), "scales by 'normalizer_processor' and 'normalizer_processor'"),
    "the other": (
        lambda steps: steps[NORMALISER].update(registry_name="unnormalizer_processor"),
        "expected 'normalizer_processor'",
    ),
    "above": (lambda steps: steps[NORMALISER].update(state_file=".."), r"state_file is '\.\.': expected the name of a"),
    "empty": (lambda steps: steps[NORMALISER].update(state_file=""), "state_file is ''"),
    "elsewhere": (lambda steps: steps[NORMALISER].update(state_file="../a.safetensors"), "state_file is '../a.safetensors'"),
    "a number": (lambda steps: steps[NORMALISER].update(state_file=3), "state_file is 3"),
    "gone": (lambda steps: steps[NORMALISER].update(state_file="b.safetensors"), "b.safetensors is missing"),
    "a folder": (lambda steps: steps[NORMALISER].update(state_file="folder.safetensors"), "folder.safetensors can't be read"),
    "keys": (
        lambda steps: steps[NORMALISER]["config"].update(normalize_observation_keys=5),
        "expected a list of names, or null",
    ),
}


@pytest.mark.parametrize("case", PIPES)
def test_one_normaliser_scales_by_a_file_beside_it(tmp_path, case):
    break_it, why = PIPES[case]
    export_lerobot(small(), tmp_path)
    (tmp_path / "folder.safetensors").mkdir()
    path = tmp_path / "policy_preprocessor.json"
    value = json.loads(path.read_text())
    break_it(value["steps"])
    path.write_text(json.dumps(value))
    with pytest.raises(KinoiseError, match=why):
        import_policy("lerobot", tmp_path, Robot(10.0))


@pytest.mark.parametrize("count", [torch.tensor([float("nan")]), torch.tensor([]), torch.tensor([-1.0]), torch.ones(2)])
def test_a_count_is_one_number(count: torch.Tensor) -> None:
    own = {"mean": torch.zeros(2), "std": torch.ones(2)}
    assert our_stats({**own, "count": torch.tensor([7.0])}, 2, False, "meanstd", "here").count == 7
    with pytest.raises(KinoiseError, match="here: a count of values is needed"):
        our_stats({**own, "count": count}, 2, False, "meanstd", "here")
