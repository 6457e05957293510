"""What making batches ahead promises: the same run, no thread that stays, errors where they belong."""

from __future__ import annotations

import gc
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from kinoise.data import Episode, write_store
from kinoise.data.windows import Windows
from kinoise.spec import Feature, KinoiseError, Spec
from kinoise.train.__main__ import main
from kinoise.train.prefetch import Prefetch
from safetensors.torch import load_file

TINY = ["policy=discrete_vla", "policy.network.width=16", "policy.network.depth=1", "policy.network.heads=2"]
TINY += ["policy.chunk=4", "policy.execute=2", "policy.bins.count=64"]
SHORT = ["train.steps=5", "train.batch_size=8", "train.save_every=2", "train.log_every=1", "train.tensorboard=false"]


def threads() -> list[str]:
    return [item.name for item in threading.enumerate() if item.name.startswith("kinoise-data")]


@pytest.fixture(autouse=True)
def _no_thread_stays():
    assert not threads()
    yield
    gc.collect()
    deadline = time.monotonic() + 10
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not threads()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, gen = tmp_path_factory.mktemp("prefetch") / "data", np.random.default_rng(0)
    spec = Spec({"state": Feature((5,)), "image.top": Feature((32, 32, 3), "image")}, Feature((2,)), rate=10.0)
    write_store(
        path,
        spec,
        [
            Episode(
                {
                    "state": gen.normal(size=(steps, 5)).astype(np.float32),
                    "action": gen.normal(size=(steps, 2)).astype(np.float32),
                    "image.top": gen.integers(0, 256, (steps, 32, 32, 3), np.uint8),
                },
                "go",
            )
            for steps in (6, 9)
        ],
    )
    return path


def train(data: Path, out: Path, *overrides: str) -> dict[str, torch.Tensor]:
    assert main([*TINY, *SHORT, f"data={data}", f"out={out}", *overrides]) == 0
    assert not threads()
    return load_file(out / "checkpoints" / "last" / "model.safetensors")


@pytest.mark.parametrize("extra", [[], ["train.augment.shift=2", "train.augment.brightness=0.3"]])
def test_the_weights_are_the_same_with_and_without(data, tmp_path, extra):
    runs = [train(data, tmp_path / str(depth), f"train.prefetch={depth}", *extra) for depth in (0, 1, 3)]
    for other in runs[1:]:
        assert all(torch.equal(runs[0][key], other[key]) for key in runs[0])


def test_augmentation_changes_the_run_and_a_resumed_one_is_the_run(data, tmp_path):
    plain, changed = train(data, tmp_path / "plain"), train(data, tmp_path / "changed", "train.augment.shift=2")
    assert any(not torch.equal(plain[key], changed[key]) for key in plain)
    half = tmp_path / "half"
    shutil.copytree(tmp_path / "changed", half, symlinks=True)
    shutil.rmtree(half / "checkpoints" / "5")
    (half / "train.json").unlink()
    resumed = train(data, half, "train.augment.shift=2", "train.prefetch=2", "resume=true")
    assert all(torch.equal(changed[key], resumed[key]) for key in changed)
    with pytest.raises(KinoiseError, match=r"train.augment.shift: 2 -> 3"):
        train(data, half, "train.augment.shift=3", "resume=true")


def test_two_shifts_are_remarked(data, tmp_path, capsys):
    train(data, tmp_path / "twice", "train.augment.shift=2", "train.steps=1")
    assert "policy.encoder.shift" in capsys.readouterr().err
    train(data, tmp_path / "once", "train.augment.shift=2", "train.steps=1", "policy.encoder.shift=0")
    assert "policy.encoder.shift" not in capsys.readouterr().err


def test_an_error_of_the_data_ends_the_run_and_the_thread(data, tmp_path, monkeypatch):
    gather, calls = Windows.batch, []

    def broken(self: Windows, indices: np.ndarray):
        calls.append(threading.current_thread().name)
        if len(calls) == 3:
            raise KinoiseError("the disk went away")
        return gather(self, indices)

    monkeypatch.setattr(Windows, "batch", broken)
    with pytest.raises(KinoiseError, match="the disk went away"):
        train(data, tmp_path / "run")
    assert not threads()
    assert any(name.startswith("kinoise-data") for name in calls)


def test_batches_are_made_ahead_by_one_thread_and_never_beyond_the_last():
    made: list[int] = []
    subject = Prefetch(lambda step: made.append(step) or step * step, depth=2, last=5)
    assert subject.take(0) == 0
    deadline = time.monotonic() + 60
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert made == [0, 1, 2]
    assert [subject.take(step) for step in range(1, 5)] == [1, 4, 9, 16]
    assert made == [0, 1, 2, 3, 4]
    assert not threads()
    assert subject.take(5) == 25


def test_another_step_than_the_next_is_no_error():
    subject = Prefetch(lambda step: step, depth=3, last=100)
    assert [subject.take(step) for step in (0, 1, 7, 8, 3, 3, 4)] == [0, 1, 7, 8, 3, 3, 4]
    subject.close()
    assert not threads()
    assert subject.take(5) == 5
    del subject


def test_an_error_comes_at_its_own_step_and_again_when_tried_again():
    def make(step: int) -> int:
        if step == 2:
            raise ValueError(f"step {step}")
        return step

    subject = Prefetch(make, depth=2, last=9)
    assert [subject.take(0), subject.take(1)] == [0, 1]
    for _ in range(2):
        with pytest.raises(ValueError, match="step 2"):
            subject.take(2)
    assert subject.take(3) == 3
    subject.close()


def test_what_it_waited_is_counted():
    subject = Prefetch(lambda step: time.sleep(0.02) or step, depth=0, last=9)
    for step in range(5):
        subject.take(step)
    assert subject.waited >= 0.1
