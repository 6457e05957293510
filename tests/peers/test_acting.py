"""LeRobot's own policy in a process of its own, as `benchmarks.imported` asks it: one plan's actions, and step by step."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kinoise.policies.imports import Robot, import_policy
from kinoise.spec import Observation

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("lerobot_policy_script.py")
CASE = {
    "seed": 0,
    "down_dims": [16, 32, 64],
    "diffusion_step_embed_dim": 32,
    "num_inference_steps": 10,
    "input_features": {
        "observation.images.top": ["VISUAL", [3, 72, 80]],
        "observation.environment_state": ["ENV", [3]],
        "observation.state": ["STATE", [5]],
    },
    "output_features": {"action": ["ACTION", [4]]},
}
CLOSE = 1e-5


@pytest.fixture(scope="module")
def theirs(lerobot, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("acting")
    (folder / "case.json").write_text(json.dumps(CASE))
    lerobot(SCRIPT, "make", folder / "theirs", folder / "case.json")
    names = {"state": "hand", "environment_state": "object"}
    policy = import_policy("lerobot", folder / "theirs", Robot(10.0, rename=names)).policy.eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(ROOT)])
        from benchmarks.acting import Theirs
        from benchmarks.peer import Peer
        from benchmarks.peers import lerobot_environment
    told = {"checkpoint": str(folder / "theirs"), "threads": 1}
    with Peer(lerobot_environment(ROOT / ".peers"), ROOT / "benchmarks" / "lerobot_acts.py", told) as peer:
        yield Theirs(peer, folder / "theirs", policy)


def seen(policy: Any, count: int, history: int) -> list[Observation]:
    """Within the data's range."""
    gen, found = torch.Generator().manual_seed(5), []
    for _ in range(count):
        values = {}
        for key, feature in policy.spec.observations.items():
            low, high = torch.tensor(policy.stats[key].min), torch.tensor(policy.stats[key].max)
            share = torch.rand(1, history, *feature.shape, generator=gen)
            values[key] = (255 * share).to(torch.uint8) if feature.kind == "image" else low + (high - low) * share
        found.append(Observation(values))
    return found


def test_both_carry_out_the_same_actions_of_a_plan_from_the_same_noise(theirs):
    policy = theirs.ours
    found = theirs.difference(seen(policy, 3, policy.config.history))
    assert found["observations"] == 3
    assert 0 < found["largest_in_half_ranges"] < CLOSE


def test_a_difference_is_seen(theirs):
    policy = theirs.ours
    before = {name: item.clone() for name, item in policy.state_dict().items()}
    with torch.no_grad():
        for item in policy.parameters():
            item.mul_(1.05)
    found = theirs.difference(seen(policy, 1, policy.config.history))
    policy.load_state_dict(before)
    assert found["largest_in_half_ranges"] > 100 * CLOSE


def test_an_episode_begins_with_another_seed_and_depends_on_nothing_before_it(theirs):
    def played(number: int) -> torch.Tensor:
        gen = torch.Generator().manual_seed(number)
        return torch.cat([theirs.plan(obs, [gen]).actions for obs in seen(theirs.ours, 3, 1)])

    first, other, again = played(1), played(2), played(1)
    assert first.shape == (3, 1, 4)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)
