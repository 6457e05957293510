"""What training promises for every registered policy and every preset."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from kinoise.data import Episode, open_store, write_store
from kinoise.data.windows import Windows
from kinoise.policies import build_policy, choices
from kinoise.policies.base import Policy, PolicyConfig
from kinoise.policies.checkpoint import load_policy
from kinoise.spec import Feature, Spec
from kinoise.train.__main__ import main, make_accelerator
from kinoise.train.config import TrainConfig
from kinoise.train.loop import Trainer
from kinoise.train.optimizer import decayed, trained
from kinoise.train.validation import Validation
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import nn

MEMBERS = choices()
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.Embedding)
SMALL = {"width": 16, "depth": 2, "heads": 2}
every_policy = pytest.mark.parametrize("name", MEMBERS)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three short episodes with two instructions, in which the action depends on the state."""
    path, gen = tmp_path_factory.mktemp("training") / "data", np.random.default_rng(0)
    spec = Spec({"state": Feature((5,))}, Feature((2,), low=(-1.0,) * 2, high=(1.0,) * 2), rate=10.0)
    episodes = []
    for index in range(3):
        state = gen.normal(size=(10 + index, 5)).astype(np.float32)
        episodes.append(Episode({"state": state, "action": np.tanh(state[:, :2])}, ("push it", "open it")[index % 2]))
    write_store(path, spec, episodes)
    return path


def small(name: str) -> PolicyConfig:
    config = OmegaConf.structured(MEMBERS[name])
    network = {key: value for key, value in SMALL.items() if "network" in config and key in config.network}
    bins = {"bins": {"count": 64}} if "bins" in config else {}
    return OmegaConf.to_object(OmegaConf.merge(config, {"network": network} if network else {}, bins))  # type: ignore[return-value]


def fresh(name: str, data: Path) -> Policy:
    store = open_store(data)
    return build_policy(small(name), store.spec, store.stats(), store.texts)


def trainer(name: str, data: Path, **settings: float) -> Trainer:
    config = TrainConfig(**{"batch_size": 16, "warmup": 0, **settings})  # type: ignore[arg-type]
    policy = fresh(name, data)
    windows = Windows(open_store(data), policy.config.chunk, policy.config.history)
    return Trainer(config, policy, windows, 0, make_accelerator(config), "")


def run(name: str, data: Path, out: Path, *overrides: str) -> None:
    config = OmegaConf.structured(MEMBERS[name])
    network = [f"policy.network.{key}={value}" for key, value in SMALL.items() if "network" in config]
    short = ["train.steps=4", "train.save_every=2", "train.log_every=1", "train.batch_size=8", "train.tensorboard=false"]
    assert main([f"policy={name}", f"data={data}", f"out={out}", *network, *short, *overrides]) == 0


@every_policy
def test_a_resumed_run_is_the_run(name: str, data: Path, tmp_path: Path) -> None:
    run(name, data, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "half", symlinks=True)
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "4")
    (tmp_path / "half" / "train.json").unlink()
    run(name, data, tmp_path / "half", "resume=true")
    for file in ("model.safetensors", "ema.safetensors", "config.json", "training_state/optimizer.safetensors"):
        whole, half = ((tmp_path / kind / "checkpoints" / "last" / file).read_bytes() for kind in ("whole", "half"))
        assert whole == half, file


@every_policy
def test_a_run_leaves_a_policy_and_its_curves(name: str, data: Path, tmp_path: Path) -> None:
    run(name, data, tmp_path / "run")
    for ema, file in ((True, "ema"), (False, "model")):
        saved = load_file(tmp_path / "run" / "checkpoints" / "4" / f"{file}.safetensors")
        loaded = load_policy(tmp_path / "run", ema=ema).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in saved.items())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(np.isfinite(list(line.values())).all() for line in lines)


@every_policy
def test_the_loss_falls(name: str, data: Path) -> None:
    subject = trainer(name, data, steps=60, lr=3e-3)
    same_noise = Validation(subject.windows, batch_size=16, seed=0)
    before = same_noise.loss(subject.policy)
    for _ in range(60):
        subject.update()
    assert same_noise.loss(subject.policy) < 0.95 * before


@every_policy
def test_every_trained_parameter_gets_a_gradient(name: str, data: Path) -> None:
    """Processes wait for each other's gradients of all of them."""
    subject = trainer(name, data)
    loss, *_ = subject.spread.trained(*subject.prefetch.take(0))
    loss.backward()
    assert not [key for key, item in subject.parameters.items() if item.grad is None]


@every_policy
def test_the_parts_of_a_batch_add_up_to_it(name: str, data: Path) -> None:
    """A router's balancing loss alone is of each part by itself."""
    whole, parts = trainer(name, data), trainer(name, data, accumulate=3)
    for subject in (whole, parts):
        subject.update()
    one, several = whole.meter.means(1), parts.meter.means(1)
    assert one.keys() == several.keys()
    assert one["denoising"] == pytest.approx(several["denoising"], rel=1e-6)
    assert one["loss"] == pytest.approx(several["loss"], rel=1e-4)
    assert one["grad_norm"] == pytest.approx(several["grad_norm"], rel=1e-3)


@every_policy
def test_updates_use_no_global_randomness(name: str, data: Path) -> None:
    weights = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        subject = trainer(name, data)
        before = torch.get_rng_state()
        subject.update()
        assert torch.equal(torch.get_rng_state(), before)
        weights.append(subject.policy.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@every_policy
def test_weight_decay_spares_norms_biases_and_embeddings(name: str, data: Path) -> None:
    policy = fresh(name, data)
    shrunk, parameters = decayed(policy), trained(policy)
    assert shrunk < parameters.keys()
    assert sum(parameters[key].numel() for key in shrunk) > 0.8 * policy.parameter_count
    for key, item in parameters.items():
        owner, _, leaf = key.rpartition(".")
        module = policy.get_submodule(owner)
        if key in shrunk:
            assert item.ndim >= 2
            assert not isinstance(module, NORMS)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            assert leaf == "bias"
