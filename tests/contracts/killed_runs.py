"""For tests, run as a script: it forks runs of `kinoise train`, kills each at another point and resumes it; see `drive`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from short_runs import same_weights, train, untimed

STRIDE = 11


def drive(data: Path, base: Path) -> None:
    """Forks runs out of one process that has everything imported, kills each at another point, resumes it, compares.

    The points are the updates and every call that makes, moves, links or removes a file.
    """
    torch.set_num_threads(1)
    reference, count = base / "reference", base / "count"
    assert train(data, reference) == 0
    assert forked(lambda: counted(data, base / "counted", count)) == 0
    points = int(count.read_text())
    assert points > 40, points
    for point in range(0, points, STRIDE):
        out = base / f"killed_{point}"
        assert forked(lambda out=out, point=point: killed(data, out, point)) == -signal.SIGKILL, point
        assert forked(lambda out=out: train(data, out, "resume=true")) == 0, point
        assert same_weights(reference / "checkpoints" / "6", out / "checkpoints" / "6"), point
        assert untimed(reference) == untimed(out), point
        names = sorted(item.name for item in [*out.iterdir(), *(out / "checkpoints").iterdir()])
        assert names == ["4", "6", "checkpoints", "last", "metrics.jsonl", "train.json"], (point, names)


def forked(work: Callable[[], int]) -> int:
    """The exit code of `work` in a process of its own, negative when a signal ended it."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(work())
        finally:
            os._exit(70)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def counted(data: Path, out: Path, count: Path) -> int:
    calls = watch(lambda call: None)
    code = train(data, out)
    count.write_text(str(len(calls)))
    return code


def killed(data: Path, out: Path, point: int) -> int:
    watch(lambda call: os.kill(os.getpid(), signal.SIGKILL) if call == point else None)
    return train(data, out)


def watch(before: Callable[[int], None]) -> list[str]:
    """Calls `before(n)` ahead of the nth call that matters; returns the growing list of their names."""
    from kinoise.train.loop import Trainer

    calls: list[str] = []

    def wrap(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            before(len(calls))
            calls.append(name)
            return call(*args, **kwargs)

        return wrapped

    places = [(os, name) for name in ("rename", "replace", "symlink", "unlink", "rmdir", "mkdir", "fsync")]
    for owner, name in [*places, (Trainer, "update")]:
        setattr(owner, name, wrap(name, getattr(owner, name)))
    return calls


if __name__ == "__main__":
    drive(Path(sys.argv[1]), Path(sys.argv[2]))
