"""Where `kinoise train` logs to: each update once, also after a resume, and a tracker that fails is one error."""

from __future__ import annotations

import errno
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kinoise.spec import KinoiseError
from kinoise.train import trackers
from short_runs import train


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_under_tensorboard_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []
    monkeypatch.setattr(threading, "excepthook", said.append)
    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
    with pytest.raises(KinoiseError, match="disk is full"):
        trackers.TensorBoard(tmp_path, 0)
    assert not said


def test_a_tensorboard_that_does_not_open_leaves_other_threads_errors_as_they_were(tmp_path: Path) -> None:
    before = threading.excepthook
    (tmp_path / "tensorboard").touch()
    with pytest.raises(KinoiseError):
        trackers.TensorBoard(tmp_path / "tensorboard", 0)
    assert threading.excepthook is before


class Faked:
    """Stands for wandb and trackio at once; does what it is told to and notes how it was ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **failing: Exception) -> None:
        self.ended: list[tuple[str, int | None]] = []
        for name in ("wandb", "trackio"):
            monkeypatch.setitem(sys.modules, name, SimpleNamespace(init=self._init(name, failing.get(name))))
        self.log_error: Exception | None = None

    def _init(self, name: str, error: Exception | None) -> Any:
        def finish(exit_code: int | None = None) -> None:
            self.ended.append((name, exit_code))

        def log(*_: Any, **__: Any) -> None:
            if self.log_error is not None:
                raise self.log_error

        def init(**_: Any) -> SimpleNamespace:
            if error is not None:
                raise error
            return SimpleNamespace(log=log, finish=finish)

        return init


ALL = ("train.tensorboard=true", "train.wandb=project", "train.trackio=project")


def test_one_that_can_not_be_closed_keeps_none_of_the_others_open(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, before = Faked(monkeypatch), threading.excepthook
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.close", full)
    closed: list[bool] = []
    monkeypatch.setattr(trackers.JsonLines, "close", lambda self, failed=False: closed.append(failed))
    with pytest.raises(KinoiseError, match=r"disk is full.*tensorboard"):
        train(data, tmp_path / "run", *ALL)
    assert fake.ended == [("trackio", None), ("wandb", 0)]
    assert closed == [True]
    assert threading.excepthook is before


def test_an_error_while_closing_hides_not_what_ended_the_run_and_wandb_is_told_of_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Faked(monkeypatch)
    fake.log_error = KinoiseError("the loss is nan")
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.close", full)
    with pytest.raises(KinoiseError, match="the loss is nan"):
        train(data, tmp_path / "run", *ALL)
    assert fake.ended == [("trackio", None), ("wandb", 1)]


def test_those_before_one_that_does_not_open_are_closed(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, before = Faked(monkeypatch, trackio=ValueError("no space of that name")), threading.excepthook
    with pytest.raises(KinoiseError, match="no space of that name"):
        train(data, tmp_path / "run", *ALL)
    assert fake.ended == [("wandb", 1)]
    assert threading.excepthook is before
    assert not (tmp_path / "run").exists()


def test_tensorboard_forgets_what_a_resumed_run_repeats(data: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = trackers.TensorBoard(tmp_path, 0)
    for step in (1, 2, 3):
        first.log(step, {"loss": 10.0 * step})
    first.close()
    resumed = trackers.TensorBoard(tmp_path, 1)
    resumed.log(2, {"loss": 21.0})
    resumed.close()
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(item.step, item.value) for item in events] == [(1, 10.0), (2, 21.0)]


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    lines = trackers.JsonLines(path, 2)
    lines.log(3, {"loss": 0.5})
    lines.close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "loss": 0.5}\n'


def test_wandb_gets_the_same_run_after_a_resume(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, Any]] = []
    logged: list[tuple[int, float]] = []

    def init(**arguments: Any) -> SimpleNamespace:
        started.append(arguments)
        return SimpleNamespace(log=lambda values, step: logged.append((step, values["loss"])), finish=lambda **_: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    assert train(data, tmp_path / "run", "train.wandb=project") == 0
    assert train(data, tmp_path / "run", "train.wandb=project", "train.steps=7", "resume=true") == 0
    assert started[0]["project"] == "project"
    assert started[0]["id"] == started[1]["id"]
    assert [step for step, _ in logged] == [1, 2, 3, 4, 5, 6, 7]


def test_a_tracker_that_does_not_begin_leaves_nothing(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise ValueError("no API key: call wandb.login()")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    with pytest.raises(KinoiseError, match=r"train\.wandb: no API key"):
        train(data, tmp_path / "run", "train.wandb=project")
    assert not (tmp_path / "run").exists()


def test_trackio_gets_the_same_run_after_a_resume_and_nothing_twice(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, Any]] = []
    logged: list[tuple[int, dict[str, float]]] = []

    def init(**arguments: Any) -> SimpleNamespace:
        started.append(arguments)
        return SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda **_: None)

    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=init))
    out = tmp_path / "run"
    assert train(data, out, "train.trackio=project") == 0
    shutil.rmtree(out / "checkpoints" / "6")  # as if it had been killed after the checkpoint of update 4
    assert train(data, out, "train.trackio=project", "train.steps=7", "resume=true") == 0
    assert started[0]["project"] == "project"
    assert started[0]["name"] == started[1]["name"]
    assert started[0]["name"].startswith("run-")
    assert [step for step, _ in logged] == [1, 2, 3, 4, 5, 6, 7]
    assert all("loss" in values for _, values in logged)
    trackers.Trackio(out, "project", {}).log(7, {"success": 0.5, "loss": 1.0})
    assert logged[-1] == (7, {"success": 0.5})
