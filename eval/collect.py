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
from functools import partial
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
from ..files import claimed, disk_errors, output_directory, read_json, sync, write_json
from ..provenance import versions
from ..spec import KinoiseError
from .attempts import Ledger, make_attempts
from .demonstration import HOLD, Folder, Recipe
from .launch import HELP as LAUNCHER
from .launch import Cluster, check_launched, count_parts, open_launcher
from .launch.job import Job, run_all
from .protocol import Shard
from .pulse import TIMEOUT_S

LOGS, RECIPE = ".logs", "collect.json"
ABOUT = """Has scripted experts demonstrate tasks in a simulator and writes their successes to DATA. Until all are there they
are kept in DATA.partial: after an interruption the same command goes on where it was. With shard= only a part of them is made,
in DATA.partial; the same command without it then makes what is missing, and DATA. launcher= does all of that
(docs/scaling.md)."""

LIBRARIES = ("kinoise", "metaworld", "mujoco", "gym-pusht", "pymunk", "hf-libero", "robosuite", "ogbench", "numpy")


@dataclass
class Settings:
    """The whole command line of `kinoise collect`."""

    env: str = field(default=MISSING, metadata={"help": "what to demonstrate"})
    out: str = field(default=MISSING, metadata={"help": "where the data set goes"})
    episodes: int = field(default=50, metadata={"help": "successful demonstrations of each task"})
    seed: int = field(default=0, metadata={"help": "what initial states and noise are drawn from"})
    noise: float = field(default=0.1, metadata={"help": "standard deviation of the noise on executed actions"})
    disturb: float = field(
        default=0.0, metadata={"help": "chance at each step that the gripper slips or the hand is pushed for a moment"}
    )
    cameras: list[Any] = field(default_factory=list, metadata={"help": "images to record, such as cameras=[corner,gripperPOV]"})
    size: int = field(default=84, metadata={"help": "of these images, in pixels"})
    workers: int | None = field(default=None, metadata={"help": "processes; null: one for each core"})
    timeout: float = field(default=TIMEOUT_S, metadata={"help": "seconds after which a simulator that hangs is started again"})
    shard: str | None = field(default=None, metadata={"help": "such as 2/8: make the second of eight parts, in DATA.partial"})
    launcher: str | None = field(default=None, metadata={"help": LAUNCHER})
    shards: int | None = field(default=None, metadata={"help": "launcher's parts; null: as many as there is room for at once"})
    overwrite: bool = field(default=False, metadata={"help": "replace the data set at out="})
    cluster: Cluster = field(default_factory=Cluster)


def main(argv: Sequence[str]) -> int:
    """Collects, then prints per task what it took.

    Raises:
        UsageError: a key or a value that doesn't exist.
        KinoiseError: unknown task or camera, no OpenGL for images, tasks that see different things, `out`
            exists, an expert that nearly always fails, a simulator that nearly never plays on, disk full.
    """
    settings = parse("collect", Settings, argv, about=ABOUT, choices={"env": envs.choices, "cameras": envs.cameras})
    _check(settings)
    tasks, out = envs.tasks(settings.env), Path(settings.out)
    shard = None if settings.shard is None else Shard.parse(settings.shard)
    recipe = Recipe(settings.seed, settings.noise, tuple(map(str, settings.cameras)), settings.size, settings.disturb)
    if shard is None:
        _check_out(out, settings.overwrite)
    env = recipe.make(tasks[0])
    _require_one_spec(env, tasks, recipe)
    folder = Folder(out.with_name(f"{out.name}.partial"))
    if shard is not None:  # parts work beside each other, and beside the command that has them made
        return _made(settings, argv, tasks, shard, recipe, folder, env)
    with output_directory(folder.path), claimed(folder.path, "collects"):
        _check_out(out, settings.overwrite)  # once more: another process may just have made it
        return _made(settings, argv, tasks, shard, recipe, folder, env)


def _made(
    settings: Settings, argv: Sequence[str], tasks: Sequence[str], shard: Shard | None, recipe: Recipe, folder: Folder, env: Env
) -> int:
    out = Path(settings.out)
    prepare = partial(_prepare, folder.path, tasks, env.versions, recipe)
    prepare(overwrite=settings.overwrite, alone=shard is None)
    ledgers = [Ledger(task, settings.episodes, folder.found(task), shard) for task in tasks]

    begin = time.perf_counter()
    if settings.launcher is not None and any(ledger.wanted for ledger in ledgers):
        _launch(settings, argv, tasks, folder)
        prepare(overwrite=False, alone=False)  # what the parts left
        ledgers = [Ledger(task, settings.episodes, folder.found(task)) for task in tasks]
    try:
        steps = _collect(ledgers, recipe, folder, settings.workers or len(os.sched_getaffinity(0)), settings.timeout)
    except KeyboardInterrupt:
        print(f"What is finished is in {folder.path}: the same command goes on from there.")
        raise
    finally:
        for ledger in ledgers:
            for index, trouble in ledger.broken.items():
                print(f"attempt {index} at {ledger.task} could not be played to its end, and counts as failed: {trouble}")
    wall = time.perf_counter() - begin
    if shard is not None:
        count = sum(len(ledger.kept) for ledger in ledgers)
        print(
            f"part {shard}: {count} demonstrations are in {folder.path}. With all parts there: the same command without shard=."
        )
        return 0

    lengths: dict[str, list[int]] = {task: [] for task in tasks}
    store = folder.path / "store"
    shutil.rmtree(store, ignore_errors=True)
    made = {"collect": {**read_json(folder.path / RECIPE), "episodes": settings.episodes}}
    write_store(store, env.spec, _episodes(ledgers, folder, lengths), meta={**env.meta(), **made})
    env.close()
    _install(store, out)
    shutil.rmtree(folder.path, ignore_errors=True)
    speed = f"{steps} steps in {wall:.1f} s, {steps / wall:.0f} steps/s"
    _show(ledgers, lengths, speed if settings.launcher is None else f"{wall:.1f} s in all, {steps} steps of it here", out)
    return 0


def _check(settings: Settings) -> None:
    least = {"episodes": 1, "seed": 0, "size": 1, "workers": 1}
    for name, low in least.items():
        value = getattr(settings, name)
        if value is not None and value < low:
            raise UsageError(f"{name}={value}: expected at least {low}")
    if not (math.isfinite(settings.noise) and settings.noise >= 0):
        raise UsageError(f"noise={settings.noise}: expected a number of at least 0")
    if not settings.timeout > 0:
        raise UsageError(f"timeout={settings.timeout}: expected seconds, above 0")
    if not 0 <= settings.disturb <= 1:
        raise UsageError(f"disturb={settings.disturb}: expected a chance from 0 to 1")
    if not Path(settings.out).name:
        raise UsageError(f"out={settings.out}: expected the path of a folder that is to be made")
    if settings.shard is not None and (settings.overwrite or settings.launcher is not None):
        raise UsageError(f"shard={settings.shard} makes a part alone, and no data set: leave out overwrite= and launcher=")
    check_launched(settings.launcher, settings.shards)


def _launch(settings: Settings, argv: Sequence[str], tasks: Sequence[str], folder: Folder) -> None:
    """Has all parts made; what is then still missing, for experts fail here and there, is little."""
    assert settings.launcher is not None
    logs = folder.path.absolute() / LOGS
    logs.mkdir(exist_ok=True)
    total = settings.episodes * len(tasks)
    with open_launcher(settings.launcher, settings.cluster, logs) as launcher, _progress() as bar:
        count = count_parts(settings.launcher, launcher, settings.shards)
        shown = bar.add_task("", total=total)

        def tick() -> None:
            bar.update(shown, completed=min(total, sum(list(folder.found(task).values()).count(True) for task in tasks)))

        run_all(launcher, parts(settings, argv, logs, min(count, settings.episodes)), tick)


def parts(settings: Settings, argv: Sequence[str], logs: Path, count: int) -> list[Job]:
    """The command of each part: what was asked for, but for which attempts."""
    own = ("overwrite", "launcher", "shards", "shard", "out", "cluster.")
    kept = [item for item in argv if not item.startswith(tuple(key if key.endswith(".") else f"{key}=" for key in own))]
    workers = [f"workers={settings.cluster.cpus}"] if settings.workers is None else []
    common = ("collect", *kept, *workers, f"out={Path(settings.out).absolute()}")
    jobs = []
    for number in range(1, count + 1):
        command = (*common, f"shard={number}/{count}")
        jobs.append(Job(f"part {number}/{count}", command, logs / f"part-{number}-of-{count}.log", command))
    return jobs


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


def _prepare(
    folder: Path, tasks: Sequence[str], elsewhere: Mapping[str, str], recipe: Recipe, *, overwrite: bool, alone: bool
) -> None:
    """Makes sure that what is in `folder` came, and will come, from the same recipe.

    Args:
        elsewhere: see `Env.versions`.
        alone: no other process writes there, so that a folder without attempts may be begun anew.
    """
    found = versions()
    now = {**asdict(recipe), "hold": HOLD, "versions": {name: found[name] for name in LIBRARIES if name in found}}
    beside = {"mappings": envs.described(tasks), "elsewhere": dict(elsewhere)}
    now |= {key: item for key, item in beside.items() if item}
    now["cameras"] = list(recipe.cameras)
    file = folder / RECIPE
    if file.exists():
        before, begun = read_json(file), any(folder.glob("*/[0-9]*"))
        if before != now and (begun or not alone) and not overwrite:
            changed = ", ".join(f"{key} was {before.get(key)}, is {now[key]}" for key in now if before.get(key) != now[key])
            raise KinoiseError(f"{folder} was begun differently ({changed}). Use the same settings, or remove it.")
        if before != now:  # but the folder itself, which is claimed
            for item in folder.iterdir():
                shutil.rmtree(item) if item.is_dir() else item.unlink()
    elif folder.exists() and any(not item.name.startswith(".") for item in folder.iterdir()):
        raise KinoiseError(f"{folder} is in the way, and not from kinoise collect. Choose another out=, or remove it.")
    write_json(file, now)


def _collect(ledgers: Sequence[Ledger], recipe: Recipe, folder: Folder, workers: int, timeout: float) -> int:
    """Makes the attempts that are missing, behind a progress bar; the steps that they took."""
    done = sum(len(ledger.kept) for ledger in ledgers)
    steps = 0
    with _progress() as bar:
        shown = bar.add_task("", total=done + sum(len(ledger.wanted) for ledger in ledgers), completed=done)
        for taken in make_attempts(ledgers, recipe, folder, workers, timeout):
            steps += taken
            failed = sum(list(ledger.found.values()).count(False) for ledger in ledgers)
            bar.update(
                shown,
                completed=sum(len(ledger.kept) for ledger in ledgers),
                description=f"{failed} attempts failed" if failed else "",
            )
    return steps


def _progress() -> Progress:
    columns = (TextColumn("demonstrations"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    return Progress(*columns, *times, console=Console(stderr=True), speed_estimate_period=120)


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
