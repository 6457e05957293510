"""One update after another: batches in, weights out. What happens between updates is session.py's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..data.windows import Windows
from ..policies.base import Policy
from ..policies.core.random import Gen, move
from ..spec import Batch, Observation
from .augment import AugmentConfig, augment
from .config import TrainConfig
from .ema import Ema
from .meter import Meter
from .optimizer import learning_rate, load_optimizer_state, make_optimizer, optimizer_state, trained
from .order import Order, make_order
from .parallel import Spread, chosen, gathered, whole
from .prefetch import Prefetch
from .processes import Processes


class Objective(nn.Module):
    """A policy's loss as a module's forward: what torch.compile and parallelism wrap."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, batch: Batch, gen: Gen) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The scalar to minimise, its parts, and the denoising loss of each row, without a gradient."""
        losses = self.policy.loss(batch, gen)
        parts = {"denoising": losses.per_sample.mean(), **losses.auxiliary, **losses.shown}
        return losses.total, parts, losses.per_sample.detach()


class Trainer:
    """A policy, its optimiser and its average, which move together from update to update.

    Update n is a function of the weights, the optimiser's state and (seed, n) alone. Nothing in it waits for the device, where
    the numbers stay until `meter` is asked. A thread makes the next batch meanwhile: `close` ends it, as does the last update.

    Where several processes train, or each in several parts, an update is that of one process, up to rounding: rows keep their
    noise and count alike, and gradients are summed before they are clipped. A router's balancing loss alone is of each part
    by itself, not of the batch, as is usual (Switch Transformer, arXiv 2101.03961).

    Args:
        policy: moved to the accelerator's device; its weights are the start.
        windows: what to learn from.
        remedy: see `Meter`.
        processes: those that share the batches; all that the accelerator knows if None.
    """

    def __init__(
        self,
        config: TrainConfig,
        policy: Policy,
        windows: Windows,
        seed: int,
        accelerator: Accelerator,
        remedy: str,
        processes: Processes | None = None,
    ) -> None:
        self.config, self.accelerator = config, accelerator
        self.processes = processes = Processes.of(accelerator) if processes is None else processes
        self.policy = policy.to(accelerator.device).train()
        self.spread = Spread(Objective(self.policy), self.policy, chosen(config.parallel, processes), processes)
        if config.compile:
            self.spread.trained.compile()
        self.parameters = trained(self.policy)
        self.optimizer = make_optimizer(self.policy, config)
        self.ema = Ema(self.parameters, config.ema_power, config.ema_max) if config.ema else None
        self.order = make_order(windows, config.batch_size, seed, processes.rank, processes.count, config.accumulate)
        self.windows, self.meter, self.step = windows, Meter(processes, remedy), 0
        make = batches(windows, self.order, config.augment, accelerator.device)
        self.prefetch = Prefetch(make, config.prefetch, config.steps * config.accumulate)
        self._live = list(self.parameters.values())

    def update(self) -> None:
        """One update of the weights."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        parts, rows, names = self.config.accumulate, [], []
        for part in range(parts):
            batch, gen = self.prefetch.take(self.step * parts + part)
            # Gradients and numbers are averaged over processes: what each row counts then is one in the whole batch.
            weight = len(batch.actions) * self.processes.count / self.config.batch_size
            with self.spread.part(last=part == parts - 1):
                with self.autocast():
                    loss, values, _ = self.spread.trained(batch, gen)
                (loss * weight).backward()
            names = ["loss", *values]
            rows.append(torch.stack([item.detach() for item in (loss, *values.values())]).float() * weight)
        norm = whole(nn.utils.clip_grad_norm_(self._live, self.config.clip or float("inf")))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.step)
        self.step += 1
        self.meter.add([*names, "grad_norm"], torch.cat([torch.stack(rows).sum(0), norm[None]]))

    def autocast(self) -> torch.autocast:
        """The precision that the loss is computed in."""
        enabled = self.accelerator.mixed_precision == "bf16"
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=enabled)

    def close(self) -> None:
        self.prefetch.close()

    @torch.no_grad()
    def finite(self) -> bool:
        """Whether every weight and every average is a finite number; waits for the device."""
        tensors = [*self._live, *(self.ema.state().values() if self.ema is not None else ())]
        return bool(whole(nn.utils.get_total_norm(tensors)).isfinite())

    def averages(self) -> dict[str, Tensor]:
        """The averaged weights by name, as the leader saves them; all processes call this."""
        return gathered(self.ema.state(), self.processes) if self.ema is not None else {}

    def state(self) -> dict[str, Tensor]:
        """The optimiser's, by parameter name, as the leader saves it; all processes call this."""
        return gathered(optimizer_state(self.optimizer, self.parameters), self.processes)

    def restore(self, step: int, ema: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        """Goes on after `step` updates; the policy already holds their weights."""
        self.step = step
        load_optimizer_state(self.optimizer, self.parameters, optimizer)
        if self.ema is not None:
            self.ema.load(ema)


def batches(windows: Windows, order: Order, config: AugmentConfig, device: torch.device) -> Callable[[int], tuple[Batch, Gen]]:
    """What makes the parts of batches, counted through, on `device`, each with its noise."""

    def make(index: int) -> tuple[Batch, Gen]:
        step, part = divmod(index, order.parts)
        gen = order.noise(step, part)
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():  # a new thread's device is the first
            return augment(to_device(windows.batch(order.indices(step, part)), device), config, gen), gen

    return make


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch on `device`, copied while the CPU goes on."""
    seen = batch.observation
    values = {key: move(item, device) for key, item in seen.values.items()}
    text = None if seen.text is None else move(seen.text, device)
    return Batch(Observation(values, seen.texts, text), move(batch.actions, device), move(batch.valid, device))
