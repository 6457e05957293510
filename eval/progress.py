"""Progress of an evaluation: episodes done, success so far with its interval, errors, time left."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .metrics import wilson
from .slot import Outcome


class EpisodeProgress:
    """A bar on standard error, to be used in a `with` block.

    Args:
        total: episodes.
        shown: whether there is a bar at all.
    """

    def __init__(self, total: int, shown: bool = True) -> None:
        self._bar = Progress(
            TextColumn("episodes"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not shown,
        )
        self._task = self._bar.add_task("", total=total)
        self._done = self._succeeded = self._errors = 0

    def add(self, *outcomes: Outcome) -> None:
        if not outcomes:
            return
        self._done += len(outcomes)
        self._succeeded += sum(item.success for item in outcomes)
        self._errors += sum(item.error is not None for item in outcomes)
        rate, low, high = wilson(self._succeeded, self._done)
        text = f"success {rate:.0%} ({low:.0%} to {high:.0%})"
        if self._errors:
            text += f", [red]{self._errors} error{'s' if self._errors > 1 else ''}[/red]"
        self._bar.update(self._task, advance=len(outcomes), description=text)

    def __enter__(self) -> EpisodeProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()
