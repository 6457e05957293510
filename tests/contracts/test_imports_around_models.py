"""A plugin's checkpoint around a pretrained model: the user says where that is, and what is built beside it stays bounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kinoise.config import UsageError
from kinoise.policies.checkpoint import load_policy, save_policy
from kinoise.policies.encoders import vlm
from kinoise.policies.imports import Robot, import_policy
from kinoise.policies.imports.plugin import export_plugin
from kinoise.spec import KinoiseError
from kinoise.train.import_policy import main as import_main
from plugin_folders import changed, plans, random
from tiny_vlm import write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_model("smolvlm", tmp_path_factory.mktemp("smolvlm")))


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    export_plugin(around(model), tmp_path)
    return tmp_path


def around(model: Path) -> Any:
    return random("discrete_vla", vlm={"path": str(model), "lora": 4})


def test_no_model_is_opened_on_a_checkpoints_word(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(vlm, "load_family", lambda path, *_: opened.append(path))
    for path in ("attacker/model", "/etc"):
        changed(folder, lambda value, path=path: value["vlm"].update(path=path))
        with pytest.raises(KinoiseError, match=rf"vlm.path='{path}', which is not opened on the checkpoint's word: give vlm="):
            import_policy("lerobot", folder, Robot())
    assert not opened


def test_with_the_users_model_it_plans_as_before(folder: Path, model: Path, tmp_path: Path) -> None:
    changed(folder, lambda value: value["vlm"].update(path="attacker/model"))
    assert import_main([str(folder), f"out={tmp_path / 'run'}", f"vlm={model}"]) == 0
    found = load_policy(tmp_path / "run", device="cpu")
    assert found.config.vlm.path == str(model)  # type: ignore[attr-defined]
    assert torch.equal(plans(found), plans(around(model)))


def test_a_model_for_nothing_is_refused(model: Path, tmp_path: Path) -> None:
    export_plugin(random("diffusion"), tmp_path)
    with pytest.raises(UsageError, match="around no vision-language model: leave out vlm="):
        import_policy("lerobot", tmp_path, Robot(vlm=str(model)))
    with pytest.raises(UsageError, match="vlm=x: only policies of LeRobot's plugin"):
        import_main([str(tmp_path), "from=dp", f"out={tmp_path / 'run'}", "vlm=x"])


def test_what_is_built_beside_the_model_is_bounded(folder: Path, model: Path, tmp_path: Path) -> None:
    """Its own weights count for nothing, the adapters that the file holds do."""
    save_policy(folder, around(model), {})
    for change in ({"lora": 2**20}, {"path": str(model)}):
        changed(folder, lambda value, change=change: value["policy"]["vlm"].update(change))
        with pytest.raises(KinoiseError, match="do not belong together"):
            load_policy(folder, device="cpu")
    changed(folder, lambda value: value["policy"]["vlm"].update(lora=4))
    load_policy(folder, device="cpu")
    export_plugin(around(model), tmp_path)
    changed(tmp_path, lambda value: value["vlm"].update(lora=2**20))
    with pytest.raises(KinoiseError, match="do not belong together"):
        import_policy("lerobot", tmp_path, Robot(vlm=str(model)))


def test_a_models_own_size_is_not_counted(folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinoise.policies.bounded.BESIDE", 2**12)
    monkeypatch.setattr("kinoise.policies.bounded.TENSORS", 0)
    assert import_policy("lerobot", folder, Robot(vlm=str(model))).policy
