"""`lerobot-train --policy.type=kinoise_*`: the checkpoint it leaves, what comes back from it, and what it goes on from."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kinoise.config import UsageError
from kinoise.data import open_store
from kinoise.data.base import episode
from kinoise.data.lerobot import LeRobotStore
from kinoise.data.windows import Windows
from kinoise.policies.caching import fingerprint
from kinoise.policies.decode import CacheSchedule
from kinoise.spec import KinoiseError
from lerobot.configs.default import DatasetConfig
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets.factory import make_dataset
from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata
from lerobot.policies.factory import get_policy_class, make_policy, make_policy_config, make_pre_post_processors
from lerobot_policy_kinoise import KinoiseDiffusionPolicy, KinoiseModeConfig, KinoiseModePolicy
from lerobot_policy_kinoise.batches import training_batch
from lerobot_policy_kinoise.data import learnt_from
from safetensors.torch import load_file, save_file

STATE = "--policy.observations=[observation.state]"
TYPES = ("kinoise_diffusion", "kinoise_mode", "kinoise_discrete_vla")


def last(run: Path) -> Path:
    return run / "checkpoints" / "last" / "pretrained_model"


def batch(rows: int = 2) -> dict[str, Any]:
    gen = torch.Generator().manual_seed(1)
    return {
        "observation.state": torch.randn(rows, 3, generator=gen),
        "observation.images.top": torch.rand(rows, 3, 40, 40, generator=gen),
        "task": ["open the drawer"] * rows,
    }


def chunk(policy: Any) -> torch.Tensor:
    torch.manual_seed(3)
    policy.reset()
    return policy.predict_action_chunk(batch())


def test_lerobot_finds_the_plugin_by_its_distributions_name():
    assert importlib.metadata.metadata("lerobot_policy_kinoise")["Name"].startswith("lerobot_policy_")


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_is_registered_with_its_policy_and_its_processors(kind):
    config = make_policy_config(kind)
    assert config.type == kind
    assert get_policy_class(kind).config_class is PreTrainedConfig.get_choice_class(kind)
    make_pre_post_processors(config)


@pytest.mark.parametrize("kind", TYPES)
def test_a_trained_policy_is_the_same_after_its_checkpoint(kind, trained, tmp_path):
    pretrained = trained(kind)
    assert {"config.json", "model.safetensors", "train_config.json"} <= {file.name for file in pretrained.iterdir()}
    policy = get_policy_class(kind).from_pretrained(pretrained)
    policy.save_pretrained(tmp_path / "again")
    again = get_policy_class(kind).from_pretrained(tmp_path / "again")
    actions = chunk(policy)
    assert actions.shape == (2, policy.config.chunk_size, 2)
    assert actions.isfinite().all()
    torch.testing.assert_close(chunk(again), actions, rtol=0, atol=0)
    assert again.config == policy.config


def test_training_changes_the_weights_and_the_average_follows(trained):
    found = load_file(trained("kinoise_mode") / "model.safetensors")
    live = {name.removeprefix("policy."): item for name, item in found.items() if name.startswith("policy.")}
    assert all(f"average.{name}" in found for name in live)
    assert found["updates"] == 2
    # The first update copies; the second keeps 1 - 2^-0.75 of that.
    assert any(not torch.equal(item, found[f"average.{name}"]) for name, item in live.items())


def test_without_an_average_the_trained_weights_plan(dataset, tmp_path):
    config = KinoiseModeConfig(observations=["observation.state"], device="cpu", ema=False)
    policy = make_policy(config, ds_meta=LeRobotDatasetMetadata("kinoise/tiny", root=dataset))
    policy.save_pretrained(tmp_path)
    assert not any(name.startswith("average.") for name in load_file(tmp_path / "model.safetensors"))
    again = KinoiseModePolicy.from_pretrained(tmp_path)
    assert again.average is None
    assert torch.equal(chunk(again), chunk(policy))


def test_the_average_has_the_batch_norms_of_the_trained_weights(fresh):
    policy = fresh()
    for twin in (policy.policy, policy.average):  # as an image network with `vector.norm=batch` has them
        twin.norm = torch.nn.BatchNorm1d(2)
    policy.policy.norm.train()(torch.full((4, 2), 3.0))
    policy.update()
    for name, item in policy.policy.norm.named_buffers():
        assert torch.equal(policy.average.norm.get_buffer(name), item), name


def test_a_resumed_run_goes_on_with_its_average_and_its_data(trained, command, tmp_path):
    run = shutil.copytree(trained("kinoise_mode").parents[2], tmp_path / "run", symlinks=True)
    before = json.loads((last(run) / "config.json").read_text())
    command(f"--config_path={last(run) / 'train_config.json'}", "--resume=true", "--steps=5", f"--output_dir={run}")
    assert load_file(last(run) / "model.safetensors")["updates"] == 5
    assert json.loads((last(run) / "config.json").read_text())["data"] == before["data"]


def test_a_policy_that_is_trained_further_keeps_its_normalisation(train, trained, tmp_path):
    first = shutil.copytree(trained("kinoise_mode"), tmp_path / "first")
    config = json.loads((first / "config.json").read_text())
    changed = {**config, "data": json.loads(json.dumps(config["data"]).replace('"rate": 10.0', '"rate": 20.0'))}
    (first / "config.json").write_text(json.dumps(changed))
    later = last(train(None, f"--policy.path={first}", "--policy.optimizer_lr=0.0001", small=False))
    found = json.loads((later / "config.json").read_text())
    assert found["data"] == changed["data"]
    assert found["optimizer_lr"] == 0.0001


def test_what_the_data_said_is_part_of_the_checkpoint(trained):
    config = json.loads((trained("kinoise_discrete_vla") / "config.json").read_text())
    data = config["data"]
    assert config["type"] == "kinoise_discrete_vla"
    assert set(data["texts"]) == {"push the cube to the left", "open the drawer"}
    assert data["names"] == {"state": "observation.state", "image.top": "observation.images.top"}
    assert data["spec"]["gripper"] == [1]
    assert data["spec"]["rate"] == 10
    assert (data["spec"]["control"], data["guessed"]) == ("absolute", True)
    assert len(data["stats"]["action"]["quantiles"]) == 2  # which meta/stats.json does not hold


def test_what_actions_mean_is_known_of_data_that_kinoise_wrote(dataset, tmp_path):
    store = open_store(dataset)
    spec = replace(store.spec, control="relative")
    LeRobotStore.write(tmp_path / "set", spec, [episode(store, 0)], {})
    meta = LeRobotDatasetMetadata("kinoise/tiny", root=tmp_path / "set")
    config = make_policy(KinoiseModeConfig(observations=["observation.state"], device="cpu"), ds_meta=meta).config
    found = learnt_from(config, meta)
    assert (found.spec.control, found.guessed) == ("relative", False)
    (tmp_path / "set" / "meta" / "kinoise.json").write_text("{}")
    found = learnt_from(config, meta)
    assert (found.spec.control, found.guessed) == ("absolute", True)


def test_statistics_are_the_data_sets_in_physical_units(dataset, trained):
    meta = LeRobotDatasetMetadata("kinoise/tiny", root=dataset)
    stats = json.loads((trained("kinoise_discrete_vla") / "config.json").read_text())["data"]["stats"]
    state = meta.stats["observation.state"]
    for name in ("mean", "std", "min", "max"):
        np.testing.assert_allclose(stats["state"][name], state[name], rtol=1e-5)
    imagenet = [0.485, 0.456, 0.406]  # which lerobot-train puts there, unless told --dataset.use_imagenet_stats=false
    np.testing.assert_allclose(stats["image.top"]["mean"], 255 * np.array(imagenet), rtol=1e-5)


def test_steps_past_an_episodes_end_do_not_count(dataset):
    meta = LeRobotDatasetMetadata("kinoise/tiny", root=dataset)
    config = KinoiseModeConfig(observations=["observation.state"], device="cpu", goal_dropout=0.0)
    policy = make_policy(config, ds_meta=meta).train()
    rows = {**batch(), "action": torch.zeros(2, 12, 2), "action_is_pad": torch.zeros(2, 12, dtype=torch.bool)}
    rows["action_is_pad"][:, 4:] = True

    def loss(actions: torch.Tensor) -> float:
        torch.manual_seed(0)
        return policy.forward({**rows, "action": actions})[0].item()

    other = rows["action"].clone()
    other[:, 4:] = 9.0
    assert loss(other) == loss(rows["action"])
    other[:, 3] = 9.0
    assert loss(other) != loss(rows["action"])


def test_a_loss_for_each_row_has_the_mean_that_is_minimised(dataset):
    meta = LeRobotDatasetMetadata("kinoise/tiny", root=dataset)
    policy = make_policy(KinoiseModeConfig(observations=["observation.state"], device="cpu"), ds_meta=meta)
    rows = {**batch(), "action": torch.ones(2, 12, 2)}
    torch.manual_seed(0)
    mean, parts = policy.forward(rows)
    torch.manual_seed(0)
    each, _ = policy.forward(rows, reduction="none")
    assert each.shape == (2,)
    torch.testing.assert_close(each.mean(), mean)
    assert all(isinstance(item, float) for item in parts.values())


def test_a_batch_of_lerobots_is_the_window_of_kinoises(dataset):
    """The same step's observation, actions and padding, through both readers."""
    config = KinoiseModeConfig(n_obs_steps=2, chunk_size=6, n_action_steps=3, device="cpu")
    settings = TrainPipelineConfig(dataset=DatasetConfig(repo_id="kinoise/tiny", root=str(dataset)), policy=config)
    data = make_dataset(settings)
    policy = make_policy(config, ds_meta=data.meta)
    windows = Windows(open_store(dataset), chunk=6, history=2)
    indices = [0, 1, 4, 5, len(data) - 1]
    theirs = torch.utils.data.default_collate([data[index] for index in indices])
    found = training_batch(theirs, learnt_from(policy.config, data.meta), 2, 6)
    ours = windows.batch(np.array(indices))
    torch.testing.assert_close(found.actions, ours.actions)
    assert torch.equal(found.valid, ours.valid)
    for key, item in ours.observation.values.items():
        assert torch.equal(found.observation.values[key], item), key
    texts = [found.observation.texts[index] for index in found.observation.text]
    assert texts == [ours.observation.texts[index] for index in ours.observation.text]


@pytest.mark.parametrize("ema", [True, False])
def test_a_fitted_cache_is_for_the_weights_as_they_are(ema, fresh, tmp_path):
    """Those that plan: a checkpoint with others is refused, and so is training on."""
    policy = fresh(decode={"steps": 2})
    if not ema:
        policy.config.ema, policy.average = False, None
    planner = policy.average if ema else policy.policy
    decode, known = policy.config.decode, fingerprint(planner)
    branches = {"0.attention": [0], "0.feedforward": [0]}
    schedule = CacheSchedule("by hand", decode.sampler, planner.evaluations, known, branches)
    policy.config.decode = replace(decode, cache="fitted", schedule=schedule)
    policy.save_pretrained(tmp_path)
    again = KinoiseDiffusionPolicy.from_pretrained(tmp_path)
    assert chunk(again).isfinite().all()
    for change in (again.get_optim_params, again.update):
        with pytest.raises(UsageError, match=r"training changes them.*--policy\.decode\.cache=none"):
            change()
    begin, found = "average." if ema else "policy.", load_file(tmp_path / "model.safetensors")
    moved = {name: item + 1 if name.startswith(begin) else item for name, item in found.items()}
    save_file(moved, tmp_path / "model.safetensors")
    with pytest.raises(KinoiseError, match="fitted to other weights"):
        KinoiseDiffusionPolicy.from_pretrained(tmp_path)


def test_weights_that_are_missing_are_an_error(trained, tmp_path):
    shutil.copytree(trained("kinoise_mode"), tmp_path, dirs_exist_ok=True)
    found = load_file(tmp_path / "model.safetensors")
    name = next(name for name in found if name.startswith("policy."))
    save_file({key: item for key, item in found.items() if key != name}, tmp_path / "model.safetensors")
    with pytest.raises(KinoiseError, match=name):
        KinoiseModePolicy.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(KinoiseError, match="cut short"):
        KinoiseModePolicy.from_pretrained(tmp_path)
