"""Jobs as processes of this machine."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...config import UsageError
from .job import SAVING_S, Ended, Job, finished, process

if TYPE_CHECKING:
    from . import Cluster


@dataclass
class _Process:
    job: Job
    process: subprocess.Popen[bytes]
    stopped: bool = False

    def poll(self) -> Ended | None:
        code = self.process.poll()
        return None if code is None else finished(self.job, code)

    def stop(self) -> None:
        """By SIGTERM, at which commands leave everything so that they can go on; at a second one they would end at once."""
        if self.process.poll() is None and not self.stopped:
            self.stopped = True
            self.process.terminate()

    def end(self, patience: float) -> None:
        """Waits for its end, and forces it after so many seconds."""
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Local:
    """As many jobs at once as this machine's cores have room for. Raises UsageError for GPUs, which it doesn't hand out."""

    def __init__(self, cluster: Cluster) -> None:
        if cluster.gpus:
            raise UsageError(
                f"cluster.gpus={cluster.gpus}: launcher=local hands out no GPUs; its jobs see all of this machine's"
            )
        self._cluster = cluster
        self._started: list[_Process] = []

    def capacity(self) -> int:
        return max(1, len(os.sched_getaffinity(0)) // self._cluster.cpus)

    def start(self, job: Job) -> _Process:
        self._started.append(_Process(job, process(job)))
        return self._started[-1]

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *_: object) -> None:
        until = time.monotonic() + SAVING_S
        for item in self._started:
            item.stop()
        for item in self._started:
            item.end(max(0.0, until - time.monotonic()))
