"""The main job by the console commands alone: collect, train, kill, resume, evaluate, control, report."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from kinoise.data import open_store
from kinoise.files import sha256

KINOISE = str(Path(sys.executable).with_name("kinoise"))
TASK = "metaworld/reach"
TINY = ["policy=mode", "policy.network.width=16", "policy.network.depth=1", "policy.network.heads=2"]
SHORT = ["train.steps=100", "train.batch_size=8", "train.save_every=20", "train.warmup=2"]


def kinoise(*arguments: str) -> str:
    """What the command says; it has to succeed."""
    done = subprocess.run([KINOISE, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def killed(command: list[str], run: Path) -> None:
    """Starts the command and kills it once it has saved something."""
    process = subprocess.Popen([KINOISE, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (run / "checkpoints" / "last").exists() and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == -signal.SIGKILL, said


def test_from_demonstrations_to_a_report(tmp_path: Path) -> None:
    data, run, whole, alone = (tmp_path / name for name in ("data", "run", "whole", "alone"))
    kinoise("collect", f"env={TASK}", "episodes=2", "workers=1", f"out={data}")
    assert len(open_store(data).ends) == 2
    assert json.loads(kinoise("inspect", str(data), "json=true"))["episodes"] == 2

    train = ["train", *TINY, *SHORT, f"data={data}"]
    killed([*train, f"out={run}"], run)
    assert not (run / "train.json").exists(), "the run was over before it was killed"
    kinoise(*train, f"out={run}", "resume=true")
    kinoise(*train, f"out={whole}")
    for file in ("model.safetensors", "ema.safetensors", "training_state/optimizer.safetensors"):
        resumed, undisturbed = ((path / "checkpoints" / "last" / file).read_bytes() for path in (run, whole))
        assert resumed == undisturbed, file

    # A checkpoint alone is enough: no run around it, no state of its training, no data.
    shutil.copytree(run / "checkpoints" / "last", alone, ignore=shutil.ignore_patterns("training_state"))
    shutil.rmtree(data)
    kinoise("eval", str(alone), f"env={TASK}", "episodes=1", "horizon=20", "workers=1", f"out={run / 'eval'}")
    kinoise("control", str(alone), f"env={TASK}", "rate=20", "seconds=1", f"out={run / 'control'}")
    result, loop = (json.loads((run / path).read_text()) for path in ("eval/result.json", "control/control.json"))
    for account in (result, loop):
        assert account["policy"]["name"] == "mode"
        assert account["policy"]["sha256"] == sha256(alone / "ema.safetensors")
    assert (result["success"]["n"], result["success"]["errors"]) == (1, 0)
    assert loop["plans"] >= 1

    kinoise("report", str(run))
    page = (run / "report.html").read_text()
    assert result["protocol"]["hash"] in page
    assert "did not use this run's newest checkpoint" not in page
