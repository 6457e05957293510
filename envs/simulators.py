"""`kinoise simulator install NAME`: a simulator in a Python environment of its own, for ids that begin with `remote/NAME/`."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from ..config import UsageError, parse
from ..files import disk_errors, write_json
from ..spec import KinoiseError
from .remote.place import MARK, RECIPES, folder, installed
from .remote.process import Process

NEEDED = ("gymnasium==1.4.0", "jaxtyping==0.3.11", "msgpack==1.2.4", "numpy>=1.26")
"""What kinoise's end of the wire needs in each."""

CHECK_S = 120.0
ABOUT = """kinoise simulator install NAME makes a Python environment with a simulator, for env=remote/NAME/ENV; kinoise
simulator list shows those there are. They lie in ~/.local/share/kinoise/simulators, or where KINOISE_SIMULATORS says."""


@dataclass
class Settings:
    """The command line of `kinoise simulator install`."""

    name: str = field(default=MISSING, metadata={"help": f"{', '.join(RECIPES)}, or another with packages="})
    packages: str | None = field(default=None, metadata={"help": "instead of the recipe's, as in 'gym-pusht==0.1.8 pymunk<7'"})
    python: str = field(default=sys.executable, metadata={"help": "what makes the environment; 3.11 or newer"})


def main(argv: Sequence[str]) -> int:
    """Installs an environment, or lists those there are.

    Raises:
        UsageError: no such command or name.
        KinoiseError: pip failed, with its last words; the environment doesn't answer.
    """
    verb, *rest = argv or ["--help"]
    if verb == "list":
        _show()
        return 0
    installing = verb == "install"
    settings = parse(
        "simulator install" if installing else "simulator",
        Settings,
        rest if installing else argv or ["--help"],
        positional="name",
        about=ABOUT,
    )
    if not installing:
        raise UsageError(f"'{verb}': expected kinoise simulator install NAME, or kinoise simulator list")
    packages = tuple((settings.packages or "").split()) or RECIPES.get(settings.name, ())
    if not packages:
        raise UsageError(f"no recipe for '{settings.name}': there are {', '.join(RECIPES)}; or give packages=")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", settings.name):
        raise UsageError(f"name={settings.name}: expected letters, digits, '.', '_' and '-'")
    path = folder() / settings.name
    found = install(path, packages, settings.python)
    versions = ", ".join(f"{name} {found[name]}" for name in _named(packages) if name in found)
    print(f"{path}: {versions}. Use it as env=remote/{settings.name}/ENV, or in a mapping file as python: {settings.name}")
    return 0


def install(path: Path, packages: Sequence[str], python: str = sys.executable) -> dict[str, str]:
    """Makes, or makes anew, the environment at `path`; the versions of its packages.

    Raises KinoiseError when that fails; what is there then is not taken for installed.
    """
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        (path / MARK).unlink(missing_ok=True)
    print(f"making {path} with {', '.join(packages)}: this takes minutes", file=sys.stderr, flush=True)
    _run([python, "-m", "venv", "--clear", str(path)], "making the environment")
    inside = path / "bin" / "python"
    pip = [str(inside), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, *packages, *NEEDED], f"installing {', '.join(packages)}")
    process = Process(str(inside))
    try:
        found: dict[str, str] = process.ask({"call": "versions"}, CHECK_S)["versions"]
    except KinoiseError as error:
        raise KinoiseError(f"{path} was made, but kinoise doesn't run in it: {error}") from error
    finally:
        process.close()
    write_json(path / MARK, {"packages": list(packages), "versions": found})
    return found


def _named(packages: Sequence[str]) -> list[str]:
    return [re.split(r"[<>=!~\[; ]", item, maxsplit=1)[0] for item in packages]


def _show() -> None:
    there = installed()
    for name in sorted({*RECIPES, *there}):
        state = "installed" if name in there else "not installed"
        print(f"{name:<20} {state:<14} {', '.join(there[name]['packages'] if name in there else RECIPES[name])}")
    print(f"in {folder()}")


def _run(command: Sequence[str], what: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise KinoiseError(f"{what} failed: {command[0]} can't be started: {error.strerror}. Give python=.") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise KinoiseError(f"{what} failed (exit code {done.returncode}): {' '.join(said[-6:]) or 'it said nothing'}")
