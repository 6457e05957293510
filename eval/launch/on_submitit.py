"""Jobs under Slurm, by submitit; with `cluster.executor=local` as processes here, by the same code.

submitit itself and not hydra-submitit-launcher: that one belongs to Hydra's own application (`@hydra.main`), which decides
folders, logging and exit codes. What kinoise needs is that a job is queued, watched, and queued again when it is preempted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...config import UsageError
from ...spec import KinoiseError
from .job import KILLED, Ended, Job, carry_out

if TYPE_CHECKING:
    from . import Cluster

EXECUTORS = ("slurm", "local")
REQUEUES = 100
"""How often a job may use up its time and be queued again. submitit's own 3 would fail a training of some days."""


class Resumed:
    """`carry_out`, and what submitit is to queue instead when Slurm ends the job: preempted, or out of time."""

    def __call__(self, job: Job) -> Ended:
        return carry_out(job)

    def checkpoint(self, job: Job) -> Any:
        from submitit.helpers import DelayedSubmission  # pyright: ignore[reportMissingImports]

        return DelayedSubmission(self, job.repeated())


@dataclass
class _Queued:
    job: Any

    def poll(self) -> Ended | None:
        if not self.job.done():
            return None
        error = self.job.exception()
        if error is None:
            return self.job.result()
        known = [line.strip() for line in str(error).splitlines() if line.strip()]
        return Ended(KILLED, f"submitit, job {self.job.job_id}: {known[0] if known else type(error).__name__}")

    def stop(self) -> None:
        self.job.cancel(check=False)


class OnSubmitit:
    """Slurm's queue.

    Args:
        folder: takes what submitit writes: scripts, what goes to the jobs and back, their output.

    Raises:
        UsageError: another executor.
        KinoiseError: submitit is not installed, or there is no Slurm here.
    """

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        if cluster.executor not in EXECUTORS:
            raise UsageError(f"cluster.executor={cluster.executor}: expected one of {', '.join(EXECUTORS)}")
        if cluster.gpus != int(cluster.gpus):
            raise UsageError(f"cluster.gpus={cluster.gpus}: Slurm takes whole ones")
        try:
            import submitit  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise KinoiseError("launcher=submitit needs submitit: pip install -c constraints.txt -e '.[submitit]'.") from error
        try:
            again = {f"{cluster.executor}_max_num_timeout": REQUEUES}
            self._executor = submitit.AutoExecutor(folder / "submitit", cluster=cluster.executor, **again)
        except RuntimeError as error:
            raise KinoiseError(f"{error}: start it where sbatch is, or try it out with cluster.executor=local.") from error
        self._cluster = cluster

    def capacity(self) -> None:
        return None

    def start(self, job: Job) -> _Queued:
        cluster = self._cluster
        slurm = {key: getattr(cluster, key) for key in ("partition", "account", "qos", "constraint")}
        given = {f"slurm_{key}": value for key, value in slurm.items() if value is not None}
        if cluster.memory_gb is not None:
            given["mem_gb"] = cluster.memory_gb
        self._executor.update_parameters(
            name=f"kinoise-{job.argv[0]}",
            timeout_min=cluster.minutes,
            cpus_per_task=cluster.cpus,
            gpus_per_node=int(cluster.gpus),
            **given,
        )
        return _Queued(self._executor.submit(Resumed(), job))

    def __enter__(self) -> OnSubmitit:
        return self

    def __exit__(self, *_: object) -> None:
        pass
