"""What a person sees while a policy trains: a bar with the loss and the time left, or lines where there is no terminal."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

BAR_PERIOD_S = 0.25
LINE_PERIOD_S = 10.0


class Display:
    """Cheap enough to be told after every update."""

    def __init__(self, console: Console, steps: int, step: int) -> None:
        self._console, self._steps, self._first = console, steps, step
        self._bar: Progress | None = None
        self._started = self._shown = time.perf_counter()
        self._loss = ""

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
            times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
            self._bar = Progress(*columns, *times, console=self._console, auto_refresh=False)
            self._task = self._bar.add_task("train", total=self._steps, completed=self._first, loss="")
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, loss: float | None = None) -> None:
        """The updates made so far, and the loss when there is a new one."""
        if loss is not None:
            self._loss = f"loss {loss:.4f}"
        now = time.perf_counter()
        if step < self._steps and now - self._shown < (LINE_PERIOD_S if self._bar is None else BAR_PERIOD_S):
            return
        self._shown = now
        if self._bar is not None:
            self._bar.update(self._task, completed=step, loss=self._loss, refresh=True)
        else:
            left = (now - self._started) / max(1, step - self._first) * (self._steps - step)
            self._console.print(f"train {step}/{self._steps}  {self._loss}  {clock(left)} left", highlight=False)

    def pause(self) -> None:
        """Leaves the terminal to another bar, until the next `resume`."""
        if self._bar is not None:
            self._bar.stop()

    def resume(self) -> None:
        if self._bar is not None:
            self._bar.start()


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
