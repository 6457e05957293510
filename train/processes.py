"""What the processes of one run agree on, as torchrun, accelerate launch or Slurm started them."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.constants import default_pg_timeout
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

from ..config import UsageError
from ..spec import KinoiseError

APART = "kinoise-attempt"
PATIENCE = timedelta(days=30)
"""How long a process waits for the others: rollouts on one of them may take hours, where a backend's own limit is minutes."""


class Processes:
    """One of `count` processes that train together; alone, it agrees with itself at no cost.

    Numbers go over a gloo group of its own: on the CPU, so that no GPU is waited for, and apart from the gradients.

    Args:
        rank: from 0; process 0 leads: it alone writes.
        count: all of them, over all machines. Above 1 torch.distributed is to be initialised, and all make this at once.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count, self.leads = rank, count, rank == 0
        self._group: Any = dist.new_group(backend="gloo", timeout=PATIENCE) if count > 1 else None

    @classmethod
    def of(cls, accelerator: Accelerator) -> Processes:
        return cls(accelerator.process_index, accelerator.num_processes)

    def wait(self) -> None:
        """Until all processes are here. Raises KinoiseError when one of them has ended."""
        self.most(0)

    def most(self, value: int) -> int:
        """The largest of the processes' values, the same on all. Raises as `wait` does."""
        return self.voted(value)()

    def voted(self, value: int) -> Callable[[], int]:
        """As `most`, counted while the caller goes on, until it calls what comes back."""
        if self._group is None:
            return lambda: value
        vote = torch.tensor(int(value))
        with company():
            work = dist.all_reduce(vote, dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None

        def count() -> int:
            with company():
                work.wait()
            return int(vote)

        return count

    def told(self, value: int) -> int:
        """The leader's value. Raises as `wait` does."""
        found = torch.tensor(int(value))
        if self._group is not None:
            with company():
                dist.broadcast(found, 0, group=self._group)
        return int(found)

    def total(self, values: Tensor) -> Tensor:
        """The sum of the processes' `values`, which are on the CPU. Raises as `wait` does."""
        if self._group is None:
            return values
        found = values.clone()
        with company():
            dist.all_reduce(found, group=self._group)
        return found


@contextmanager
def company() -> Iterator[None]:
    """Says in a line what a lost connection to another process means. Raises KinoiseError for that."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        cause = next(iter(str(error).splitlines()), type(error).__name__)
        raise KinoiseError(
            f"the connection to this run's other processes failed: if one of them has ended, it says why; what was saved until "
            f"then goes on with resume=true ({cause})"
        ) from error


def agent() -> str | None:
    """The torchrun that started this process: the same in all its attempts (`--max-restarts`). None without one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    parent = psutil.Process(os.getppid())
    return f"{platform.node()}-{parent.pid}-{parent.create_time():.2f}"


def meeting() -> str | None:
    """How the processes are to find each other (an `init_method`); None: as they do anyway.

    Raises UsageError for a torchrun over several machines whose second attempt would not come about.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    machines, restarts = (int(os.environ.get(name, "0")) for name in ("GROUP_WORLD_SIZE", "TORCHELASTIC_MAX_RESTARTS"))
    if machines > 1 and restarts:
        raise UsageError(
            "torchrun --max-restarts over several machines keeps one store for all attempts, in which processes find the "
            "addresses of those that died: export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun, on every machine"
        )
    return f"{APART}://"


def apart(url: str, timeout: timedelta = default_pg_timeout, **known: Any) -> Iterator[tuple[Store, int, int]]:
    """As `env://`, apart from what the attempts before left in the store.

    torchrun keeps one store for all attempts (torch 2.13), in which a process would find the address of one that has died. Only
    on one machine do all processes count the attempts alike.
    """
    for store, rank, count in rendezvous(url.replace(APART, "env", 1), timeout=timeout, **known):
        yield PrefixStore(f"attempt-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store), rank, count


register_rendezvous_handler(APART, apart)
