"""What a run keeps for its resumption, damaged: refused in one line that names the checkpoint to remove, and that one alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from kinoise.spec import KinoiseError
from safetensors.torch import load_file, save_file
from short_runs import train, write_data

STEP = 6
MOMENT = ":exp_avg"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    assert train(write_data(folder / "data"), folder / "run") == 0
    return folder


def resumed(sound: Path, out: Path, said: str) -> None:
    with pytest.raises(KinoiseError, match=said) as raised:
        train(sound / "data", out, "resume=true", "train.steps=8")
    removed = re.search(r"remove (\S+) to resume", str(raised.value))
    assert removed is None or Path(removed[1]) == out / "checkpoints" / str(STEP)
    assert sorted(item.name for item in (out / "checkpoints").iterdir() if item.name.isdigit()) == ["4", str(STEP)]


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound / "run", tmp_path / "run", symlinks=True))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("elapsed_s", float("nan"), "is damaged"),
        ("elapsed_s", float("inf"), "is damaged"),
        ("elapsed_s", -1.0, "is damaged"),
        ("step", True, "is damaged"),
        ("step", 4, "is damaged"),
        ("threads", "1", "is damaged"),
        ("settings", {"train": {"steps": "6"}}, "train.steps: 6 -> 8"),
    ],
)
def test_a_state_of_other_values_is_refused(sound: Path, run: Path, key: str, value: Any, said: str) -> None:
    file = run / "checkpoints" / str(STEP) / "training_state" / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    resumed(sound, run, said)


@pytest.mark.parametrize("name", ["training_state/state.json", "training_state/optimizer.safetensors", "ema.safetensors"])
@pytest.mark.parametrize("trouble", ["cut", "gone"])
def test_a_file_that_cannot_be_read_names_its_checkpoint(sound: Path, run: Path, name: str, trouble: str) -> None:
    file = run / "checkpoints" / str(STEP) / name
    if trouble == "cut":
        file.write_bytes(file.read_bytes()[:20])
    else:
        file.unlink()
    resumed(sound, run, re.escape(str(file)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state, key: {**state, key: torch.zeros(())}, r"has shape \[\]"),
        (lambda state, key: {**state, key: torch.zeros(3, 1, 7)}, r"has shape \[3, 1, 7\]"),
        (lambda state, key: {**state, key.replace(MOMENT, ":step"): state[key]}, "the optimiser's step of"),
        (lambda state, key: {**state, key.replace(MOMENT, ":other"): state[key]}, "the optimiser's other of"),
        (lambda state, key: {name: value for name, value in state.items() if name != key}, r"lacks \['exp_avg'\]"),
    ],
    ids=["scalar", "shape", "step", "other", "absent"],
)
def test_an_optimisers_state_of_other_tensors_is_refused(sound: Path, run: Path, change: Any, said: str) -> None:
    file = run / "checkpoints" / str(STEP) / "training_state" / "optimizer.safetensors"
    state = load_file(file)
    key = next(name for name, value in state.items() if name.endswith(MOMENT) and value.ndim)
    save_file({name: value.clone() for name, value in change(state, key).items()}, file)
    resumed(sound, run, said)
