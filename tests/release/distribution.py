"""What a wheel and a source distribution have to hold, told from the source tree and not from pyproject.toml's lists."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOMS = ("policies", "envs", "data", "train", "eval", "deploy")
BESIDE = ("CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", "constraints.txt", "pyproject.toml")
"""What belongs into a source distribution beside the package."""
ABOUT = ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE")
MADE = ("PKG-INFO", "setup.cfg", "MANIFEST.in")
"""What setuptools writes into a source distribution, and what it was told by."""


def sources(root: Path) -> set[str]:
    """The package's files, from the root: modules, and what lies beside them in a room."""
    rooms = (path for room in ROOMS for path in (root / room).rglob("*") if path.is_file())
    inside = {path.relative_to(root) for path in rooms}
    kept = {path for path in inside if "__pycache__" not in path.parts and not any(part.startswith(".") for part in path.parts)}
    return {path.as_posix() for path in kept} | {path.name for path in root.glob("*.py")} | {"py.typed"}


def wheel_problems(wheel: Path, root: Path) -> list[str]:
    """A line for each file that is missing, or that has no business there."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    about = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
    return differences({f"kinoise/{name}" for name in sources(root)} | {f"{about}/{name}" for name in ABOUT}, names)


def sdist_problems(sdist: Path, root: Path) -> list[str]:
    """Likewise; what setuptools adds of its own is allowed."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    kept = {name for name in names if name not in MADE and not name.startswith("kinoise.egg-info/")}
    return differences(sources(root) | set(BESIDE), kept)


def differences(wanted: Iterable[str], found: Iterable[str]) -> list[str]:
    wanted, found = set(wanted), set(found)
    return [f"{name} is missing" for name in sorted(wanted - found)] + [f"{name} is a stray" for name in sorted(found - wanted)]
