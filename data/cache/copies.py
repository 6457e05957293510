"""Decoded copies: whatever format demonstrations come in, training reads a native store, made of them once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ...files import claimed, disk_errors, read_json, sync
from ...spec import KinoiseError, Spec, Stats
from ..base import EpisodeStore
from ..mixture.store import Mixture
from ..native import CHUNK_BYTES, NativeStore
from ..subset import Subset
from ..view import View
from .build import STATS_FILE, build
from .content import content, identities, title
from .spread import Unfinished

VERSION = 1
"""Another one makes new copies: to be raised when what a copy holds changes."""
MEMORY_FILE = "contents.json"


class CachedStore(NativeStore):
    """A decoded copy. Its statistics were taken when it was made."""

    def __init__(self, path: Path, dropped: tuple[str, ...]) -> None:
        """Raises KinoiseError for a copy that was damaged since."""
        try:
            super().__init__(path)
            value = read_json(path / STATS_FILE)
            self._stats = {key: Stats.from_json(value[key]) for key in self.keys}
        except (KinoiseError, KeyError, TypeError) as error:
            raise KinoiseError(f"the decoded copy {path} is damaged ({error}). Remove it: it will be made again.") from error
        self.dropped = dropped


def mapped(
    store: EpisodeStore, folder: Path | str, *, workers: int | None = None, console: Console | None = None
) -> EpisodeStore:
    """The same demonstrations as a native store, whose files are mapped into memory; a native store as it is.

    Anything else is decoded once, by several processes, into `folder/<name>-<hash>`, which holds only those observations that
    `store` shows. The hash is of the source's files and of how they are read; as long as it stays the same, the copy is used
    again, wherever the source lies. A build that was killed goes on where it was; two at once wait for each other. Views,
    subsets and mixtures stay what they are, over copies of what is under them.

    Args:
        workers: processes that decode; None is as many as this process may use cores.
        console: told where the copy is, and shown the progress.

    Raises:
        KinoiseError: an episode that can't be read or isn't what the store says of it (no copy is left then), too little
            space, a full disk, a copy that was damaged, a source that changes meanwhile, a `folder` inside it.
    """
    console = console or Console(stderr=True)
    if isinstance(store, NativeStore):
        return store
    if isinstance(store, Mixture):
        return store.replaced([mapped(item, folder, workers=workers, console=console) for item in store.members])
    if isinstance(store, Subset):
        return Subset(mapped(store.store, folder, workers=workers, console=console), store.numbers)
    workers = workers or len(os.sched_getaffinity(0))
    if isinstance(store, View):
        under = store.store
        if isinstance(under, (NativeStore, Mixture, Subset, View)):
            return View(mapped(under, folder, workers=workers, console=console), store.spec, store.theirs)
        keys = {store.theirs.get(key, key) for key in store.keys}
        return View(_copy(under, keys, Path(folder), workers, console), store.spec, store.theirs)
    return _copy(store, store.keys, Path(folder), workers, console)


def _copy(store: EpisodeStore, keys: Collection[str], folder: Path, workers: int, console: Console) -> CachedStore:
    spec, source = store.spec.select(keys), store.path
    if folder.resolve().is_relative_to(source.resolve()):
        raise KinoiseError(
            f"decoded copies would go to {folder}, within the data set {source}, which they would make another one of each "
            f"time. Put them elsewhere: out= beside the data set, or cache=FOLDER."
        )
    before = identities(source)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _bar(console) as bar:
            digest = content(source, folder / MEMORY_FILE, workers=workers, advance=partial(bar, "reading the source"))
        name = f"{title(source)}-{_hash(digest, store, spec)[:16]}"
        path, made = folder / name, False
        while not path.exists():
            with _building(folder / f".{name}.building", path, console) as place:
                if not place or path.exists():
                    continue
                episodes = f"{len(store.ends)} episodes of {source}"
                console.print(f"decoding {episodes} into {path}", highlight=False, soft_wrap=True)
                with _bar(console) as bar:
                    build(store, spec, place, workers, bar)
                if identities(source) != before and content(source, folder / MEMORY_FILE, workers=workers) != digest:
                    raise KinoiseError(
                        f"{source} changed while it was decoded. Wait until it is written, then run the command again."
                    )
                os.rename(place, path)
                sync(folder)
                made = True
    if not made:
        console.print(f"using the decoded copy {path}", highlight=False, soft_wrap=True)
    return CachedStore(path, store.dropped)


def _hash(digest: str, store: EpisodeStore, spec: Spec) -> str:
    """Of the source's content and of all that reading made of it without decoding: filters, for one, choose episodes."""
    read = [spec.to_json(), store.ends.tolist(), store.texts, store.text.tolist(), store.info, store.meta]
    extras = [(key, item.dtype.str, item.shape) for key, item in store.extras.items()]
    value = [VERSION, CHUNK_BYTES, digest, store.format, read, extras]
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()


@contextmanager
def _building(path: Path, target: Path, console: Console) -> Iterator[Path | None]:
    """The folder `path`, with other processes kept out during the block; None when it is gone after waiting for one.

    It stays when the block ends by a kill, an interrupt, a full disk or Unfinished, for the next attempt to go on with. Other
    errors come again whenever it is tried: then it is removed.
    """
    said = f"another process is making {target}: waiting for it"
    with ExitStack() as stack:
        try:
            path.mkdir(exist_ok=True)
            waiting = partial(console.print, said, highlight=False, soft_wrap=True)
            descriptor = stack.enter_context(claimed(path, "builds", waiting))
        except FileNotFoundError:  # finished and renamed by another process in between
            yield None
            return
        if not (path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor))):
            yield None
            return
        if target.exists():
            path.rmdir()
            yield None
            return
        try:
            yield path
        except Unfinished:
            raise
        except KinoiseError:
            shutil.rmtree(path)
            raise


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Takes what is being done, how much of it is done and of how much; seen on a terminal alone."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done)

        yield show
