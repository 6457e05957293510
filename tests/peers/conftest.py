"""Peers' environments, which several files' tests ask: each is made once for each checkout, by the first that asks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from kinoise.files import claimed

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".peers"
ROBOMIMIC = ("robomimic==0.3.0", "six==1.17.0", "termcolor==3.3.0", "torchvision==0.28.0")
"""Without what they ask for, which is here, or builds a renderer; the rest of robomimic is not imported."""


@pytest.fixture(scope="session")
def lerobot_python() -> Path:
    """The Python of LeRobot's environment, as the benchmarks make it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(ROOT)])
        from benchmarks.peer import Absent
        from benchmarks.peers import lerobot_environment
    try:
        return lerobot_environment(PEERS)
    except Absent as error:
        pytest.skip(f"no environment with LeRobot: {error}")


@pytest.fixture(scope="session")
def lerobot(lerobot_python: Path) -> Callable[..., None]:
    """Runs a script with that Python, given its path and arguments: a command, a folder, a file, maybe further such pairs."""

    def run(script: Path, command: str, folder: Path, file: Path, *more: Path) -> None:
        offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(file.parent / "hf"), "OMP_NUM_THREADS": "1", "SVT_LOG": "1"}
        words = [str(lerobot_python), str(script), command, *map(str, (folder, file, *more))]
        done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False, env=os.environ | offline)
        assert done.returncode == 0, done.stderr[-2000:]

    return run


@pytest.fixture(scope="session")
def packages() -> Callable[[str, Sequence[str]], Path]:
    """Makes a folder of packages, given whose they are and their versions: in seconds, since torch and h5py are ours."""

    def made(name: str, needs: Sequence[str]) -> Path:
        folder = PEERS / "-".join((name, *needs)).replace("==", "-")
        PEERS.mkdir(exist_ok=True)
        with claimed(PEERS, f"makes the folder of {name}'s packages", lambda: None):
            if not folder.exists():
                with tempfile.TemporaryDirectory(dir=PEERS) as new:
                    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
                    done = subprocess.run([*pip, "--target", f"{new}/it", *needs], capture_output=True, text=True, check=False)
                    if done.returncode:
                        pytest.skip(f"{name}'s packages can't be had: {' '.join(done.stderr.split())[-400:]}")
                    shutil.move(f"{new}/it", folder)
        return folder

    return made


@pytest.fixture(scope="session")
def robomimic(packages: Callable[[str, Sequence[str]], Path]) -> Path:
    """A folder that makes robomimic importable."""
    return packages("robomimic", ROBOMIMIC)
