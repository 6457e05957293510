"""`kinoise train` from data to checkpoints: what a run leaves, when it is the same run, and what is refused."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from kinoise.policies import choices
from kinoise.policies.checkpoint import load_policy
from kinoise.spec import KinoiseError
from kinoise.train.__main__ import emulated, main
from kinoise.train.augment import AugmentConfig
from kinoise.train.config import TrainConfig
from safetensors.torch import load_file
from short_runs import CHECKPOINT, RECIPE, records, same_weights, train, untimed, write_data


@pytest.mark.parametrize(
    ("has", "precision", "device", "said"),
    [(False, "bf16", "cpu", True), (False, "no", "cpu", False), (False, "bf16", "cuda", False), (None, "bf16", "cpu", False)],
)
def test_bf16_is_remarked_on_only_where_the_cpu_is_known_to_lack_it(
    has: bool | None, precision: str, device: str, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kinoise.train.__main__.bfloat16", lambda: has)
    assert emulated(precision, torch.device(device)) == said


def test_layout(whole: Path, data: Path) -> None:
    assert sorted(item.name for item in (whole / "checkpoints").iterdir()) == ["4", "6", "last"]
    assert (whole / "checkpoints" / "last").readlink() == Path("6")
    assert all((whole / "checkpoints" / "6" / name).is_file() for name in [*CHECKPOINT, "training_state/state.json"])
    assert [item["step"] for item in records(whole)] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "lr", "grad_norm", "steps_per_s", "data_wait", "elapsed_s"} <= records(whole)[0].keys()
    summary = json.loads((whole / "train.json").read_text())
    assert {"config", "parameters", "wall_s", "steps_per_s", "versions", "commit", "machine"} <= summary.keys()
    assert summary["parameters"] == load_policy(whole).parameter_count
    assert summary["config"]["train"]["steps"] == 6
    assert summary["demonstrations"]["collect"] == RECIPE


def test_no_pickle_anywhere(whole: Path) -> None:
    kinds = {item.suffix for item in whole.rglob("*") if item.is_file()}
    assert kinds <= {".safetensors", ".json", ".jsonl", ".md"}


def test_averages_differ_from_the_weights_and_load(whole: Path) -> None:
    model, ema = (load_file(whole / "checkpoints" / "6" / f"{name}.safetensors") for name in ("model", "ema"))
    assert model.keys() == ema.keys()
    assert any(not torch.equal(model[key], ema[key]) for key in model)
    loaded = load_policy(whole).state_dict()
    assert all(torch.equal(loaded[key], ema[key]) for key in ema)


def test_same_command_gives_the_same_run(whole: Path, data: Path, tmp_path: Path) -> None:
    assert train(data, tmp_path / "again") == 0
    assert same_weights(whole / "checkpoints" / "6", tmp_path / "again" / "checkpoints" / "6")
    assert untimed(whole) == untimed(tmp_path / "again")


def test_another_seed_gives_another_run(whole: Path, data: Path, tmp_path: Path) -> None:
    assert train(data, tmp_path / "other", "seed=1") == 0
    assert not same_weights(whole / "checkpoints" / "6", tmp_path / "other" / "checkpoints" / "6")


def test_watching_a_run_does_not_change_it(whole: Path, data: Path, tmp_path: Path) -> None:
    options = ["train.log_every=4", "train.save_every=5", "train.tensorboard=true"]
    assert train(data, tmp_path / "watched", *options) == 0
    assert same_weights(whole / "checkpoints" / "6", tmp_path / "watched" / "checkpoints" / "6")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data=/nowhere", "/nowhere"),
        ("train.steps=0", "train.steps=0"),
        ("train.betas=[0.9]", "train.betas"),
        ("train.precision=fp64", "auto, no, bf16"),
        ("train.eval_every=2", "env="),
        ("train.validation=1.0", "train.validation"),
        ("policy.observations=[camera]", "camera"),
        ("train.wandb=project", "pip install"),
        ("train.trackio=project", "pip install"),
        ("train.accumulate=9", "train.accumulate=9"),
        ("train.parallel=deepspeed", "auto, ddp, fsdp"),
        ("seed=-1", "seed"),
    ],
)
def test_bad_input_leaves_nothing(
    override: str, message: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(KinoiseError, match=message):
        train(data, tmp_path / "run", override)
    assert list(tmp_path.iterdir()) == []


def test_nan_in_demonstrations(tmp_path: Path) -> None:
    with pytest.raises(KinoiseError, match=r"NaN.*step 3"):
        write_data(tmp_path / "data", nan=True)
    data = write_data(tmp_path / "data")
    file = next((data / "data" / "state").glob("[!.]*"))
    rows = np.fromfile(file, np.float32)
    rows[0] = np.nan
    rows.tofile(file)
    with pytest.raises(KinoiseError, match=r"nan in episode 0 at step 0.*kinoise inspect"):
        train(data, tmp_path / "run")


def test_chunks_may_be_longer_than_episodes(data: Path, tmp_path: Path) -> None:
    assert train(data, tmp_path / "run", "policy.chunk=40", "train.steps=1") == 0


def test_lost_loss_stops_before_it_is_saved(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(KinoiseError, match=r"update [123].*train.lr"):
        train(data, out, "train.lr=1e38", "train.warmup=0", "train.save_every=1", "train.log_every=5")
    for checkpoint in (out / "checkpoints").glob("[0-9]*"):
        weights = [*load_file(checkpoint / "model.safetensors").values(), *load_file(checkpoint / "ema.safetensors").values()]
        assert all(item.isfinite().all() for item in weights)


def test_validation_loss_is_of_the_averages_and_changes_nothing(data: Path, tmp_path: Path) -> None:
    options = ["train.validation=0.3", "train.validate_every=3"]
    assert train(data, tmp_path / "one", *options) == 0
    assert train(data, tmp_path / "two", "train.validation=0.3", "train.validate_every=4") == 0
    losses = {item["step"]: item["validation_loss"] for item in records(tmp_path / "one") if "validation_loss" in item}
    assert losses.keys() == {3, 6}
    assert records(tmp_path / "two")[-1]["validation_loss"] == losses[6]
    assert same_weights(tmp_path / "one" / "checkpoints" / "6", tmp_path / "two" / "checkpoints" / "6")


def test_validation_needs_two_episodes(tmp_path: Path) -> None:
    with pytest.raises(KinoiseError, match="only one"):
        train(write_data(tmp_path / "data", episodes=1), tmp_path / "run", "train.validation=0.5")


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    nested = {"augment": [f"augment.{item.name}" for item in fields(AugmentConfig)]}
    names = [name for item in fields(TrainConfig) for name in nested.get(item.name, [item.name])]
    assert all(f"train.{name} " in shown for name in names)
    assert all(f"  {name}" in shown for name in choices())
