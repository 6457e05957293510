"""What a noise process is to everyone else: the contract between losses, networks and samplers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64, Shaped
from torch import Tensor

from ..random import Gen


class Prediction(NamedTuple):
    """A network's answer.

    Args:
        value: F, what the process's parametrisation asks for; shaped like the network's input.
        balance: the router's auxiliary loss, a scalar that is already weighted; None when there is none.
    """

    value: Tensor
    balance: Tensor | None = None


Network = Callable[[Tensor, Tensor, Any], Prediction]
"""`network(x, noise, context)`: x as the process scales it, `noise` from `Process.label` (0-d or `[batch]`)."""

Belief = Tensor
"""What the network believes of the clean sample: E[x0 | x_t] for a Gaussian process, each token's log p for a masked one."""

Denoise = Callable[[Tensor, Tensor], Belief]
"""`denoise(x, t)` with network, context, guidance and cache already bound. This is all that a sampler sees."""


@dataclass(frozen=True)
class Losses:
    """A training loss in its parts.

    Args:
        per_sample: the process's loss for each batch row.
        auxiliary: further scalars by name, already weighted.
        shown: scalars by name that are logged and not minimised.
    """

    per_sample: Float[Tensor, "batch"]
    auxiliary: dict[str, Tensor] = field(default_factory=dict)
    shown: dict[str, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Float[Tensor, ""]:
        """What to minimise."""
        return self.per_sample.mean() + sum(self.auxiliary.values())


@runtime_checkable
class Process(Protocol):
    """A path from clean samples to noise.

    Time t lies in [0, 1]: 0 is clean, 1 is noise. It is a float64 tensor on the CPU whatever the device of x: 0-d when
    planning (so that a level costs a table look-up and no device is waited for), `[batch]` when training.
    """

    def grid(self, steps: int, start: float = 1.0) -> Float64[Tensor, "{steps}+1"]:
        """Decreasing times from `start` in (0, 1] to exactly 0. Raises KinoiseError when `steps` intervals do not fit in."""
        ...

    def prior(self, shape: Sequence[int], gen: Gen, device: torch.device | str = "cpu") -> Tensor:
        """Samples at t = 1, which no data were needed for."""
        ...

    def corrupt(self, clean: Shaped[Tensor, "batch ..."], t: Float[Tensor, "..."], gen: Gen) -> Tensor:
        """A sample of q(x_t | x0 = clean)."""
        ...

    def predict(self, net: Network, x: Tensor, t: Float[Tensor, "..."], ctx: Any) -> Belief:
        """The belief of `net` about the clean sample behind x = x_t."""
        ...

    def bridge(
        self, x: Tensor, belief: Belief, t: Float[Tensor, "..."], s: Float[Tensor, "..."], gen: Gen, eta: float = 0.0
    ) -> Tensor:
        """A sample at time s < t, as if x0 were `belief`: with eta = 1 of q(x_s | x_t, x0), with eta = 0 without new noise.

        Between them (eta in [0, 1]) part of the noise is new. `gen` is drawn from only if eta > 0.
        """
        ...

    def label(self, t: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """The noise level as the network is told it: dimensionless, of order one, on the CPU."""
        ...

    def loss(
        self,
        net: Network,
        clean: Shaped[Tensor, "batch chunk action"],
        ctx: Any,
        valid: Bool[Tensor, "batch chunk"],
        gen: Gen,
        given: Bool[Tensor, "batch chunk"] | None = None,
    ) -> Losses:
        """The training loss at random times and noise. Steps outside `valid` have no part in it.

        Those in `given` are clean whatever the time, and not asked for: training-time real-time chunking (arXiv 2512.05964).
        """
        ...
