"""`kinoise train` killed anywhere, stopped and resumed: the same run in the end, and no other run in its place."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import killed_runs
import pytest
from kinoise import files
from kinoise.policies import Policy
from kinoise.spec import KinoiseError
from kinoise.train.checkpoint import RunDirectory
from kinoise.train.config import TrainConfig
from short_runs import records, same_weights, train, untimed, write_data


def test_killed_anywhere_and_resumed_it_is_the_same_run(data: Path, tmp_path: Path) -> None:
    """SIGKILL at points spread over all updates, renames, links and removals of a run; see `killed_runs.drive`."""
    subprocess.run([sys.executable, killed_runs.__file__, str(data), str(tmp_path)], check=True, timeout=300)


def test_finished_run_says_so(whole: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (whole / "train.json").stat().st_mtime_ns
    assert train(data, whole, "resume=true") == 0
    assert "nothing left" in " ".join(capsys.readouterr().err.split())
    assert (whole / "train.json").stat().st_mtime_ns == before


def test_a_run_may_grow(whole: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "grown"
    shutil.copytree(whole, out, symlinks=True)
    assert train(data, out, "train.steps=8", "resume=true") == 0
    assert [item["step"] for item in records(out)] == list(range(1, 9))
    assert (out / "checkpoints" / "last").readlink() == Path("8")


def test_data_may_move(whole: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "moved")
    assert train(tmp_path / "moved", whole, "resume=true") == 0


def test_resume_without_a_run_starts_one(whole: Path, data: Path, tmp_path: Path) -> None:
    assert train(data, tmp_path / "new", "resume=true") == 0
    assert same_weights(whole / "checkpoints" / "6", tmp_path / "new" / "checkpoints" / "6")


def test_changed_settings_are_all_listed(whole: Path, data: Path) -> None:
    with pytest.raises(KinoiseError, match=r"seed: 0 -> 1.*train.steps: 6 -> 5|train.steps: 6 -> 5.*seed: 0 -> 1") as caught:
        train(data, whole, "resume=true", "seed=1", "train.lr=0.1", "policy.chunk=5", "train.steps=5", "train.log_every=3")
    assert f"train.lr: {TrainConfig().lr} -> 0.1" in str(caught.value)
    assert "policy.chunk: 4 -> 5" in str(caught.value)
    assert "log_every" not in str(caught.value)


def test_changed_data_are_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(KinoiseError, match="data"):
        train(write_data(tmp_path / "longer", episodes=4), whole, "resume=true")


def test_existing_out_needs_resume(whole: Path, data: Path) -> None:
    with pytest.raises(KinoiseError, match="resume=true"):
        train(data, whole)


def test_out_that_is_no_run_is_left_alone(data: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(KinoiseError, match="no run"):
        train(data, tmp_path, "resume=true")
    assert [item.name for item in tmp_path.iterdir()] == ["thesis.txt"]


def test_only_the_torchrun_that_began_a_run_goes_on_with_it_unasked(
    whole: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(KinoiseError, match="resume=true"):
        train(data, whole)
    assert train(data, tmp_path / "run") == 0
    assert train(data, tmp_path / "run", "train.steps=7") == 0


def test_two_processes_cannot_train_one_run(data: Path, tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "busy", keep=1).claimed(resume=False), pytest.raises(KinoiseError, match="another process"):
        train(data, tmp_path / "busy", "resume=true")


def test_full_disk_keeps_the_last_checkpoint(whole: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, sync = tmp_path / "run", files.sync

    def full(path: Path) -> None:
        if ".4." in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(path)

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(KinoiseError, match="disk is full"):
        train(data, out)
    assert sorted(item.name for item in (out / "checkpoints").iterdir()) == ["2", "last"]
    monkeypatch.undo()
    assert train(data, out, "resume=true") == 0
    assert same_weights(whole / "checkpoints" / "6", out / "checkpoints" / "6")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_run_goes_on(
    number: int, code: int, whole: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kinoise.train.loop import Trainer

    update, before = Trainer.update, signal.getsignal(number)

    def interrupted(trainer: Trainer) -> None:
        update(trainer)
        if trainer.step == 3:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Trainer, "update", interrupted)
    out = tmp_path / "run"
    assert train(data, out) == code
    assert (out / "checkpoints" / "last").readlink() == Path("3")
    assert signal.getsignal(number) is before
    monkeypatch.undo()
    assert train(data, out, "resume=true") == 0
    assert same_weights(whole / "checkpoints" / "6", out / "checkpoints" / "6")
    assert untimed(out) == untimed(whole)


def test_periodic_evaluation_watches_and_survives_a_kill(
    whole: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kinoise.eval import evaluate as module

    asked: list[tuple[str, str]] = []

    def evaluate(policy: Policy, env: str, *, checkpoint: Path, out: Path, **_: Any) -> dict[str, Any]:
        asked.append((env, checkpoint.name))
        if len(asked) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        result = {"success": {"rate": 0.5, "low": 0.1, "high": 0.9}}
        files.write_json(out / "result.json", result)
        return result

    monkeypatch.setattr(module, "evaluate", evaluate)
    command = (data, tmp_path / "run", "env=metaworld/mt10", "train.eval_every=3")
    assert train(*command) == 143
    assert train(*command, "resume=true") == 0
    assert asked == [("metaworld/mt10", step) for step in ("3", "6", "6")]
    assert sorted(item.name for item in (tmp_path / "run" / "evaluations").iterdir()) == ["3", "6"]
    assert same_weights(whole / "checkpoints" / "6", tmp_path / "run" / "checkpoints" / "6")


def test_nothing_but_what_kinoise_left_is_removed(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run", keep=1)
    with run.claimed(resume=False):
        run.metrics.write_text("{}\n")
    mine, theirs = run.checkpoints / ".4.old", run.checkpoints / ".gitattributes"
    mine.mkdir()
    theirs.write_text("*.safetensors filter=lfs\n")
    with run.claimed(resume=True):
        assert not mine.exists()
    assert theirs.exists()
