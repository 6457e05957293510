"""An evaluation in parts: `kinoise eval launcher=ray` plays the shards that shard=1/8, 2/8, ... play, and merges them.

Nothing here plays an episode. A part is the same command with `shard=` and a folder of its own, so it resumes, survives and
counts as it does without a launcher.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .. import envs
from ..config import UsageError
from ..files import write_json
from .latency import MEASURED
from .launch import check_launched, count_parts, open_launcher
from .launch.job import Job, run_all
from .ledger import LEDGER, write_ledger
from .merge import merge
from .presets import EPISODES, Wanted
from .protocol import Shard
from .result import evaluating
from .settings import Settings

LOGS = "logs"


def evaluate_parts(settings: Settings, argv: Sequence[str], checkpoint: Path, out: Path) -> dict[str, Any]:
    """Plays every part and writes what one process would have written; returns the result.

    Args:
        settings: with a launcher.
        argv: what they were read from.
        checkpoint: of the policy, the same for all parts even if training goes on meanwhile.

    Raises:
        UsageError: settings that parts can't have.
        KinoiseError: parts that failed, with what each said.
    """
    assert settings.launcher is not None
    episodes = check(settings)
    with evaluating(out), open_launcher(settings.launcher, settings.cluster, out) as launcher:
        asked = begun(out, settings.shards) if settings.resume else settings.shards
        count = count_parts(settings.launcher, launcher, asked)
        jobs = parts(settings, argv, checkpoint, out, min(count, episodes))
        folders = [folder(out, shard) for shard in shards(len(jobs))]
        (out / LOGS).mkdir(exist_ok=True)
        for path in () if settings.resume else folders:
            for name in (LEDGER, "result.json"):  # so that a part that is begun again doesn't take an older one's episodes
                (path / name).unlink(missing_ok=True)
        columns = (TextColumn("episodes"), BarColumn(), MofNCompleteColumn(), TextColumn(f"{len(jobs)} parts"))
        with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
            shown = bar.add_task("", total=episodes)
            try:
                run_all(launcher, jobs, lambda: bar.update(shown, completed=sum(map(played, folders))))
            except (KeyboardInterrupt, SystemExit):
                bar.console.print(f"What has ended is in {out}: the same command with resume=true goes on.", soft_wrap=True)
                raise
            bar.update(shown, completed=episodes)
        conditions, entries, result = merge(folders)
        write_ledger(out / LEDGER, conditions, entries)
        write_json(out / "result.json", result)
    return result


def check(settings: Settings) -> int:
    """How many episodes there will be. Raises UsageError for what the parts would refuse, before any is begun."""
    launcher = f"launcher={settings.launcher}"
    if settings.shard is not None:
        raise UsageError(f"shard={settings.shard} with {launcher}, which plays all shards itself: leave one of them out")
    if settings.until is not None:
        raise UsageError(
            f"until={settings.until} with {launcher}: no part knows of the others' episodes. Leave one of them out."
        )
    if settings.latency == MEASURED:
        raise UsageError(
            f"latency={MEASURED} with {launcher}: each part would draw from times of its own. Measure once, in an evaluation "
            f"with few episodes, and give its result.json as latency=FILE."
        )
    check_launched(settings.launcher, settings.shards)
    tasks = envs.tasks(settings.env)
    preset = Wanted(settings.protocol, settings.episodes).preset(tasks)
    each = settings.episodes or (EPISODES if preset is None else preset.episodes)
    if settings.shards is not None and settings.shards > each * len(tasks):
        raise UsageError(f"shards={settings.shards}: there are only {each * len(tasks)} episodes to share")
    return each * len(tasks)


def parts(settings: Settings, argv: Sequence[str], checkpoint: Path, out: Path, count: int) -> list[Job]:
    """The command of each part: what was asked for, but for where, and which episodes."""
    replaced = {"run", "out", "resume", "launcher", "shards", *(["workers"] if settings.workers is None else [])}
    kept = [item for item in argv if _key(item) not in replaced and not _key(item).startswith("cluster.")]
    workers = [f"workers={settings.cluster.cpus}"] if settings.workers is None else []
    jobs = []
    for shard in shards(count):
        place = folder(out, shard).absolute()
        common = ("eval", f"run={checkpoint.absolute()}", *kept, *workers, f"shard={shard}", f"out={place}")
        again = (*common, "resume=true")
        log = out.absolute() / LOGS / f"{place.name}.log"
        jobs.append(Job(f"part {shard}", again if settings.resume else common, log, again))
    return jobs


def shards(count: int) -> list[Shard]:
    return [Shard(number, count) for number in range(1, count + 1)]


def folder(out: Path, shard: Shard) -> Path:
    """Where a part's result goes."""
    return out / str(shard).replace("/", "-of-")


def begun(out: Path, asked: int | None = None) -> int | None:
    """Into how many parts an evaluation that goes on is to be cut: `asked`, or as many as before; None when there was none.

    Raises:
        UsageError: it was cut into different numbers of parts, or was one process's, whose episodes no part would take over.
    """
    found = {int(match[1]) for path in out.glob("*-of-*") if (match := re.fullmatch(r"\d+-of-(\d+)", path.name))}
    if not found and (out / LEDGER).exists():
        raise UsageError(f"{out} was begun by one process: go on without launcher=, or play all of it in another out=")
    if asked is None and len(found) > 1:
        raise UsageError(f"{out} holds parts of {' and of '.join(map(str, sorted(found)))}: say which to go on with, shards=")
    return asked or next(iter(found), None)


def played(part: Path) -> int:
    """Episodes of a part that are on the disk."""
    with suppress(OSError):
        return max(0, (part / LEDGER).read_bytes().count(b"\n") - 1)
    return 0


def _key(item: str) -> str:
    """The setting that an argument is about; a path alone is the run."""
    key, equals, _ = item.partition("=")
    return key if equals and "/" not in key else "run"
