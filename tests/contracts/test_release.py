"""`make release-check` sees what a wheel or a source distribution lacks, and what has no business in it."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from distribution import ABOUT, BESIDE, sdist_problems, sources, wheel_problems

ROOT = Path(__file__).resolve().parents[2]
NAME = "kinoise-0.1.0"
WHEEL = [f"kinoise/{name}" for name in sources(ROOT)] + [f"{NAME}.dist-info/{name}" for name in ABOUT]
SDIST = [*sources(ROOT), *BESIDE, "PKG-INFO", "kinoise.egg-info/SOURCES.txt"]


def wheel(folder: Path, names: list[str]) -> list[str]:
    path = folder / f"{NAME}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    return wheel_problems(path, ROOT)


def sdist(folder: Path, names: list[str]) -> list[str]:
    path = folder / f"{NAME}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(f"{NAME}/{name}"), io.BytesIO())
    return sdist_problems(path, ROOT)


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
