"""`kinoise collect env=ENV out=DATA`: demonstrations by scripted experts.

Every attempt depends on the seed, the task and its index alone, and the first successes in the order of their indices are
kept: the same command gives the same data, whatever the number of workers and however often it was interrupted.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from .. import envs
from ..config import UsageError, parse
from ..data.base import Episode
from ..data.native import NativeStore, write_store
from ..envs.base import Env
from ..files import disk_errors, read_json, sync, write_json
from ..provenance import versions
from ..spec import KinoiseError
from .attempts import Ledger, make_attempts
from .demonstration import HOLD, Folder, Recipe

ABOUT = """Has scripted experts demonstrate tasks in a simulator and writes their successes to DATA. Until all are there they
are kept in DATA.partial: after an interruption the same command goes on where it was."""

LIBRARIES = ("kinoise", "metaworld", "mujoco", "gym-pusht", "pymunk", "hf-libero", "robosuite", "ogbench", "numpy")


@dataclass
class Settings:
    """The whole command line of `kinoise collect`."""

    env: str = field(default=MISSING, metadata={"help": "what to demonstrate"})
    out: str = field(default=MISSING, metadata={"help": "where the data set goes"})
    episodes: int = field(default=50, metadata={"help": "successful demonstrations of each task"})
    seed: int = field(default=0, metadata={"help": "what initial states and noise are drawn from"})
    noise: float = field(default=0.1, metadata={"help": "standard deviation of the noise on executed actions"})
    cameras: list[Any] = field(default_factory=list, metadata={"help": "images to record, such as cameras=[corner,gripperPOV]"})
    size: int = field(default=84, metadata={"help": "of these images, in pixels"})
    workers: int | None = field(default=None, metadata={"help": "processes; null: one for each core"})
    overwrite: bool = field(default=False, metadata={"help": "replace the data set at out="})


def main(argv: Sequence[str]) -> int:
    """Collects, then prints per task what it took.

    Raises:
        UsageError: a key or a value that doesn't exist.
        KinoiseError: unknown task or camera, no OpenGL for images, tasks that see different things, `out`
            exists, an expert that nearly always fails, disk full.
    """
    settings = parse("collect", Settings, argv, about=ABOUT, choices={"env": envs.choices, "cameras": envs.cameras})
    _check(settings)
    tasks, out = envs.tasks(settings.env), Path(settings.out)
    recipe = Recipe(settings.seed, settings.noise, tuple(str(camera) for camera in settings.cameras), settings.size)
    _check_out(out, settings.overwrite)
    env = recipe.make(tasks[0])
    _require_one_spec(env, tasks, recipe)
    folder = Folder(out.with_name(f"{out.name}.partial"))
    _prepare(folder.path, tasks, env.versions, recipe, settings.overwrite)
    ledgers = [Ledger(task, settings.episodes, folder.found(task)) for task in tasks]

    begin = time.perf_counter()
    try:
        steps = _collect(ledgers, recipe, folder, settings.workers or len(os.sched_getaffinity(0)))
    except KeyboardInterrupt:
        print(f"What is finished is in {folder.path}: the same command goes on from there.")
        raise
    wall = time.perf_counter() - begin

    lengths: dict[str, list[int]] = {task: [] for task in tasks}
    store = folder.path / "store"
    shutil.rmtree(store, ignore_errors=True)
    write_store(store, env.spec, _episodes(ledgers, folder, lengths), meta=env.meta())
    env.close()
    _install(store, out)
    shutil.rmtree(folder.path, ignore_errors=True)
    _show(ledgers, lengths, f"{steps} steps in {wall:.1f} s, {steps / wall:.0f} steps/s", out)
    return 0


def _check(settings: Settings) -> None:
    least = {"episodes": 1, "seed": 0, "size": 1, "workers": 1}
    for name, low in least.items():
        value = getattr(settings, name)
        if value is not None and value < low:
            raise UsageError(f"{name}={value}: expected at least {low}")
    if not (math.isfinite(settings.noise) and settings.noise >= 0):
        raise UsageError(f"noise={settings.noise}: expected a number of at least 0")
    if not Path(settings.out).name:
        raise UsageError(f"out={settings.out}: expected the path of a folder that is to be made")


def _require_one_spec(first: Env, tasks: Sequence[str], recipe: Recipe) -> None:
    """Raises SpecMismatch, before any work, when the tasks don't fit into one data set."""
    for task in envs.firsts(tasks)[1:]:
        with closing(recipe.make(task)) as other:
            first.spec.require(other.spec, (first.task, f"{task} (collect it by itself)"))


def _check_out(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise KinoiseError(f"{out} exists already. Choose another out=, or replace it with overwrite=true.")
    if not NativeStore.recognises(out):
        raise KinoiseError(f"{out} is not a data set, so overwrite=true leaves it alone. Choose another out=, or remove it.")


def _prepare(partial: Path, tasks: Sequence[str], elsewhere: Mapping[str, str], recipe: Recipe, overwrite: bool) -> None:
    """Makes sure that what is in `partial` came, and will come, from the same recipe; `elsewhere`: see `Env.versions`."""
    found = versions()
    now = {**asdict(recipe), "hold": HOLD, "versions": {name: found[name] for name in LIBRARIES if name in found}}
    beside = {"mappings": envs.described(tasks), "elsewhere": dict(elsewhere)}
    now |= {key: item for key, item in beside.items() if item}
    now["cameras"] = list(recipe.cameras)
    file = partial / "collect.json"
    if file.exists():
        before, begun = read_json(file), any(partial.glob("*/[0-9]*"))
        if before != now and begun and not overwrite:
            changed = ", ".join(f"{key} was {before.get(key)}, is {now[key]}" for key in now if before.get(key) != now[key])
            raise KinoiseError(f"{partial} was begun differently ({changed}). Use the same settings, or remove it.")
        if before != now:
            shutil.rmtree(partial)
    elif partial.exists() and any(not item.name.startswith(".") for item in partial.iterdir()):
        raise KinoiseError(f"{partial} is in the way, and not from kinoise collect. Choose another out=, or remove it.")
    write_json(file, now)


def _collect(ledgers: Sequence[Ledger], recipe: Recipe, folder: Folder, workers: int) -> int:
    """Makes the attempts that are missing, behind a progress bar; the steps that they took."""
    done = sum(len(ledger.kept) for ledger in ledgers)
    steps = 0
    columns = (TextColumn("demonstrations"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, *times, console=Console(stderr=True), speed_estimate_period=120) as bar:
        shown = bar.add_task("", total=done + sum(len(ledger.wanted) for ledger in ledgers), completed=done)
        for taken in make_attempts(ledgers, recipe, folder, workers):
            steps += taken
            failed = sum(list(ledger.found.values()).count(False) for ledger in ledgers)
            bar.update(
                shown,
                completed=sum(len(ledger.kept) for ledger in ledgers),
                description=f"{failed} attempts failed" if failed else "",
            )
    return steps


def _episodes(ledgers: Sequence[Ledger], folder: Folder, lengths: dict[str, list[int]]) -> Iterator[Episode]:
    """What goes into the store, task by task; notes the lengths."""
    for ledger in ledgers:
        for index, failures in ledger.kept.items():
            episode = folder.read(ledger.task, index)
            episode.info["failures"] = failures
            lengths[ledger.task].append(episode.info["steps"])
            yield episode


def _install(store: Path, out: Path) -> None:
    """Moves a finished store to `out`; a store that it replaces stays beside it until then."""
    with disk_errors(out):
        if out.exists():
            replaced = store.with_name("replaced")
            shutil.rmtree(replaced, ignore_errors=True)
            os.rename(out, replaced)
        os.rename(store, out)
        sync(out.parent)


def _show(ledgers: Sequence[Ledger], lengths: dict[str, list[int]], speed: str, out: Path) -> None:
    table = Table("task", *(Column(name, justify="right") for name in ("episodes", "failures", "mean steps")))
    for ledger in ledgers:
        mean = sum(lengths[ledger.task]) / len(lengths[ledger.task])
        table.add_row(ledger.task, str(len(ledger.kept)), str(sum(ledger.kept.values())), f"{mean:.1f}")
    table.add_section()
    every = [length for items in lengths.values() for length in items]
    failures = sum(sum(ledger.kept.values()) for ledger in ledgers)
    table.add_row("all", str(len(every)), str(failures), f"{sum(every) / len(every):.1f}")
    console = Console()
    console.print(table)
    console.print(f"{speed}; written to {out}", highlight=False, soft_wrap=True)
