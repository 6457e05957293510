"""Bins: physical actions to tokens and back, one vocabulary for each dimension (RT-1, arXiv 2212.06817)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from ...spec import KinoiseError, Stats
from .codec import RESOLUTION

PLACEMENTS = ("uniform", "quantile")
RANGES = ("auto", "full", "percentiles")
GRIPPERS = ("auto", "binary", "bins")

MOST = 4096

GLITCH = 8
"""Extremes this many times as far apart as the 1st and 99th percentiles are taken for errors of the recording."""

TWO_VALUED = 0.05
"""A command counts as one of two values when it lies this close to an end, as a share of the range."""


@dataclass
class BinsConfig:
    """How actions become tokens.

    The published range, from the 1st to the 99th percentile, clips what only a few of many tasks do: over LIBERO's spatial,
    object, goal and 10, one task of forty had 22 % of its turns about one axis cut to a fifth, and never succeeded.
    """

    count: int = field(default=256, metadata={"help": "bins of a dimension"})
    range: str = field(
        default="auto",
        metadata={
            "help": "full: from the least number to the greatest; percentiles: from the 1st to the 99th, as published; "
            f"auto: full, unless that is over {GLITCH} times as wide"
        },
    )
    placement: str = field(default="uniform", metadata={"help": "uniform: of equal width; quantile: of equally many actions"})
    gripper: str = field(
        default="auto",
        metadata={"help": "binary: a token of two; bins: like the others; auto: binary if it is only opened or closed"},
    )

    def __post_init__(self) -> None:
        if not 2 <= self.count <= MOST:
            raise KinoiseError(f"bins.count={self.count}: expected from 2 to {MOST}")
        for name, known in {"range": RANGES, "placement": PLACEMENTS, "gripper": GRIPPERS}.items():
            if getattr(self, name) not in known:
                raise KinoiseError(f"bins.{name}={getattr(self, name)}: expected one of {', '.join(known)}")


class Bins(nn.Module):
    """Dimension d of an action is token i of `sizes[d]` when it lies between edges i and i + 1; the outermost reach on.

    The numbers are buffers outside the state dict, as `Affine`'s are.

    Args:
        edges: of each dimension, ascending, one more than it has bins; physical units.
        centres: what each token stands for. The middle of its bin if None.
    """

    inner: Tensor
    ends: Tensor
    centres: Tensor

    def __init__(
        self, edges: Sequence[Float64[Tensor, "_"]], centres: Sequence[Float64[Tensor, "_"] | None] | None = None
    ) -> None:
        super().__init__()
        centres = centres or [None] * len(edges)
        self.sizes = tuple(len(item) - 1 for item in edges)
        middle = [(item[:-1] + item[1:]) / 2 if own is None else own for item, own in zip(edges, centres, strict=True)]
        buffers = {
            "inner": _padded([item[1:-1] for item in edges], float("inf")),
            "ends": torch.stack([item[[0, -1]] for item in edges]),
            "centres": _padded(middle, 0.0),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value.float().contiguous(), persistent=False)

    @classmethod
    def fit(cls, stats: Stats, config: BinsConfig, gripper: Sequence[int] = ()) -> Bins:
        """The bins of one data set's actions.

        Args:
            stats: of the actions.
            gripper: dimensions that open and close.

        A constant dimension has one token. Percentiles that coincide give way to the extremes, as in `quantile` scaling;
        equal shares of actions that would be a single bin, to bins of equal width.

        Raises:
            KinoiseError: statistics without the quantiles that `config` asks for.
        """
        edges, centres = [], []
        for index in range(len(stats.mean)):
            low, high = _range(stats, index, config.range)
            own, least, most = None, stats.min[index], stats.max[index]
            if most - least <= RESOLUTION * max(1.0, -least, most):
                edge, own = torch.tensor([least - 0.5, least + 0.5]), torch.tensor([least])
            elif index in gripper and _binary(stats, index, config.gripper):
                low, high = _percentiles(stats, index)
                edge, own = torch.tensor([low, (low + high) / 2, high]), torch.tensor([low, high])
            else:
                edge = torch.linspace(low, high, config.count + 1, dtype=torch.float64)
                if config.placement == "quantile":
                    spare = 0.0 if (low, high) == (least, most) else 0.01
                    shares = _equal_shares(_quantiles(stats, index, "bins.placement=quantile"), config.count, spare)
                    edge = shares if len(shares) > 2 else edge
            edges.append(edge.double())
            centres.append(None if own is None else own.double())
        return cls(edges, centres)

    @property
    def size(self) -> int:
        """Tokens of the largest vocabulary."""
        return self.centres.shape[1]

    def encode(self, actions: Float[Tensor, "batch *rows d"]) -> Int[Tensor, "batch *rows d"]:
        """The token of each number; what lies outside the bins goes to the nearest (`outside` counts it)."""
        columns = actions.float().flatten(0, -2).T.contiguous()
        return torch.searchsorted(self.inner, columns, right=True).T.reshape(actions.shape)

    def outside(self, actions: Float[Tensor, "batch *rows d"]) -> Float[Tensor, ""]:
        """The share of the numbers that lie outside their bins and are clipped by `encode`."""
        spare = 1e-6 * (self.ends[:, 1] - self.ends[:, 0])
        return ((actions < self.ends[:, 0] - spare) | (actions > self.ends[:, 1] + spare)).float().mean()

    def decode(self, tokens: Int[Tensor, "batch *rows d"]) -> Float[Tensor, "batch *rows d"]:
        """What the tokens stand for: the middle of a bin, one of the gripper's two commands, a constant."""
        return self.centres.gather(1, tokens.flatten(0, -2).T).T.reshape(tokens.shape)

    def expect(
        self, log_p: Float[Tensor, "batch *rows d size"], tokens: Int[Tensor, "batch *rows d"]
    ) -> Float[Tensor, "batch *rows d"]:
        """The mean of what the tokens stand for; where there are two or fewer, between which nothing lies, as `decode`."""
        mean = (log_p.exp() * self.centres).sum(-1)
        few = torch.tensor([size <= 2 for size in self.sizes], device=mean.device)
        return torch.where(few, self.decode(tokens), mean)


def _padded(rows: Sequence[Tensor], fill: float) -> Tensor:
    size = max(len(row) for row in rows)
    return torch.stack([F.pad(row, (0, size - len(row)), value=fill) for row in rows])


def _range(stats: Stats, index: int, how: str) -> tuple[float, float]:
    low, high = _percentiles(stats, index)
    least, most = stats.min[index], stats.max[index]
    full = how == "full" or (how == "auto" and most - least <= GLITCH * (high - low))
    return (least, most) if full else (low, high)


def _percentiles(stats: Stats, index: int) -> tuple[float, float]:
    """The 1st and the 99th; the extremes where these coincide."""
    low, high = stats.q01[index], stats.q99[index]
    least, most = stats.min[index], stats.max[index]
    return (low, high) if high - low > 1e-6 * max(most - least, abs(most), 1e-6) else (least, most)


def _quantiles(stats: Stats, index: int, wanted: str) -> Float64[Tensor, "n"]:
    if not stats.quantiles:
        raise KinoiseError(
            f"{wanted} needs the quantiles of the actions, and these statistics hold none: an older kinoise computed them. "
            "Collect or convert the data again, or set bins.placement=uniform and bins.gripper to binary or bins."
        )
    return torch.tensor(stats.quantiles[index], dtype=torch.float64)


def _binary(stats: Stats, index: int, how: str) -> bool:
    if how != "auto":
        return how == "binary"
    low, high = _percentiles(stats, index)
    share = (_quantiles(stats, index, "bins.gripper=auto") - low) / (high - low)
    return bool(((share < TWO_VALUED) | (share > 1 - TWO_VALUED)).all())


def _equal_shares(quantiles: Float64[Tensor, "n"], count: int, spare: float) -> Float64[Tensor, "edges"]:
    """Edges with equally many actions between neighbours, but for a share `spare` at each end; those that coincide are one."""
    places = torch.linspace(spare, 1 - spare, count + 1, dtype=torch.float64) * (len(quantiles) - 1)
    below = places.floor().long().clamp(max=len(quantiles) - 2)
    return torch.lerp(quantiles[below], quantiles[below + 1], places - below).unique()
