"""A grid whose times stay Python numbers while a sampler is traced."""

from __future__ import annotations

from torch import Tensor


class Times(Tensor):
    """One time or several. Samplers look coefficients up by a time's value, and a tracer knows no values of tensors."""

    value: float
    moments: tuple[Times, ...]

    @classmethod
    def of(cls, grid: Tensor) -> Times:
        """`grid`, which is not being traced yet."""
        times = grid.detach().as_subclass(cls)
        if grid.ndim:
            times.moments = tuple(cls.of(one) for one in grid.unbind())
        else:
            times.value = grid.item()
        return times

    def unbind(self, dim: int = 0) -> tuple[Tensor, ...]:
        return self.moments

    def __float__(self) -> float:
        return self.value
