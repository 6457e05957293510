"""What a mapping file names in Python: Gymnasium's environment, modules; with errors that name file and key."""

from __future__ import annotations

import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium

from .mapping import EnvMap
from .rendering import choose_opengl

INSTALL = f"Install it for {sys.executable}, or name another interpreter in 'python:'."
"""The remedy; also in a process with another interpreter, which it then names."""


def build(mapping: EnvMap, drawn: bool) -> gymnasium.Env[Any, Any]:
    """The environment, without Gymnasium's own limit on steps. Raises KinoiseError when it can't be had."""
    choose_opengl()
    if mapping.module is not None:
        imported(mapping, "gymnasium.import", mapping.module)
    kwargs = dict(mapping.kwargs)
    if drawn:
        kwargs.setdefault("render_mode", "rgb_array")
    try:
        return gymnasium.make(mapping.id, max_episode_steps=-1, disable_env_checker=True, **kwargs)
    except gymnasium.error.UnregisteredEnv as error:
        remedy = f"not by {mapping.module}" if mapping.module else "name the module that registers it in gymnasium.import"
        raise mapping.error("gymnasium.id", f"{mapping.id} is not registered: {remedy}. Gymnasium: {_line(error)}") from error
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        raise mapping.error("gymnasium.id", f"{mapping.id} lacks a package: {_line(error)}. {INSTALL}") from error
    except Exception as error:
        raise mapping.error("gymnasium", f"{mapping.id} can't be made with kwargs {kwargs}: {described(error)}") from error


def imported(mapping: EnvMap, key: str, module: str) -> Any:
    """A module, also from the file's folder."""
    folder = str(Path(mapping.task).parent.absolute())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise mapping.error(key, f"the module {error.name} is not installed. {INSTALL}") from error
    except Exception as error:
        raise mapping.error(key, f"importing {module} failed: {described(error)}") from error


def described(error: BaseException) -> str:
    """An exception on one line, with the place it came from."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {_line(error)} ({Path(place.filename).name}, line {place.lineno})"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]
