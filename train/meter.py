"""The numbers of the latest updates, left on the device until someone asks: reading one would stall a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..spec import KinoiseError
from .processes import Processes


class Meter:
    """Collects numbers per update.

    Args:
        remedy: what the error says to do when a number is not finite.
    """

    def __init__(self, processes: Processes, remedy: str) -> None:
        self._processes, self.remedy = processes, remedy
        self._names: list[str] = []
        self._rows: list[Tensor] = []

    def add(self, names: Sequence[str], values: Float[Tensor, "names"]) -> None:
        """One update's numbers; the same names each time."""
        self._names = list(names)
        self._rows.append(values)

    def means(self, step: int) -> dict[str, float]:
        """Means since the last `clear`, over all processes, all of which call this.

        Args:
            step: updates made so far, to name the one that went wrong.

        Raises:
            KinoiseError: a number that is not finite, with its update and the remedy.
        """
        if not self._rows:
            return {}
        rows = self._processes.total(torch.stack(self._rows).cpu().double()) / self._processes.count
        bad = ~rows.isfinite()
        if bad.any():
            row, column = (int(item) for item in bad.nonzero()[0])
            name, value = self._names[column], float(rows[row, column])
            raise KinoiseError(f"update {step - len(rows) + row + 1}: {name} is {value}. {self.remedy}")
        return dict(zip(self._names, rows.mean(0).tolist(), strict=True))

    def clear(self) -> None:
        self._rows.clear()
