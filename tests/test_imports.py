"""The house rules that hold over the syntax trees: who may import whom, and what `import kinoise` may load."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BASE = {"spec", "files", "config", "provenance", ""}
ALLOWED = {
    "spec": set(),
    "files": {"spec"},
    "wire": {"spec"},
    "config": {"spec"},
    "provenance": {""},
    "cli": BASE,
    "policies.core": {"policies.core", "spec"},
    "policies": {"policies", "policies.core", *BASE},
    "data": {"data", *BASE},
    "envs": {"envs", "wire", *BASE},
    "deploy": {"deploy", "wire", "policies", "policies.core", "envs", *BASE},
    "eval": {"eval", "wire", "data", "envs", "policies", "policies.core", "deploy", *BASE},
    "train": {"train", "data", "policies", "policies.core", "eval", *BASE},
}
SOURCES = sorted(
    path
    for path in ROOT.rglob("*.py")
    if path.relative_to(ROOT).parts[0] in {"policies", "envs", "data", "train", "eval", "deploy"} or path.parent == ROOT
)


def room(module: tuple[str, ...]) -> str:
    """The room that a module belongs to: `policies.core`, a top folder or a top module; "" for the package itself."""
    return ".".join(module[:2]) if module[:2] == ("policies", "core") else module[0] if module else ""


def imports(path: Path) -> set[str]:
    """The rooms of ours that a file imports, at any depth of its code."""
    package = path.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {"absolute kinoise" for item in node.names if item.name.split(".")[0] == "kinoise"}
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level == 0:
            found |= {"absolute kinoise"} if (node.module or "").split(".")[0] == "kinoise" else set()
            continue
        anchor = package[: len(package) - node.level + 1]
        target = (*anchor, *(node.module.split(".") if node.module else ()))
        names = [target] if node.module else [(*target, item.name) for item in node.names]
        found |= {room(name) if is_ours(name) else room(target) for name in names}
    return found


def is_ours(module: tuple[str, ...]) -> bool:
    place = ROOT.joinpath(*module)
    return place.is_dir() or place.with_suffix(".py").is_file()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_file_imports_only_the_rooms_it_may(path: Path) -> None:
    module = path.relative_to(ROOT).with_suffix("").parts
    here = "" if module == ("__init__",) else room(module)
    allowed = {here, *ALLOWED.get(here, set())}
    assert imports(path) <= allowed, f"{here or 'kinoise'} may import {sorted(allowed)}"


def test_the_packages_listed_are_the_folders_there_are() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {path.parent for path in SOURCES}
    assert listed == {".".join(("kinoise", *folder.relative_to(ROOT).parts)) for folder in folders}


@pytest.mark.parametrize("statement", ["import kinoise", "import kinoise.cli, kinoise.spec, kinoise.config"])
def test_importing_loads_neither_torch_nor_a_simulator(statement: str) -> None:
    heavy = "{'torch', 'mujoco', 'transformers', 'zarr', 'hydra'}"
    code = f"{statement}; import sys; loaded = {heavy} & sys.modules.keys(); sys.exit(str(loaded) if loaded else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
