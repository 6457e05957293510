"""`kinoise train` on files of other tools: decoded once, beside the run, and the same weights as on kinoise's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from kinoise.data import FORMATS, Episode
from kinoise.spec import Feature, KinoiseError, Spec
from kinoise.train.__main__ import main
from safetensors.torch import load_file

TINY = ["policy=discrete_vla", "policy.network.width=16", "policy.network.depth=1", "policy.network.heads=2"]
TINY += ["policy.chunk=4", "policy.execute=2", "policy.bins.count=64"]
SHORT = ["train.steps=2", "train.batch_size=4", "train.tensorboard=false", "train.augment.contrast=0.2"]
FOREIGN = {"robomimic": "my data.hdf5", "zarr": "data.zarr", "lerobot": "lerobot"}


def episodes() -> list[Episode]:
    rng = np.random.default_rng(0)
    picture = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
    return [
        Episode(
            {
                "state": rng.normal(size=(steps, 5)).astype(np.float32),
                "action": rng.normal(size=(steps, 2)).astype(np.float32),
                "image.top": np.stack([picture + step for step in range(steps)]).astype(np.uint8),
            },
            ("push it", "öffne es")[steps % 2],
            {"filters": ["some"] if steps < 9 else []},
        )
        for steps in (6, 9, 7)
    ]


def write(name: str, path: Path) -> Path:
    spec = Spec({"state": Feature((5,)), "image.top": Feature((32, 32, 3), "image")}, Feature((2,)), rate=10.0)
    FORMATS[name].write(path, spec, iter(episodes()))
    return path


def train(data: Path, out: Path, *overrides: str) -> dict[str, torch.Tensor]:
    assert main([*TINY, *SHORT, f"data={data}", f"out={out}", *overrides]) == 0
    return load_file(out / "checkpoints" / "last" / "model.safetensors")


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("native")
    weights = train(write("kinoise", folder / "data"), folder / "runs" / "run")
    assert not (folder / "runs" / "cache").exists()
    return weights


@pytest.mark.parametrize("name", FOREIGN)
def test_it_is_decoded_once_and_learnt_from(name, native, tmp_path, capsys, monkeypatch):
    data = write(name, tmp_path / FOREIGN[name])
    one = train(data, tmp_path / "runs" / "one")
    said = capsys.readouterr().err
    assert f"decoding 3 episodes of {data} into {tmp_path}/runs/cache/{data.name}-" in said
    if name != "lerobot":  # whose pictures a codec may have changed
        assert all(torch.equal(one[key], native[key]) for key in native)

    def refuse(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(FORMATS[name], "decode", refuse)
    two = train(data, tmp_path / "runs" / "two")
    assert "using the decoded copy" in capsys.readouterr().err
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert len([item for item in (tmp_path / "runs" / "cache").iterdir() if item.is_dir()]) == 1


def test_how_it_is_read_is_said_on_the_command_line(tmp_path):
    data = write("robomimic", tmp_path / "data.hdf5")
    with pytest.raises(KinoiseError, match="filter"):
        train(data, tmp_path / "run", "filter=none_such")
    with pytest.raises(KinoiseError, match="format 'tape'"):
        train(data, tmp_path / "run", "format=tape")
    assert not (tmp_path / "run").exists()
    train(data, tmp_path / "run", "filter=some", "rate=5", f"cache={tmp_path}/elsewhere")
    assert len(list((tmp_path / "elsewhere").glob("data.hdf5-*"))) == 1
    with pytest.raises(KinoiseError, match="is not what the run was trained on"):
        train(data, tmp_path / "run", "filter=some", "rate=6", "resume=true", f"cache={tmp_path}/elsewhere")
