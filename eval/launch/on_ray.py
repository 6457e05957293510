"""Jobs as tasks of a Ray cluster. Ray decides where each runs; what a job is, is the same as anywhere else."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...spec import KinoiseError
from .job import KILLED, Ended, Job, carry_out

if TYPE_CHECKING:
    from . import Cluster


@dataclass
class _Task:
    ray: Any
    reference: Any

    def poll(self) -> Ended | None:
        ready, _ = self.ray.wait([self.reference], timeout=0)
        if not ready:
            return None
        try:
            return self.ray.get(self.reference)
        except self.ray.exceptions.RayTaskError as error:  # raised over there, by code that is not the command's
            return Ended(1, _line(error.cause))
        except self.ray.exceptions.RayError as error:  # the worker, its machine or its memory is gone
            return Ended(KILLED, f"Ray: {_line(error)}")

    def stop(self) -> None:
        """Ends the task's process, and the command's with it (see child.py)."""
        self.ray.cancel(self.reference, force=True)


class OnRay:
    """A Ray cluster: the one at `cluster.address`, or one started on this machine and stopped with the block.

    Raises KinoiseError when Ray is not installed, or can't be reached.
    """

    def __init__(self, cluster: Cluster) -> None:
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise KinoiseError(
                "launcher=ray needs Ray, on every machine: pip install -c constraints.txt -e '.[ray]'."
            ) from error
        self._ray, self._cluster = ray, cluster

    def capacity(self) -> int:
        cluster, total = self._cluster, 0
        for node in self._ray.nodes():
            there = node["Resources"] if node["Alive"] else {}
            room = int(there.get("CPU", 0) // cluster.cpus)
            total += min(room, int(there.get("GPU", 0) / cluster.gpus)) if cluster.gpus else room
        return total

    def start(self, job: Job) -> _Task:
        task = self._ray.remote(carry_out).options(
            name=job.name,
            num_cpus=self._cluster.cpus,
            num_gpus=self._cluster.gpus,
            max_retries=0,  # whoever begins a job again has to tell it so
            scheduling_strategy="SPREAD",
        )
        return _Task(self._ray, task.remote(job))

    def __enter__(self) -> OnRay:
        self._ours = not self._ray.is_initialized()
        if self._ours:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            try:
                with termination_kept():
                    self._ray.init(self._cluster.address, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                where = self._cluster.address or os.environ.get("RAY_ADDRESS") or "this machine"
                raise KinoiseError(f"no Ray cluster at {where}: {_line(error)}. See `ray status`, cluster.address=.") from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._ours:
            self._ray.shutdown()


@contextmanager
def termination_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself, for good: the command would end with another code, and so would what it forks."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
