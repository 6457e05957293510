"""The numbers of the latest updates, left on the device until someone asks: reading one would stall a GPU."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

from ..spec import KinoiseError


class Meter:
    """Collects scalars per update.

    Args:
        remedy: what the error says to do when a number is not finite.
    """

    def __init__(self, accelerator: Accelerator, remedy: str) -> None:
        self._accelerator, self.remedy = accelerator, remedy
        self._names: list[str] = []
        self._rows: list[Tensor] = []

    def add(self, values: Mapping[str, Tensor]) -> None:
        """One update's scalars; the same names each time."""
        self._names = list(values)
        self._rows.append(torch.stack([item.detach() for item in values.values()]))

    def means(self, step: int) -> dict[str, float]:
        """Means since the last `clear`, over all processes.

        Args:
            step: updates made so far, to name the one that went wrong.

        Raises:
            KinoiseError: a number that is not finite, with its update and the remedy.
        """
        if not self._rows:
            return {}
        rows = self._accelerator.reduce(torch.stack(self._rows), "mean")
        assert isinstance(rows, Tensor)
        rows = rows.cpu().double()
        bad = ~rows.isfinite()
        if bad.any():
            row, column = (int(item) for item in bad.nonzero()[0])
            name, value = self._names[column], float(rows[row, column])
            raise KinoiseError(f"update {step - len(rows) + row + 1}: {name} is {value}. {self.remedy}")
        return dict(zip(self._names, rows.mean(0).tolist(), strict=True))

    def clear(self) -> None:
        self._rows.clear()
