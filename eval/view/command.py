"""`kinoise view`: an evaluation or a trace as a recording for rerun's viewer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from ...config import UsageError, parse
from ...deploy.trace import MAGIC
from ...spec import KinoiseError
from .recorder import Recorder, load_rerun, write_rrd
from .result import RESULTS, record_result
from .trace import record_trace

ABOUT = """Writes a recording that rerun's viewer plays (rerun FILE.rrd): of a trace, which `kinoise control trace=true` leaves,
what was seen, planned and commanded and how late plans came; of an evaluation success over the episodes, and of some the
actions, how its plans joined, and the films that it made (video=)."""
TRACE = "control.trace"
SUFFIX = ".rrd"


@dataclass
class Settings:
    """The whole command line of `kinoise view`."""

    path: str = field(
        default=MISSING, metadata={"help": "a trace, or the directory that kinoise eval or kinoise control wrote"}
    )
    out: str | None = field(default=None, metadata={"help": "the recording; view.rrd beside what it shows if null"})
    episodes: int = field(default=8, metadata={"help": "of an evaluation: episodes of each task whose actions are shown"})

    def __post_init__(self) -> None:
        if self.episodes < 0:
            raise UsageError(f"episodes={self.episodes}: expected at least 0")
        if self.out is not None and not self.out.endswith(SUFFIX):
            raise UsageError(f"out={self.out}: expected a name that ends with {SUFFIX}, by which the viewer knows it")


def main(argv: Sequence[str]) -> None:
    """Raises KinoiseError when there is nothing to see at the path, a file is broken, or rerun isn't installed."""
    settings = parse("view", Settings, argv, positional="path", about=ABOUT)
    path = Path(settings.path)
    folder, fill = source(path, settings.episodes)
    load_rerun()
    out = Path(settings.out) if settings.out is not None else folder / f"view{SUFFIX}"
    write_rrd(out, str(path), fill)
    print(f"{out} ({out.stat().st_size / 1e6:.1f} MB); see it with: rerun {out}")


def source(path: Path, episodes: int) -> tuple[Path, Callable[[Recorder], None]]:
    """The folder of what is at `path`, and what writes it down. Raises KinoiseError when it is neither of the two kinds."""
    trace = path / TRACE if path.is_dir() else path
    if (path / RESULTS).is_file():
        return path, lambda recorder: record_result(path, recorder, episodes)
    if trace.is_file():
        with trace.open("rb") as file:
            if file.read(len(MAGIC)) == MAGIC:
                return trace.parent, lambda recorder: record_trace(trace, recorder)
    inside = [name for name in ("eval", "control") if (path / name).is_dir()]
    hint = f" It holds {' and '.join(inside)}: take one, as in {path / inside[0]}." if inside else ""
    raise KinoiseError(
        f"{path}: expected a trace (kinoise control trace=true), or a directory with {RESULTS} (kinoise eval) or {TRACE}.{hint}"
    )
