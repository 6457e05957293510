"""Runs of kinoise in LeRobot, and LeRobot's checkpoints in kinoise: the same observation and noise, the same plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from kinoise.cli import main
from kinoise.policies import POLICIES, Policy, build_policy
from kinoise.policies.checkpoint import load_policy, save_policy
from kinoise.spec import Feature, Observation, Spec, Stats
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from safetensors.torch import load_file

TYPES = ("kinoise_diffusion", "kinoise_mode", "kinoise_discrete_vla")
TEXTS = ("open the drawer", "push the cube to the left")
RENAME = "rename={proprio: state, image.corner: image}"
NAMES = {"proprio": "observation.state", "image.corner": "observation.image"}


def stats(size: int) -> Stats:
    return Stats((0.1,) * size, (0.5,) * size, (-1.0,) * size, (1.0,) * size, (-0.9,) * size, (0.9,) * size, 9)


@pytest.fixture
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """What `kinoise train` leaves of a small policy of this type; nowhere are its weights zero, and its average differs."""
    name = request.param.removeprefix("kinoise_")
    images = {"image.corner": Feature((32, 32, 3), "image")} if name == "discrete_vla" else {}
    spec = Spec({"proprio": Feature((4,)), **images}, Feature((2,)), rate=20.0)
    config = POLICIES[name].config(chunk=6, execute=3)
    config.network.width, config.network.depth, config.network.heads = 16, 1, 2
    if images:
        config.encoder.patch = 8
    policy = build_policy(config, spec, {"proprio": stats(4), "image.corner": stats(3), "action": stats(2)}, TEXTS)
    gen = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for item in policy.parameters():
            item.add_(0.1 * torch.randn(item.shape, generator=gen))
    save_policy(tmp_path / "run", policy, {key: 0.9 * item.detach() for key, item in policy.named_parameters()})
    return tmp_path / "run"


def seen(policy: Policy) -> tuple[Observation, dict[str, Any]]:
    """The same moment as kinoise sees it, and as an environment of LeRobot's shows it: images first by channel, from 0 to 1."""
    gen, values, theirs = torch.Generator().manual_seed(1), {}, {"task": TEXTS[1]}
    for key, feature in policy.spec.observations.items():
        if feature.kind == "image":
            values[key] = torch.randint(0, 256, feature.shape, generator=gen, dtype=torch.uint8)
            theirs[NAMES.get(key, f"observation.images.{key.removeprefix('image.')}")] = values[key].permute(2, 0, 1) / 255
        else:
            values[key] = torch.randn(feature.shape, generator=gen)
            theirs["observation.state"] = values[key]
    rows = {key: item[None, None] for key, item in values.items()}
    return Observation(rows, (TEXTS[1],), torch.zeros(1, dtype=torch.int64)), theirs


def planned_by_kinoise(run: Path, ema: bool = True) -> torch.Tensor:
    policy = load_policy(run, device="cpu", ema=ema)
    torch.manual_seed(7)
    return policy.plan(seen(policy)[0], torch.default_generator).actions


def planned_by_lerobot(folder: Path, given: dict[str, Any]) -> torch.Tensor:
    config = PreTrainedConfig.from_pretrained(folder)
    policy = get_policy_class(config.type).from_pretrained(folder)
    before, after = make_pre_post_processors(config, pretrained_path=str(folder))
    batch = before(given)
    torch.manual_seed(7)
    return after(policy.predict_action_chunk(batch))


@pytest.mark.parametrize("run", TYPES, indirect=True)
def test_a_run_plans_in_lerobot_as_in_kinoise(run: Path, tmp_path: Path) -> None:
    words = [RENAME] if "image.corner" in load_policy(run, device="cpu").spec.observations else ["rename={proprio: state}"]
    assert main(["export-lerobot", str(run), f"out={tmp_path / 'out'}", "plugin=true", *words]) == 0
    mine = planned_by_kinoise(run)
    theirs = planned_by_lerobot(tmp_path / "out", seen(load_policy(run, device="cpu"))[1])
    assert theirs.shape == (1, 6, 2)
    torch.testing.assert_close(theirs, mine, rtol=0, atol=0)
    assert not torch.equal(mine, planned_by_kinoise(run, ema=False))


@pytest.mark.parametrize("run", TYPES, indirect=True)
def test_what_lerobot_saves_again_is_what_kinoise_wrote(run: Path, tmp_path: Path) -> None:
    assert main(["export-lerobot", str(run), f"out={tmp_path / 'out'}", "plugin=true"]) == 0
    config = PreTrainedConfig.from_pretrained(tmp_path / "out")
    get_policy_class(config.type).from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "again")
    said, kept = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("out", "again"))
    assert {key: kept.get(key) for key in said} == said


@pytest.mark.parametrize("kind", TYPES)
def test_what_lerobot_trained_plans_in_kinoise_as_there(kind: str, trained: Any, tmp_path: Path) -> None:
    assert main(["import-lerobot", str(trained(kind)), f"out={tmp_path / 'run'}"]) == 0
    policy = load_policy(tmp_path / "run", device="cpu")
    torch.testing.assert_close(
        planned_by_lerobot(trained(kind), seen(policy)[1]), planned_by_kinoise(tmp_path / "run"), rtol=0, atol=0
    )
    assert policy.config.observations == list(policy.spec.observations)
    assert main(["export-lerobot", str(tmp_path / "run"), f"out={tmp_path / 'out'}", "plugin=true"]) == 0
    assert load_file(tmp_path / "out" / "model.safetensors")["updates"] == 2
