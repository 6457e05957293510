"""The targets of `benchmarks.fuzz` that read checkpoints: a policy's, a training run's, and zips of torch.save."""

from __future__ import annotations

import copy
import io
import json
import zipfile
from pathlib import Path
from typing import Any
from unittest import mock

from kinoise.spec import Stats

from .fuzz_inputs import SPEC, Folder, Run, Target, replaced

STEP = 7
SETTINGS = {"data": "data", "seed": 0, "policy": {"name": "diffusion"}, "train": {"steps": 9, "batch_size": 8, "lr": 1e-4}}


def _policy() -> Any:
    from kinoise.policies import build_policy
    from kinoise.policies.core.network import NetworkConfig
    from kinoise.policies.diffusion import DiffusionConfig

    stats = {
        key: Stats((0.0,) * n, (1.0,) * n, (-1.0,) * n, (1.0,) * n, (-1.0,) * n, (1.0,) * n, 9)
        for key, n in (("state", 3), ("action", 2))
    }
    config = DiffusionConfig(network=NetworkConfig(width=8, depth=1, heads=2), chunk=4, execute=2)
    return build_policy(config, SPEC, stats, ("do 0", "do 1"))


def _checkpoint_folder(folder: Path) -> Folder:
    from kinoise.policies.checkpoint import save_policy

    path = folder / "checkpoint"
    if not path.exists():
        path.mkdir()
        save_policy(path, _policy(), {})
    return Folder(path, ["config.json", "ema.safetensors"])


def _checkpoint(folder: Path) -> Run:
    from kinoise.policies import checkpoint

    store, parsed = _checkpoint_folder(folder), checkpoint.policy_config
    settings = json.loads((store.path / "config.json").read_text())["policy"]
    sound, made = json.dumps(settings), parsed(settings, {}, store.path)

    def config(value: dict[str, Any], *others: Any) -> Any:
        """Sound settings, which are those of every input for the weights, are parsed once."""
        return copy.deepcopy(made) if json.dumps(value) == sound else parsed(value, *others)

    def read() -> None:
        with mock.patch.object(checkpoint, "policy_config", config):
            checkpoint.load_policy(store.path, device="cpu")

    return replaced(store, read)


def _resumed_folder(folder: Path) -> Folder:
    from kinoise.train.checkpoint import RunDirectory, State
    from kinoise.train.config import TrainConfig
    from kinoise.train.optimizer import make_optimizer, optimizer_state, trained

    run, policy = RunDirectory(folder / "run", keep=1), _policy()
    path = run.checkpoint(STEP)
    if not path.exists():
        optimizer, parameters = make_optimizer(policy, TrainConfig()), trained(policy)
        sum(item.sum() for item in parameters.values()).backward()
        optimizer.step()
        run.save(State(STEP, 1.5, 1, "0" * 16, SETTINGS), policy, {}, optimizer_state(optimizer, parameters))
    return Folder(path, ["training_state/state.json", "training_state/optimizer.safetensors", "ema.safetensors"])


def _resumed(folder: Path) -> Run:
    """What training takes from a checkpoint besides the policy."""
    from kinoise.train.checkpoint import RunDirectory
    from kinoise.train.config import TrainConfig, differences
    from kinoise.train.ema import Ema
    from kinoise.train.optimizer import load_optimizer_state, make_optimizer, trained

    store, policy = _resumed_folder(folder), _policy()
    run, parameters = RunDirectory(folder / "run", keep=1), trained(policy)
    averages = Ema(parameters)

    def read() -> None:
        state = run.newest()
        assert state is not None
        differences(state.settings, SETTINGS)
        averages.load(run.ema(state.step))
        load_optimizer_state(make_optimizer(policy, TrainConfig()), parameters, run.optimizer(state.step))

    return replaced(store, read)


def _zips() -> list[bytes]:
    """As training code of others writes them: weights with what torch knows of them, and settings of OmegaConf."""
    import torch
    from omegaconf import OmegaConf

    weight = torch.arange(6.0).reshape(2, 3)
    settings = OmegaConf.create({"policy": {"layers": [1, 2.5, None], "name": "a"}, "half": "${policy.name}"})
    state = {"weight": weight, "turned": weight.T, "count": torch.tensor(3), "half": weight.half()}
    found = []
    trained = {"state_dicts": {"model": state}, "cfg": settings, "epoch": 3}
    for value in (trained, [torch.nn.Parameter(weight), {"a": (b"\xff", True)}]):
        file = io.BytesIO()
        torch.save(value, file)
        found.append(file.getvalue())
    return found


def _torch_zip_seeds(folder: Path) -> list[bytes]:
    """A zip whole, or the pickle alone of one of them."""
    found = []
    for number, data in enumerate(_zips()):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            (name,) = (item for item in archive.namelist() if item.endswith("data.pkl"))
            found += [b"\0" + data, bytes([number + 1]) + archive.read(name)]
    return found


def _torch_zip(folder: Path) -> Run:
    from kinoise.policies.imports.torch_zip import plain, read_torch

    path, others = folder / "one.ckpt", []
    for data in _zips():
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            others.append({name: archive.read(name) for name in archive.namelist()})

    def one(data: bytes) -> None:
        if not data:
            return
        kind = data[0] % (len(others) + 1)
        if kind:
            with zipfile.ZipFile(path, "w") as archive:
                for name, content in others[kind - 1].items():
                    archive.writestr(name, data[1:] if name.endswith("data.pkl") else content)
        else:
            path.write_bytes(data[1:])
        plain(read_torch(path))

    return one


CHECKPOINTS = {
    "checkpoint": Target(lambda folder: _checkpoint_folder(folder).seeds(), _checkpoint),
    "resume": Target(lambda folder: _resumed_folder(folder).seeds(), _resumed),
    "torch_zip": Target(_torch_zip_seeds, _torch_zip, json=False),
}
