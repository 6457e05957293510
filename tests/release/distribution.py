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
PLUGIN_ABOUT = ("METADATA", "WHEEL", "RECORD", "top_level.txt", "licenses/LICENSE")
PLUGIN_BESIDE = ("LICENSE", "README.md", "pyproject.toml")


def sources(root: Path) -> set[str]:
    """The package's files, from the root: modules, and what lies beside them in a room."""
    rooms = (path for room in ROOMS for path in (root / room).rglob("*") if path.is_file())
    inside = {path.relative_to(root) for path in rooms}
    kept = {path for path in inside if "__pycache__" not in path.parts and not any(part.startswith(".") for part in path.parts)}
    return {path.as_posix() for path in kept} | {path.name for path in root.glob("*.py")} | {"py.typed"}


def wheel_problems(wheel: Path, root: Path) -> list[str]:
    """A line for each file that is missing, or that has no business there."""
    wanted = {f"kinoise/{name}" for name in sources(root)} | {f"{about(wheel)}/{name}" for name in ABOUT}
    return differences(wanted, wheel_names(wheel))


def sdist_problems(sdist: Path, root: Path) -> list[str]:
    """Likewise; what setuptools adds of its own is allowed."""
    return differences(sources(root) | set(BESIDE), sdist_names(sdist, "kinoise"))


def plugin_sources(plugin: Path) -> set[str]:
    """The LeRobot plugin's files, from the folder of its distribution."""
    package = plugin / plugin.name
    return {path.relative_to(plugin).as_posix() for path in package.glob("*") if path.is_file()} | {f"{plugin.name}/py.typed"}


def plugin_wheel_problems(wheel: Path, plugin: Path) -> list[str]:
    """As `wheel_problems`."""
    return differences(plugin_sources(plugin) | {f"{about(wheel)}/{name}" for name in PLUGIN_ABOUT}, wheel_names(wheel))


def plugin_sdist_problems(sdist: Path, plugin: Path) -> list[str]:
    """As `sdist_problems`."""
    return differences(plugin_sources(plugin) | set(PLUGIN_BESIDE), sdist_names(sdist, plugin.name))


def wheel_names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def sdist_names(sdist: Path, package: str) -> set[str]:
    """Without what setuptools adds of its own."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    return {name for name in names if name not in MADE and not name.startswith(f"{package}.egg-info/")}


def about(wheel: Path) -> str:
    """The wheel's folder of metadata."""
    return f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"


def differences(wanted: Iterable[str], found: Iterable[str]) -> list[str]:
    wanted, found = set(wanted), set(found)
    return [f"{name} is missing" for name in sorted(wanted - found)] + [f"{name} is a stray" for name in sorted(found - wanted)]
