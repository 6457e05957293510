"""`benchmarks.lerobot_path`: what is made once, what a stopped step leaves, and the interval. Nothing is trained here."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from kinoise.config import UsageError
from kinoise.files import read_json
from kinoise.spec import KinoiseError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT)])
    from benchmarks import lerobot_path

    return lerobot_path


def test_newcombes_own_example(path) -> None:
    """56 of 70 against 48 of 80: method 10 in table II of the article gives 0.0524 to 0.3339."""
    found = path.independent([index < 56 for index in range(70)], [index < 48 for index in range(80)])
    assert [round(found[key], 4) for key in ("value", "low", "high")] == [0.2, 0.0524, 0.3339]


def test_shares_are_pooled_over_seeds(path) -> None:
    found = path.figures({"lerobot": [[True, False], [True, True]], "kinoise": [[True, True], [False, False]]})
    assert found["lerobot"]["success"]["rate"] == 0.75
    assert found["lerobot"]["by_seed"] == [0.5, 1.0]
    assert found["difference"]["value"] == 0.25
    assert found["equal"]
    assert not path.figures({"lerobot": [[True] * 50], "kinoise": [[False] * 50]})["equal"]


def test_a_step_is_carried_out_once_and_its_failure_is_told(path, tmp_path: Path) -> None:
    python = Path(sys.executable)
    path.carry_out(path.Step("collect", tmp_path, ["no-such-command"]), tmp_path, python)  # what it makes is there
    with pytest.raises(KinoiseError, match="unknown command 'no-such-command'"):
        path.carry_out(path.Step("collect", tmp_path / "data", ["no-such-command"]), tmp_path, python)
    with pytest.raises(KinoiseError, match="is not there"):
        path.carry_out(path.Step("collect", tmp_path / "data", ["--version"]), tmp_path, python)
    path.carry_out(path.Step("train", tmp_path / "trained.json", ["--version"]), tmp_path, python)
    assert (tmp_path / "trained.json").exists()
    assert list(read_json(tmp_path / "seconds.json")) == ["collect", "train"]  # what failed took its time, too


def test_lerobots_training_goes_on_from_its_last_checkpoint(path, tmp_path: Path) -> None:
    settings, out = path.Settings(work=str(tmp_path)), tmp_path / "lerobot_run"

    def words() -> list[str]:
        return next(step.words for step in path.steps_of(settings, tmp_path) if step.name == "lerobot-train")

    def fail() -> None:
        with pytest.raises(KinoiseError):
            path.carry_out(
                path.Step("lerobot-train", out / "it", ["no-such-command", *words()]), tmp_path, Path(sys.executable)
            )

    out.mkdir()
    assert "--policy.type=kinoise_mode" in words()
    fail()
    assert not out.exists()  # LeRobot refuses a folder that is there
    last = out / "checkpoints" / "last" / "pretrained_model" / "train_config.json"
    last.parent.mkdir(parents=True)
    last.write_text("{}")
    assert words() == ["train", f"--config_path={last}", "--resume=true"]
    fail()
    assert last.exists()


def test_a_folder_that_was_begun_with_other_settings_is_refused(path, monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"task": "reach"}')
    monkeypatch.setattr(path, "path_environment", lambda folder: pytest.fail("nothing is to be installed"))
    with pytest.raises(UsageError, match="go on with these"):
        path.main([f"work={tmp_path}", "task=drawer-close"])


def test_larger_pictures_are_of_the_same_demonstrations(path, tmp_path: Path) -> None:
    steps = {step.name: step for step in path.steps_of(path.Settings(work=str(tmp_path), drawn=252), tmp_path)}
    own, larger = steps["collect"].words, steps["collect larger"].words
    assert [item for item in own if not item.startswith(("size=", "out="))] == [
        item for item in larger if not item.startswith(("size=", "out="))
    ]
    assert "size=252" in larger
    assert str(tmp_path / "drawn") in steps["convert"].words
