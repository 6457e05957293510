"""The average of the weights over training: what gets evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch import _foreach_copy_ as copy_all  # pyright: ignore[reportPrivateImportUsage]
from torch import _foreach_lerp_ as lerp_all  # pyright: ignore[reportPrivateImportUsage]

from ..spec import KinoiseError
from .parallel import own, put


class Ema:
    """An exponential moving average whose memory grows with training (diffusion_policy's `ema_model.py`).

    Args:
        parameters: the live weights by name, or this process's shares; updated in place by an optimiser.
        power: after n updates the decay is 1 - (1 + n)^-power, so the first update copies; 3/4 suits up to a million steps.
        maximum: bound of the decay.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], power: float = 0.75, maximum: float = 0.9999) -> None:
        self.power, self.maximum = power, maximum
        self._names = list(parameters)
        live = [item.detach() for item in parameters.values()]
        self._whole = [item.clone() for item in live]
        self._live, self._average = [own(item) for item in live], [own(item) for item in self._whole]

    def decay(self, updates: int) -> float:
        """The share of the average that survives the update after `updates` earlier ones."""
        return min(1.0 - (1.0 + updates) ** -self.power, self.maximum)

    def update(self, updates: int) -> None:
        """average <- decay * average + (1 - decay) * live; a few fused operations for all weights."""
        lerp_all(self._average, self._live, 1.0 - self.decay(updates))

    def state(self) -> dict[str, Tensor]:
        """The averages by name; not copies."""
        return dict(zip(self._names, self._whole, strict=True))

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes the averages out of `state`, which holds whole tensors, or more.

        Raises KinoiseError when one is missing or of another shape.
        """
        absent = [name for name in self._names if name not in state]
        if absent:
            raise KinoiseError(f"the averaged weights lack {absent}: the checkpoint is from another policy. Take an older one.")
        for name, item in zip(self._names, self._whole, strict=True):
            if state[name].shape != item.shape:
                raise KinoiseError(
                    f"the averaged weight {name} has shape {list(state[name].shape)}, expected {list(item.shape)}: "
                    "the checkpoint is damaged or another policy's. Take an older one."
                )
        for name, item in zip(self._names, self._whole, strict=True):
            put(item, state[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The live weights are the averages within the block, and afterwards exactly what they were."""
        kept = [item.clone() for item in self._live]
        copy_all(self._live, self._average)
        try:
            yield
        finally:
            copy_all(self._live, kept)
