"""Where environments are: the part of an id that names a place, and the interpreters that are installed for simulators."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ...files import read_json
from ...spec import KinoiseError

PREFIX = "remote/"
RECIPES: dict[str, tuple[str, ...]] = {
    "gymnasium-robotics": ("gymnasium-robotics==1.4.2", "mujoco==3.3.0"),
    "ogbench": ("ogbench==1.2.2", "mujoco==3.3.0", "dm_control==1.0.28"),
    "robosuite-1.4": ("robosuite==1.4.0", "mujoco==3.3.0"),
    "robosuite-1.5": ("robosuite==1.5.1", "mujoco==3.3.0"),
}
"""What `kinoise simulator install` asks pip for, by the name of the environment."""
MARK = "kinoise.json"
"""In an installed simulator's folder: what was installed. It is written last."""


def split(env: str) -> tuple[str, str]:
    """An id's place, with the slash after it, and the rest: `("remote/ogbench/", "ogbench/scene")`; the place is "" for here.

    Raises KinoiseError where the rest is missing.
    """
    scheme, mark, _ = env.partition("://")
    head = f"{scheme}{mark}" if mark else PREFIX if env.startswith(PREFIX) else ""
    if not head:
        return "", env
    name, slash, rest = env.removeprefix(head).partition("/")
    if not (name and rest):
        raise KinoiseError(
            f"env '{env}': expected {head}{'HOST:PORT' if mark else 'SIMULATOR'}/ENV, such as {head}{name}/pusht"
        )
    if mark and scheme not in ("ws", "wss"):
        raise KinoiseError(f"env '{env}': expected ws://HOST:PORT/ENV, came the scheme {scheme}")
    return f"{head}{name}{slash}", rest


def folder() -> Path:
    """Where `kinoise simulator install` puts environments: KINOISE_SIMULATORS, or kinoise/simulators in the user's data."""
    given = os.environ.get("KINOISE_SIMULATORS")
    home = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return Path(given).expanduser() if given else home / "kinoise" / "simulators"


def installed() -> dict[str, dict[str, Any]]:
    """By name, the `packages` asked for and the `versions` in each environment that was installed to its end."""
    return {path.parent.name: read_json(path) for path in sorted(folder().glob(f"*/{MARK}"))}


def interpreter(name: str) -> str:
    """The Python of an installed environment. Raises KinoiseError when there is none of that name."""
    path = folder() / name
    if not (path / MARK).is_file():
        known = ", ".join(installed()) or "none"
        run = f"kinoise simulator install {name}"
        if name in RECIPES:
            remedy = f"Run: {run}"
        else:
            remedy = f"There are recipes for {', '.join(RECIPES)}; for another, name its packages: {run} packages='...'"
        raise KinoiseError(f"the simulator '{name}' is not installed in {folder()} (there: {known}). {remedy}")
    return str(path / "bin" / "python")
