"""Where the numbers of a run go: metrics.jsonl always, TensorBoard by default, Weights & Biases and Trackio on request."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ..config import UsageError
from ..files import disk_errors, read_json, write_json, write_text
from ..spec import KinoiseError
from .checkpoint import RunDirectory
from .config import TrainConfig


@runtime_checkable
class Tracker(Protocol):
    """Takes named numbers after an update; a resumed run repeats the updates that its checkpoint lacks."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self, failed: bool = False) -> None:
        """`failed`: an error ends the run, for those that can tell."""
        ...


class JsonLines:
    """`metrics.jsonl`: one JSON object a line. What an earlier run wrote after update `step` is cut off."""

    def __init__(self, path: Path, step: int) -> None:
        with disk_errors(path):
            write_text(path, "".join(_until(path, step)))
            self._path, self._file = path, path.open("a")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        with disk_errors(self._path):
            self._file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
            self._file.flush()

    def close(self, failed: bool = False) -> None:
        with disk_errors(self._path):
            self._file.close()


def _until(path: Path, step: int) -> list[str]:
    """The lines up to `step`. A line cut short by a kill is one after the last checkpoint, as all that follow it."""
    lines = []
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        try:
            if json.loads(line)["step"] > step:
                break
        except json.JSONDecodeError:
            break
        lines.append(line)
    return lines


class TensorBoard:
    """Event files; those of a killed run stay, and TensorBoard is told to forget what they say after update `step`."""

    def __init__(self, directory: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._directory = directory
        with ExitStack() as stack:
            stack.enter_context(_said_once())
            with disk_errors(directory):
                self._writer = SummaryWriter(str(directory), purge_step=step + 1)
            self._opened = stack.pop_all()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        with disk_errors(self._directory):
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def close(self, failed: bool = False) -> None:
        with self._opened, disk_errors(self._directory):
            self._writer.close()


@contextmanager
def _said_once() -> Iterator[None]:
    """TensorBoard's thread hands its error to who writes, and then raises it once more, for nobody: that one is not shown."""

    def is_its(thread: threading.Thread | None) -> bool:
        return type(thread).__module__.startswith("tensorboard.")

    def hook(error: threading.ExceptHookArgs) -> None:
        if not is_its(error.thread):
            before(error)

    before, threading.excepthook = threading.excepthook, hook
    try:
        yield
    finally:
        for thread in threading.enumerate():
            if is_its(thread) and getattr(thread, "exception", None) is not None:  # it is about to raise
                thread.join()
        threading.excepthook = before


class Wandb:
    """A Weights & Biases run, the same one after a resume (its id is in `wandb.json`); it ignores updates it already has."""

    def __init__(self, run: Path, project: str, settings: Mapping[str, Any]) -> None:
        """Raises UsageError when wandb is not installed."""
        wandb = imported("wandb")
        path = run / "wandb.json"
        if not path.exists():
            write_json(path, {"id": secrets.token_hex(4)})
        with _beginning("wandb"):
            self._run = wandb.init(
                project=project, name=run.name, id=read_json(path)["id"], dir=str(run), config=dict(settings), resume="allow"
            )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, failed: bool = False) -> None:
        self._run.finish(exit_code=int(failed))


class Trackio:
    """A Trackio run, the same one after a resume: `trackio.json` has its name, and of each number the last update it has.

    Trackio would keep a number twice that a resumed run tells it again, so it is told only later ones. Where it keeps them, on
    this machine, a server or a Space, is for its own environment variables to say (TRACKIO_DIR, TRACKIO_SERVER_URL,
    TRACKIO_SPACE_ID).
    """

    def __init__(self, run: Path, project: str, settings: Mapping[str, Any]) -> None:
        """Raises UsageError when trackio is not installed."""
        trackio = imported("trackio")
        self._path = run / "trackio.json"
        if not self._path.exists():
            write_json(self._path, {"name": f"{run.name}-{secrets.token_hex(4)}", "known": {}})
        self._state = read_json(self._path)
        self._known: dict[str, int] = dict(self._state["known"])
        with _beginning("trackio"):
            name = self._state["name"]
            self._run = trackio.init(project=project, name=name, config=dict(settings), resume="allow", embed=False)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        new = {name: value for name, value in values.items() if step > self._known.get(name, -1)}
        if new:
            self._run.log(new, step=step)
            self._state["known"].update(dict.fromkeys(new, step))
            write_json(self._path, self._state)

    def close(self, failed: bool = False) -> None:
        self._run.finish()


@contextmanager
def _beginning(name: str) -> Iterator[None]:
    """Raises KinoiseError for whatever keeps a tracker from beginning: no login, no network."""
    try:
        yield
    except Exception as error:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise KinoiseError(f"train.{name}: {said}. Log in there, or leave train.{name} out.") from error


def imported(name: str) -> Any:
    """A tracker's package, which is called as its setting and its extra. Raises UsageError when it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        remedy = f"pip install -c constraints.txt -e '.[{name}]', or leave train.{name} out"
        raise UsageError(f"train.{name} needs {name}: {remedy}") from error


@contextmanager
def open_trackers(config: TrainConfig, run: RunDirectory, step: int, settings: Mapping[str, Any]) -> Iterator[list[Tracker]]:
    """metrics.jsonl, then all that `config` asks for, with what was logged after update `step` taken back, for the block.

    Whatever fails, each that was opened is closed; the first error is the one that is raised.
    """
    for name in ("wandb", "trackio"):
        if getattr(config, name) is not None:
            imported(name)  # before anything is written
    with ExitStack() as stack:
        trackers: list[Tracker] = [stack.enter_context(_closing(JsonLines(run.metrics, step)))]
        if config.tensorboard:
            trackers.append(stack.enter_context(_closing(TensorBoard(run.tensorboard, step))))
        if config.wandb is not None:
            trackers.append(stack.enter_context(_closing(Wandb(run.path, config.wandb, settings))))
        if config.trackio is not None:
            trackers.append(stack.enter_context(_closing(Trackio(run.path, config.trackio, settings))))
        yield trackers


@contextmanager
def _closing(tracker: Tracker) -> Iterator[Tracker]:
    """Closes it after the block. What goes wrong then hides no error of the block: a full disk fails both."""
    try:
        yield tracker
    except BaseException:
        with suppress(Exception):
            tracker.close(failed=True)
        raise
    tracker.close()
