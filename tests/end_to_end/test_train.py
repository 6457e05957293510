"""`kinoise train` from data to checkpoints: killed anywhere, stopped, resumed, misused.

Run as a script, this file is the process that forks the runs to be killed: see `drive`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from kinoise import files
from kinoise.data import Episode, write_store
from kinoise.policies import Policy, choices
from kinoise.policies.checkpoint import load_policy
from kinoise.spec import Feature, KinoiseError, Spec
from kinoise.train import trackers
from kinoise.train.__main__ import emulated, main
from kinoise.train.augment import AugmentConfig
from kinoise.train.checkpoint import RunDirectory
from kinoise.train.config import TrainConfig
from safetensors.torch import load_file

TINY = ["policy=diffusion", "policy.network.width=16", "policy.network.depth=1", "policy.network.heads=2"]
TINY += ["policy.chunk=4", "policy.execute=2"]
SHORT = ["train.steps=6", "train.batch_size=8", "train.save_every=2", "train.log_every=1", "train.warmup=2", "train.keep=2"]
QUIET = ["train.tensorboard=false"]
STRIDE = 11
RECIPE = {"noise": 0.3, "disturb": 0.01}
CHECKPOINT = ["model.safetensors", "ema.safetensors", "config.json", "training_state/optimizer.safetensors"]


def write_data(path: Path, *, episodes: int = 3, nan: bool = False) -> Path:
    gen = np.random.default_rng(0)
    spec = Spec({"state": Feature((5,))}, Feature((2,), low=(-1.0,) * 2, high=(1.0,) * 2), rate=10.0, language=False)

    def arrays(steps: int) -> dict[str, np.ndarray]:
        state, action = gen.normal(size=(steps, 5)), gen.uniform(-1, 1, size=(steps, 2))
        if nan:
            state[3, 1] = np.nan
        return {"state": state.astype(np.float32), "action": action.astype(np.float32)}

    write_store(path, spec, [Episode(arrays(steps)) for steps in range(6, 6 + episodes)], meta={"collect": RECIPE})
    return path


def train(data: Path, out: Path, *overrides: str) -> int:
    return main([*TINY, *SHORT, *QUIET, f"data={data}", f"out={out}", *overrides])


def same_weights(one: Path, other: Path) -> bool:
    names = CHECKPOINT
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def untimed(out: Path) -> list[dict[str, Any]]:
    timed = ("steps_per_s", "elapsed_s", "data_wait")
    return [{key: value for key, value in item.items() if key not in timed} for item in records(out)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("train") / "data")


@pytest.fixture(scope="module")
def whole(data: Path) -> Path:
    """A run that nothing disturbed."""
    out = data.parent / "whole"
    assert train(data, out) == 0
    return out


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


def test_killed_anywhere_and_resumed_it_is_the_same_run(data: Path, tmp_path: Path) -> None:
    """SIGKILL at points spread over all updates, renames, links and removals of a run; see `drive`."""
    subprocess.run([sys.executable, __file__, str(data), str(tmp_path)], check=True, timeout=300)


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


def test_full_disk_under_tensorboard_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(threading, "excepthook", said.append)
    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
    with pytest.raises(KinoiseError, match="disk is full"):
        trackers.TensorBoard(tmp_path, 0)
    assert not said


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
        return SimpleNamespace(log=lambda values, step: logged.append((step, values["loss"])), finish=lambda: None)

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
        return SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: None)

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


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    nested = {"augment": [f"augment.{item.name}" for item in fields(AugmentConfig)]}
    names = [name for item in fields(TrainConfig) for name in nested.get(item.name, [item.name])]
    assert all(f"train.{name} " in shown for name in names)
    assert all(f"  {name}" in shown for name in choices())


def drive(data: Path, base: Path) -> None:
    """Forks runs out of one process that has everything imported, kills each at another point, resumes it, compares.

    The points are the updates and every call that makes, moves, links or removes a file.
    """
    torch.set_num_threads(1)
    reference, count = base / "reference", base / "count"
    assert train(data, reference) == 0
    assert forked(lambda: counted(data, base / "counted", count)) == 0
    points = int(count.read_text())
    assert points > 40, points
    for point in range(0, points, STRIDE):
        out = base / f"killed_{point}"
        assert forked(lambda out=out, point=point: killed(data, out, point)) == -signal.SIGKILL, point
        assert forked(lambda out=out: train(data, out, "resume=true")) == 0, point
        assert same_weights(reference / "checkpoints" / "6", out / "checkpoints" / "6"), point
        assert untimed(reference) == untimed(out), point
        names = sorted(item.name for item in [*out.iterdir(), *(out / "checkpoints").iterdir()])
        assert names == ["4", "6", "checkpoints", "last", "metrics.jsonl", "train.json"], (point, names)


def forked(work: Callable[[], int]) -> int:
    """The exit code of `work` in a process of its own, negative when a signal ended it."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(work())
        finally:
            os._exit(70)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def counted(data: Path, out: Path, count: Path) -> int:
    calls = watch(lambda call: None)
    code = train(data, out)
    count.write_text(str(len(calls)))
    return code


def killed(data: Path, out: Path, point: int) -> int:
    watch(lambda call: os.kill(os.getpid(), signal.SIGKILL) if call == point else None)
    return train(data, out)


def watch(before: Callable[[int], None]) -> list[str]:
    """Calls `before(n)` ahead of the nth call that matters; returns the growing list of their names."""
    from kinoise.train.loop import Trainer

    calls: list[str] = []

    def wrap(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            before(len(calls))
            calls.append(name)
            return call(*args, **kwargs)

        return wrapped

    places = [(os, name) for name in ("rename", "replace", "symlink", "unlink", "rmdir", "mkdir", "fsync")]
    for owner, name in [*places, (Trainer, "update")]:
        setattr(owner, name, wrap(name, getattr(owner, name)))
    return calls


if __name__ == "__main__":
    drive(Path(sys.argv[1]), Path(sys.argv[2]))
