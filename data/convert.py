"""`kinoise convert SRC DST`: demonstrations from one file format into another."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING
from rich.console import Console
from rich.progress import Progress

from ..config import UsageError, new_names, parse
from ..spec import KinoiseError
from . import FORMATS, Reading, open_store
from .base import Episode, EpisodeStore, episode
from .mixture import Mixture

ABOUT = """Writes the demonstrations of SRC to DST in another format, an episode at a time. What SRC's reader left out and what
DST's format can't hold is listed. DST must not exist, and appears only when all of it is on disk."""

SUFFIXES = {".hdf5": "robomimic", ".h5": "robomimic", ".zarr": "zarr", ".zip": "zarr"}
"""The format to write when DST ends so and none is named."""
TARGETS = tuple(name for name in FORMATS if name != Mixture.format)
"""What can be written; a mixture holds no data of its own."""


@dataclass
class Settings:
    """The whole command line of `kinoise convert`."""

    src: str = field(default=MISSING, metadata={"help": "the data set to read"})
    dst: str = field(default=MISSING, metadata={"help": "the data set to write"})
    format: str | None = field(default=None, metadata={"help": "of DST, where its ending doesn't say"})
    source: str | None = field(default=None, metadata={"help": "the format of SRC, when it is not recognised"})
    filter: str | None = field(default=None, metadata={"help": "read only this subset (robomimic's mask)"})
    rate: float | None = field(default=None, metadata={"help": "control steps per second, where SRC doesn't say or is wrong"})
    control: str | None = field(default=None, metadata={"help": "what an action means: absolute, relative, delta; likewise"})
    gripper: list[int] | None = field(default=None, metadata={"help": "the gripper's dimensions in the action; likewise"})
    rename: Any = field(default=None, metadata={"help": "observations' new names, rename={img:image.top}"})
    keys: list[str] | None = field(default=None, metadata={"help": "observations to keep, by their new names; null: all"})
    video: bool | None = field(default=None, metadata={"help": "images as videos, where DST has a choice"})


def main(argv: Sequence[str]) -> int:
    """Converts, then prints what was carried and what was not.

    Raises:
        UsageError: a setting that doesn't exist or doesn't fit; no format for DST.
        KinoiseError: SRC can't be read, DST exists or can't be written. Nothing is left behind then.
    """
    settings = parse(
        "convert",
        Settings,
        named(argv, "convert", ("src", "dst")),
        positional="src dst",
        about=ABOUT,
        choices={"format": lambda: " | ".join(TARGETS), "source": lambda: " | ".join(FORMATS)},
    )
    source, target = Path(settings.src), Path(settings.dst)
    name = _target(settings, target)
    member = FORMATS[name]
    options = {} if settings.video is None else {"video": settings.video}
    if options and "video" not in inspect.signature(member.write).parameters:
        raise UsageError(f"video={str(settings.video).lower()}: format={name} has no such choice. Leave it out.")
    if target.exists():
        raise KinoiseError(f"{target} exists already. Choose another DST, or remove it first.")
    if Path(os.path.realpath(target)).is_relative_to(os.path.realpath(source)):
        raise UsageError(f"{target} would lie inside of {source}. Choose another DST.")
    store = open_store(source, _reading(settings))
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        lost = member.write(target, store.spec, _episodes(store, progress), store.meta, **options)  # type: ignore[call-arg]
    _show(store, target, name, lost)
    return 0


def named(argv: Sequence[str], command: str, names: Sequence[str]) -> list[str]:
    """`argv` with the settings `names` written out: arguments that are no `key=value` stand for them, in that order.

    Raises UsageError for more of them than names.
    """
    rest, result = list(names), []
    for item in argv:
        key, equals, _ = item.partition("=")
        if (equals and "/" not in key) or item.startswith("-"):
            result.append(item)
        elif rest:
            result.append(f"{rest.pop(0)}={item}")
        else:
            raise UsageError(f"'{item}': expected key=value after {' '.join(names).upper()}. See kinoise {command} --help.")
    return result


def _target(settings: Settings, target: Path) -> str:
    """The name of the format to write."""
    name = settings.format or SUFFIXES.get(target.suffix.lower())
    if name is None:
        raise UsageError(f"{target}: say in what format to write it, format= one of {', '.join(TARGETS)}.")
    if name == Mixture.format:
        raise UsageError(f"format={name}: a mixture only lists data sets and holds none. Take one of {', '.join(TARGETS)}.")
    for key, value, known in (("format", name, TARGETS), ("source", settings.source, tuple(FORMATS))):
        if value is not None and value not in known:
            raise UsageError(f"{key}={value}: the formats are {', '.join(known)}.")
    return name


def _reading(settings: Settings) -> Reading:
    return Reading(
        format=settings.source,
        filter=settings.filter,
        rate=settings.rate,
        control=settings.control,
        gripper=None if settings.gripper is None else tuple(settings.gripper),
        rename=new_names(settings.rename),
        keys=None if settings.keys is None else tuple(settings.keys),
    )


def _episodes(store: EpisodeStore, progress: Progress) -> Iterator[Episode]:
    task = progress.add_task("converting", total=int(store.ends[-1]))
    for index in range(len(store.ends)):
        yield episode(store, index)
        progress.update(task, completed=int(store.ends[index]))


def _show(store: EpisodeStore, target: Path, name: str, lost: Sequence[str]) -> None:
    beside = f" and beside them {', '.join(store.extras)}" if store.extras else ""
    print(f"{target}: {name}, {len(store.ends):,} episodes, {int(store.ends[-1]):,} steps of {', '.join(store.keys)}{beside}")
    for line in store.notes if isinstance(store, Mixture) else ():
        print(f"note: {line}")
    for line in store.dropped:
        print(f"not read from {store.path} ({store.format}): {line}")
    for line in lost:
        print(f"not held by {name}: {line}")
