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
from .prefetch import Prefetch


class Objective(nn.Module):
    """A policy's loss as a module's forward: what autocast, torch.compile and data parallelism wrap."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, batch: Batch, gen: Gen) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and its parts."""
        losses = self.policy.loss(batch, gen)
        return losses.total, {"denoising": losses.per_sample.mean(), **losses.auxiliary, **losses.shown}


class Trainer:
    """A policy, its optimiser and its average, which move together from update to update.

    Update n is a function of the weights, the optimiser's state and (seed, n) alone. Nothing in it waits for the device, where
    the numbers stay until `meter` is asked. A thread makes the next batch meanwhile: `close` ends it, as does the last update.

    Args:
        policy: moved to the accelerator's device; its weights are the start.
        windows: what to learn from.
        remedy: see `Meter`.
    """

    def __init__(
        self, config: TrainConfig, policy: Policy, windows: Windows, seed: int, accelerator: Accelerator, remedy: str
    ) -> None:
        self.config, self.accelerator = config, accelerator
        self.policy = policy.to(accelerator.device).train()
        self.objective = accelerator.prepare_model(Objective(self.policy))
        if config.compile:
            self.objective.compile()
        self.parameters = trained(self.policy)
        self.optimizer = make_optimizer(self.policy, config)
        self.ema = Ema(self.parameters, config.ema_power, config.ema_max) if config.ema else None
        self.order = make_order(windows, config.batch_size, seed, accelerator.process_index, accelerator.num_processes)
        self.windows, self.meter, self.step = windows, Meter(accelerator, remedy), 0
        make = batches(windows, self.order, config.augment, accelerator.device)
        self.prefetch = Prefetch(make, config.prefetch, config.steps)
        self._live = list(self.parameters.values())

    def update(self) -> None:
        """One update of the weights."""
        batch, gen = self.prefetch.take(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        loss, parts = self.objective(batch, gen)
        self.accelerator.backward(loss)
        norm = nn.utils.clip_grad_norm_(self._live, self.config.clip or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.step)
        self.step += 1
        self.meter.add({"loss": loss, **parts, "grad_norm": norm})

    def close(self) -> None:
        self.prefetch.close()

    @torch.no_grad()
    def finite(self) -> bool:
        """Whether every weight and every average is a finite number; waits for the device."""
        tensors = [*self._live, *(self.ema.state().values() if self.ema is not None else ())]
        return bool(nn.utils.get_total_norm(tensors).isfinite())

    def state(self) -> dict[str, Tensor]:
        """The optimiser's, by parameter name; the weights and averages are `policy`'s and `ema`'s."""
        return optimizer_state(self.optimizer, self.parameters)

    def restore(self, step: int, ema: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        """Goes on after `step` updates; the policy already holds their weights."""
        self.step = step
        load_optimizer_state(self.optimizer, self.parameters, optimizer)
        if self.ema is not None:
            self.ema.load(ema)


def batches(
    windows: Windows, order: Order, config: AugmentConfig, device: torch.device
) -> Callable[[int], tuple[Batch, torch.Generator]]:
    """What makes an update's batch, on `device`, and the generator of its noise: functions of the update alone."""

    def make(step: int) -> tuple[Batch, torch.Generator]:
        gen = order.noise(step)
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():  # a new thread's device is the first
            return augment(to_device(windows.batch(order.indices(step)), device), config, gen), gen

    return make


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch on `device`, copied while the CPU goes on."""
    seen = batch.observation
    values = {key: move(item, device) for key, item in seen.values.items()}
    text = None if seen.text is None else move(seen.text, device)
    return Batch(Observation(values, seen.texts, text), move(batch.actions, device), move(batch.valid, device))
