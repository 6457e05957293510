"""What a plan's network evaluations need not compute again: the outputs of residual branches, kept from one to the next.

Block-wise adaptive caching (arXiv 2506.13456), FORA (arXiv 2407.01425), SmoothCache (arXiv 2411.10510) and TaylorSeer
(arXiv 2503.06923) differ in when a branch is computed anew and in what stands for it meanwhile; `schedules` finds the former.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

BRANCHES = ("attention", "cross", "feedforward")


def site(block: int, branch: str) -> str:
    """The name of a residual branch: `0.attention`."""
    return f"{block}.{branch}"


Keep = Callable[[str, Callable[[], Tensor]], Tensor]
"""`keep(branch, compute)`: how a cache stands between a block's branch and what it gives."""


def _computed(branch: str, compute: Callable[[], Tensor]) -> Tensor:
    return compute()


COMPUTED: Keep = _computed
"""Without a cache: every branch is computed."""


def keeping(cache: FeatureCache | None, block: int) -> Keep:
    """A block's."""
    if cache is None:
        return COMPUTED
    return lambda branch, compute: cache.residual(site(block, branch), compute)


Refresh = Callable[[str, int], bool]
"""`refresh(site, evaluation)`: whether a branch is computed. Evaluations count from 0, in which all are whatever it says."""


class Every:
    """All branches in every n-th evaluation (FORA)."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self, site: str, evaluation: int) -> bool:
        return evaluation % self.n == 0


class Fitted:
    """Each branch in the evaluations listed for it."""

    def __init__(self, refresh: Mapping[str, Sequence[int]]) -> None:
        self._refresh = {name: frozenset(when) for name, when in refresh.items()}

    def __call__(self, site: str, evaluation: int) -> bool:
        return evaluation in self._refresh[site]


class FeatureCache:
    """The branches' outputs over the evaluations of one plan.

    Args:
        refresh: when they are computed.
        order: 0 takes the last output for those between; n extrapolates the polynomial of that degree through the last n + 1
            (TaylorSeer, whose finite differences this is where refreshes are equally far apart).
    """

    def __init__(self, refresh: Refresh, order: int = 0) -> None:
        self.refresh, self.order = refresh, order
        self.evaluation = -1
        self._known: dict[str, list[tuple[int, Tensor]]] = {}

    def advance(self) -> None:
        """To the next evaluation, or the first."""
        self.evaluation += 1

    def residual(self, site: str, compute: Callable[[], Tensor]) -> Tensor:
        """The branch's output in this evaluation: computed, or what stands for it."""
        known = self._known.get(site)
        if known is None or self.refresh(site, self.evaluation):
            value = compute()
            # What is kept takes no part in gradients: those of an evaluation end with it.
            self._known[site] = [*(known or [])[-self.order or len(known or []) :], (self.evaluation, value.detach())]
            return value
        if len(known) == 1:
            return known[0][1]
        total: Tensor | None = None
        for (_, value), weight in zip(known, extrapolation([at for at, _ in known], self.evaluation), strict=True):
            total = value * weight if total is None else total.add(value, alpha=weight)
        assert total is not None
        return total


class Recorder(FeatureCache):
    """Computes everything, and keeps it: what schedules are fitted to."""

    def __init__(self) -> None:
        super().__init__(Every(1))
        self.features: dict[str, list[Tensor]] = {}

    def residual(self, site: str, compute: Callable[[], Tensor]) -> Tensor:
        value = compute()
        self.features.setdefault(site, []).append(value)
        return value


def extrapolation(times: Sequence[int], now: int) -> list[float]:
    """Lagrange's weights: the polynomial through values at `times` has their weighted sum as its value `now`."""
    weights = []
    for mine in times:
        weight = 1.0
        for other in times:
            weight *= (now - other) / (mine - other) if other != mine else 1.0
        weights.append(weight)
    return weights
