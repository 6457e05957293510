"""One policy over several processes: whole in each (DDP), or a share of every weight in each (FSDP2).

Checkpoints know nothing of it: `whole` gathers what a process has a share of, `put` takes its share of what was read.
"""

from __future__ import annotations

import copy
import inspect
import os
import sys
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..policies.base import Policy
from ..policies.core.network.transformer import Block
from .processes import Processes

# FSDP takes more than a second to import: it is when a run is sharded, not for every `kinoise train --help`.
if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

SYNC = "forward_sync_buffers"
"""Of DDP: whether every forward pass sends the leader's buffers around."""
if SYNC not in inspect.signature(DistributedDataParallel).parameters:  # torch before 2.13 calls it by another name
    SYNC = "broadcast_buffers"


def chosen(parallel: str, processes: Processes) -> str:
    """How a run is spread: `single`, `ddp` or `fsdp`. `auto` is what `accelerate launch --use_fsdp` asked for, else DDP."""
    if processes.count == 1:
        return "single"
    if parallel == "auto":
        return "fsdp" if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" else "ddp"
    return parallel


class Spread:
    """A module whose gradients become the means over the processes.

    Args:
        objective: what is called; its parameters lie on the device, and are sharded in place for `fsdp`.
        policy: the part of it that has all its parameters.
        kind: see `chosen`.

    Attributes:
        trained: `objective` for training's forward.
        bare: the same for forward passes without gradient; all processes are to make as many of them.
    """

    def __init__(self, objective: nn.Module, policy: Policy, kind: str, processes: Processes) -> None:
        self.kind, self._processes = kind, processes
        self.policy = policy
        self._shell: Policy | None = None
        self.trained = self.bare = objective
        if kind == "ddp":
            # Other buffers are constants. Inputs are on the device already: without device_ids nothing is moved.
            sync: dict[str, Any] = {SYNC: any(isinstance(item, nn.BatchNorm2d) for item in policy.modules())}
            self.trained = DistributedDataParallel(objective, gradient_as_bucket_view=True, **sync)
        elif kind == "fsdp":
            self._shell = _without_weights(policy)
            _shard(objective, next(policy.parameters()).device.type, processes.count)

    def part(self, last: bool) -> AbstractContextManager[Any]:
        """The forward and backward pass of one part of a batch; gradients are averaged over the processes in the last one."""
        if isinstance(self.trained, DistributedDataParallel):
            return nullcontext() if last else self.trained.no_sync()
        if self.kind == "fsdp":
            cast("FSDPModule", self.trained).set_requires_gradient_sync(last)
        return nullcontext()

    def saved(self) -> Policy:
        """A policy with whole weights, to be written by the leader; all processes call this."""
        if self._shell is None:
            return self.policy
        weights = gathered(self.policy.state_dict(), self._processes)
        if weights:
            self._shell.load_state_dict(weights, strict=False, assign=True)
        return self._shell


def gathered(tensors: Mapping[str, Tensor], processes: Processes) -> dict[str, Tensor]:
    """Whole tensors on the CPU for the leader, nothing for the others; all processes call this with the same names."""
    found = {}
    for name, item in tensors.items():
        if not (processes.leads or _sharded(item)):
            continue
        value = whole(item.detach())
        if processes.leads:
            found[name] = value.cpu().contiguous()
    return found


def whole(item: Tensor) -> Tensor:
    """What the processes have shares of, put together; all of them call this."""
    return item.full_tensor() if _sharded(item) else item


def own(item: Tensor) -> Tensor:
    """The memory of this process's share."""
    return item.to_local() if _sharded(item) else item


@torch.no_grad()
def put(item: Tensor, value: Tensor) -> None:
    """Copies this process's share of `value`, which is whole, into `item`."""
    if _sharded(item):
        shares = value.chunk(item.device_mesh.size())  # as FSDP2 cuts a tensor: along its first dimension
        rank = item.device_mesh.get_local_rank()
        value = shares[rank] if rank < len(shares) else value[:0]
    own(item).copy_(value)


def _sharded(item: Tensor) -> TypeGuard[DTensor]:
    """Whether this process has a share of it: then what such tensors are was imported by `_shard`."""
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(item, tensors.DTensor)


def _shard(objective: nn.Module, device: str, processes: int) -> None:
    """Shards blocks by themselves, so that one at a time is whole, and what is left with the objective."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # Blocks hand on views, and nothing is written into those.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device, (processes,))
    theirs = {name for item in objective.modules() for name in getattr(item, "_no_split_modules", None) or ()}
    for module in list(objective.modules()):
        if type(module).__name__ in theirs:  # a pretrained model's layers, by Transformers' own word
            fully_shard(module, mesh=mesh)
        if not isinstance(module, nn.ModuleList):
            continue
        # The last is needed again first, and the token network takes keys and values from its attention alone.
        for block in list(module)[:-1]:
            if not isinstance(block, Block):
                continue
            if block.cross is not None:  # all blocks' keys and values of the context are made before the first of them runs
                fully_shard(block.cross, mesh=mesh)
                register_fsdp_forward_method(block.cross, "offer")
            fully_shard(block, mesh=mesh)
            register_fsdp_forward_method(block, "extend")
    # Not kept until the next forward pass: between two of them the weights change, in validation too.
    fully_shard(objective, mesh=mesh, reshard_after_forward=True)


def _without_weights(policy: Policy) -> Policy:
    """A copy of everything but the numbers."""
    tensors = {id(item): item for item in (*policy.parameters(), *policy.buffers())}
    return copy.deepcopy(policy, tensors).to("meta")
