"""`make release-check` sees what a wheel or a source distribution lacks, and what has no business in it."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from check import exit_code, verdict
from distribution import (
    ABOUT,
    BESIDE,
    PLUGIN_ABOUT,
    PLUGIN_BESIDE,
    plugin_sdist_problems,
    plugin_sources,
    plugin_wheel_problems,
    sdist_problems,
    sources,
    wheel_problems,
)

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "plugins" / "lerobot_policy_kinoise"
NAME, PLUGINS = "kinoise-0.1.0", "lerobot_policy_kinoise-0.1.0"
WHEEL = [f"kinoise/{name}" for name in sources(ROOT)] + [f"{NAME}.dist-info/{name}" for name in ABOUT]
SDIST = [*sources(ROOT), *BESIDE, "PKG-INFO", "kinoise.egg-info/SOURCES.txt"]


def packed(folder: Path, names: list[str], name: str = NAME) -> Path:
    path = folder / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for item in names:
            archive.writestr(item, "")
    return path


def archived(folder: Path, names: list[str], name: str = NAME) -> Path:
    path = folder / f"{name}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for item in names:
            archive.addfile(tarfile.TarInfo(f"{name}/{item}"), io.BytesIO())
    return path


def wheel(folder: Path, names: list[str]) -> list[str]:
    return wheel_problems(packed(folder, names), ROOT)


def sdist(folder: Path, names: list[str]) -> list[str]:
    return sdist_problems(archived(folder, names), ROOT)


def test_a_whole_one_has_no_problem(tmp_path: Path) -> None:
    assert wheel(tmp_path, WHEEL) == []
    assert sdist(tmp_path, SDIST) == []


@pytest.mark.parametrize(
    "name", ["py.typed", "spec.py", "policies/presets/ddim.yaml", "envs/libero/assets.tsv", "data/inspection/page.html"]
)
def test_what_is_missing_is_named(name: str, tmp_path: Path) -> None:
    assert name in sources(ROOT)
    assert wheel(tmp_path, [item for item in WHEEL if item != f"kinoise/{name}"]) == [f"kinoise/{name} is missing"]
    assert sdist(tmp_path, [item for item in SDIST if item != name]) == [f"{name} is missing"]


def test_the_licence_is_asked_for(tmp_path: Path) -> None:
    licence = f"{NAME}.dist-info/licenses/LICENSE"
    assert wheel(tmp_path, [item for item in WHEEL if item != licence]) == [f"{licence} is missing"]


@pytest.mark.parametrize(
    "name", ["kinoise/tests/test_imports.py", "data/__init__.py", "kinoise/.ci/run", "kinoise/eval/__pycache__/a.pyc"]
)
def test_what_has_no_business_in_it_is_named(name: str, tmp_path: Path) -> None:
    assert wheel(tmp_path, [*WHEEL, name]) == [f"{name} is a stray"]


@pytest.mark.parametrize("name", ["py.typed", "modeling_kinoise.py"])
def test_what_the_plugin_lacks_is_named(name: str, tmp_path: Path) -> None:
    lost, licence = f"{PLUGIN.name}/{name}", f"{PLUGINS}.dist-info/licenses/LICENSE"
    whole = plugin_sources(PLUGIN)
    inside = [*whole, *(f"{PLUGINS}.dist-info/{item}" for item in PLUGIN_ABOUT)]
    assert plugin_wheel_problems(packed(tmp_path, inside, PLUGINS), PLUGIN) == []
    left = [item for item in inside if item not in (lost, licence)]
    said = [f"{lost} is missing", f"{licence} is missing"]
    assert sorted(plugin_wheel_problems(packed(tmp_path, left, PLUGINS), PLUGIN)) == sorted(said)
    beside = [*whole, *PLUGIN_BESIDE, "PKG-INFO"]
    assert plugin_sdist_problems(archived(tmp_path, [*beside, "tests/conftest.py"], PLUGINS), PLUGIN) == [
        "tests/conftest.py is a stray"
    ]


def test_the_plugins_licence_is_the_projects() -> None:
    assert (PLUGIN / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_what_was_skipped_is_said_and_fails_where_that_is_asked_for() -> None:
    assert [exit_code(*case) for case in ((0, 0, True), (0, 1, False), (0, 1, True), (1, 0, False))] == [0, 0, 1, 1]
    assert verdict(0, 0, False) == "this can be released"
    assert "2 skipped" in verdict(0, 2, False)
    assert "1 of the checks failed" in verdict(1, 2, False)
