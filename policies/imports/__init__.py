"""Models that people already have: other projects' checkpoints as policies of ours, and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .diffusion_policy import import_dp
from .lerobot import export_lerobot, import_lerobot
from .mode import import_mode
from .plugin import export_plugin
from .robot import Imported, Robot

SOURCES: dict[str, Callable[[Path, Robot], Imported]] = {"lerobot": import_lerobot, "dp": import_dp, "mode": import_mode}
"""Importers by the name of what wrote the checkpoint. A new one is a file and a line here."""


def import_policy(source: str, path: Path, robot: Robot) -> Imported:
    """See the importers. Raises KinoiseError for what can't be imported."""
    return SOURCES[source](path, robot)


__all__ = ["SOURCES", "Imported", "Robot", "export_lerobot", "export_plugin", "import_policy"]
