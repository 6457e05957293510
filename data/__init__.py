"""Demonstrations: stores in the registered file formats, training windows, statistics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..spec import KinoiseError
from .base import AS_IT_IS, Episode, EpisodeStore, Format, Reading, Report, refuse
from .lerobot import LeRobotStore
from .mixture import Mixture
from .native import NativeStore, write_store
from .replay import ReplayStore
from .robomimic import RobomimicStore
from .view import view

FORMATS: dict[str, type[Format]] = {
    "kinoise": NativeStore,
    "zarr": ReplayStore,
    "robomimic": RobomimicStore,
    "lerobot": LeRobotStore,
    "mixture": Mixture,
}


def open_store(path: Path | str, reading: Reading = AS_IT_IS, report: Report = refuse) -> EpisodeStore:
    """The demonstrations at `path`, in the format that `reading` names or else the first that recognises it.

    Metadata alone is read. Raises KinoiseError when there is nothing at `path`, no format fits, or the store is damaged; what
    `report` takes is said there instead, where reading can go on.
    """
    path = Path(path)
    if reading.format is not None and reading.format not in FORMATS:
        raise KinoiseError(f"format '{reading.format}' is unknown; the formats are {', '.join(FORMATS)}.")
    if not path.exists():
        raise KinoiseError(f"{path} does not exist. Check the path, or record demonstrations with kinoise collect out={path}.")
    if reading.format is not None:
        return view(FORMATS[reading.format](path, reading, report), reading)
    for name, member in FORMATS.items():
        if member.recognises(path):
            return view(member(path, replace(reading, format=name), report), reading)
    raise KinoiseError(
        f"{path} is no data set in a format that kinoise reads ({', '.join(FORMATS)}). "
        f"{_inside(path) or 'Check the path, or record demonstrations with kinoise collect.'}"
    )


def _inside(path: Path) -> str:
    """What to do with a folder of data sets; nothing to say of another."""
    items = sorted(path.iterdir()) if path.is_dir() else []
    found = [item.name for item in items if any(member.recognises(item) for member in FORMATS.values())]
    if not found:
        return ""
    shown = ", ".join(found[:3]) + (f", ... ({len(found)} in all)" if len(found) > 3 else "")
    return f"It holds {shown}: give one of them, or a .yaml file that lists them (docs/data.md, Mixtures)."


__all__ = ["FORMATS", "Episode", "EpisodeStore", "Reading", "open_store", "write_store"]
