"""AdamW over a policy's trained parameters, its learning rate, and its state by parameter name."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..spec import KinoiseError
from .config import TrainConfig
from .parallel import put

MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def trained(policy: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name; frozen encoders are left out."""
    return {name: item for name, item in policy.named_parameters() if item.requires_grad}


def decayed(policy: nn.Module) -> set[str]:
    """Names of the trained weights that are shrunk: those that inputs are multiplied with, so no norm, bias or embedding.

    They are the weights of linear and convolutional layers, and stacks of matrices, which are named `w_` with their shape.
    """
    names = set()
    for owner, module in policy.named_modules():
        for leaf, item in module.named_parameters(recurse=False):
            if item.requires_grad and (leaf.startswith("w_") or (leaf == "weight" and isinstance(module, MATRICES))):
                names.add(f"{owner}.{leaf}" if owner else leaf)
    return names


def make_optimizer(policy: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019), in one fused kernel where torch has it."""
    parameters, shrunk = trained(policy), decayed(policy)
    groups = [
        {"params": [item for name, item in parameters.items() if name in shrunk], "weight_decay": config.weight_decay},
        {"params": [item for name, item in parameters.items() if name not in shrunk], "weight_decay": 0.0},
    ]
    fused = next(iter(parameters.values())).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.betas[0], config.betas[1]), fused=fused)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Of update `step`, counted from 0: linear up to the peak over `warmup`, then half a cosine down to `floor` of it."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (config.floor + (1 - config.floor) * (1 + math.cos(math.pi * min(1.0, done))) / 2)


COUNT, MOMENTS = "step", ("exp_avg", "exp_avg_sq")
"""What AdamW remembers of a parameter: how many updates it had, and tensors of its shape."""


def optimizer_state(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Every tensor that the optimiser remembers, as `parameter name:entry` (`exp_avg`, `exp_avg_sq`, `step`); not copies.

    A parameter that never had a gradient has no entry.
    """
    return {
        f"{name}:{entry}": value for name, item in parameters.items() for entry, value in optimizer.state.get(item, {}).items()
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]
) -> None:
    """The inverse of `optimizer_state`, of whole tensors. Raises KinoiseError for names or shapes that no parameter has."""
    for key, value in state.items():
        name, _, entry = key.rpartition(":")
        if name not in parameters:
            raise KinoiseError(f"the optimiser's state is for '{name}', which this policy lacks: take an older checkpoint")
        item = parameters[name]
        shape = item.shape if entry in MOMENTS else torch.Size()
        if entry not in (COUNT, *MOMENTS) or value.shape != shape:
            raise KinoiseError(
                f"the optimiser's {entry} of '{name}' has shape {list(value.shape)}, expected {list(shape)} of {COUNT} or "
                f"{' or '.join(MOMENTS)}: the checkpoint is damaged or another policy's. Take an older one"
            )
        # AdamW's moments are cut as their parameter is; its count of updates is one number.
        target = torch.zeros_like(item) if entry in MOMENTS else torch.zeros_like(value, device=item.device)
        put(target, value)
        optimizer.state[item][entry] = target
    for name, item in parameters.items():
        absent = {COUNT, *MOMENTS} - optimizer.state[item].keys() if item in optimizer.state else None
        if absent:
            raise KinoiseError(f"the optimiser's state lacks {sorted(absent)} of '{name}': take an older checkpoint")
