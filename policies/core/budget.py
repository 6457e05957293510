"""Decoding against the clock: as many evaluations as there is time for."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from ...spec import KinoiseError
from .process.base import Belief, Denoise


class Budget:
    """The time that a plan may take, from now on.

    Args:
        seconds: until the plan has to be there.
        cost: of one evaluation, seconds, as measured before; None where nothing was.
    """

    def __init__(self, seconds: float, cost: float | None = None) -> None:
        if not seconds > 0:
            raise KinoiseError(f"budget={seconds}: expected seconds, more than 0")
        self._deadline, self._cost = time.perf_counter() + seconds, cost
        self.cut = False
        """Whether there was time for fewer steps than wanted."""

    @property
    def left(self) -> float:
        """Seconds; below 0 once they are over."""
        return self._deadline - time.perf_counter()

    def steps(self, most: int, each: int = 1) -> int:
        """How many steps there is time for: at least one, at most `most`, and `most` while an evaluation's cost is not known.

        Args:
            each: evaluations in a step.
        """
        found = max(1, int(min(most, self.left / (each * self._cost)))) if self._cost else most
        self.cut = found < most
        return found

    def keep(self, denoise: Denoise) -> Denoise:
        """`denoise`, which gives its last belief again where another evaluation would end too late.

        With a belief that stays the same every sampler goes straight to it, so that the plan is whole whenever this happens.
        Only the first evaluation, without which there is no plan, can end too late, or one that takes longer than those before.
        """
        last: list[Belief] = []
        longest = 0.0

        def asked(x: Tensor, t: Tensor) -> Belief:
            nonlocal longest
            if last and self.left < longest:
                return last[0]
            begin = time.perf_counter()
            last[:] = [denoise(x, t)]
            if x.is_cuda:  # kernels are only queued by then
                torch.cuda.synchronize(x.device)
            longest = max(longest, time.perf_counter() - begin)
            return last[0]

        return asked
