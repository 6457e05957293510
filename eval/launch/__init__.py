"""kinoise's own commands as jobs: processes here, on a Ray cluster, or under Slurm by submitit."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from ...config import UsageError
from ...spec import KinoiseError
from .job import Launcher

LAUNCHERS = ("local", "ray", "submitit")
HELP = f"{', '.join(LAUNCHERS)}: carry it out in parts, as processes here, on a Ray cluster or under Slurm"


@dataclass
class Cluster:
    """What a job is given, and where there is room for it."""

    cpus: int = field(default=2, metadata={"help": "cores of each job"})
    gpus: float = field(default=0.0, metadata={"help": "GPUs of each job; Ray takes shares, such as 0.25"})
    address: str | None = field(
        default=None, metadata={"help": "Ray's; null: RAY_ADDRESS, else a cluster on this machine, else one started for this"}
    )
    executor: str = field(default="slurm", metadata={"help": "submitit's: slurm, or local: processes here, to try it out"})
    minutes: int = field(default=240, metadata={"help": "Slurm: the longest that a job may take before it is begun again"})
    memory_gb: float | None = field(default=None, metadata={"help": "Slurm: memory of each job; null: the partition's own"})
    partition: str | None = field(default=None, metadata={"help": "Slurm's"})
    account: str | None = field(default=None, metadata={"help": "Slurm's"})
    qos: str | None = field(default=None, metadata={"help": "Slurm's"})
    constraint: str | None = field(default=None, metadata={"help": "Slurm's"})

    def __post_init__(self) -> None:
        if self.cpus < 1 or self.gpus < 0 or self.minutes < 1:
            raise UsageError(
                f"cluster.cpus={self.cpus}, cluster.gpus={self.gpus}, cluster.minutes={self.minutes}: expected at least 1, 0, 1"
            )


def open_launcher(name: str, cluster: Cluster, folder: Path) -> AbstractContextManager[Launcher]:
    """The launcher called so, for a `with` block.

    Args:
        folder: where it may keep files of its own.

    Raises:
        UsageError: there is none of this name.
        KinoiseError: its package is not installed, or nothing answers at its address.
    """
    if name == "local":
        from .local import Local

        return Local(cluster)
    if name == "ray":
        from .on_ray import OnRay

        return OnRay(cluster)
    if name == "submitit":
        from .on_submitit import OnSubmitit

        return OnSubmitit(cluster, folder)
    raise UsageError(f"launcher={name}: expected one of {', '.join(LAUNCHERS)}")


def check_launched(launcher: str | None, shards: int | None) -> None:
    """Raises UsageError for a number of parts that can't be, or that nobody is to carry out."""
    if shards is not None and shards < 1:
        raise UsageError(f"shards={shards}: at least 1 is needed")
    if launcher is None and shards is not None:
        raise UsageError(
            f"shards={shards} without launcher=: say who plays them, one of {', '.join(LAUNCHERS)}; or shard=1/{shards}"
        )


def count_parts(name: str, launcher: Launcher, asked: int | None) -> int:
    """How many parts there will be: `asked`, or as many as can run at once.

    Raises:
        UsageError: `asked` is None, and nobody knows how many that are.
        KinoiseError: or there is no room for any.
    """
    room = launcher.capacity()
    if room is None and asked is None:
        raise UsageError(f"launcher={name} needs shards=: how many jobs run at once is its queue's business")
    if room == 0:
        said = "no machine has the cluster.cpus= and cluster.gpus= that a part asks for"
        if asked is None:
            raise KinoiseError(f"launcher={name}: {said}. Ask for less; or with shards= the parts wait until there is room.")
        print(f"note: {said} now; the parts wait until one has", file=sys.stderr)
    return asked or room or 1
