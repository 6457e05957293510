"""How long a plan takes in the simulator's time: nothing, always the same, or drawn anew for every plan."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from ..config import UsageError
from ..files import read_json
from ..spec import Spec

CONSTANT, MEASURED = "constant", "measured"
FAMILIES = {"normal": "mean,deviation", "uniform": "low,high", "lognormal": "median,sigma"}
HELP = f"0.15, {', '.join(f'{name}:{values.upper()}' for name, values in FAMILIES.items())}, {MEASURED}, or a FILE of samples"
ESTIMATE = 0.95
"""The share of plans that is to be there as early as is reckoned with."""


@dataclass(frozen=True)
class Latency:
    """A distribution of seconds.

    Args:
        text: as it is given to a command.
        kind: `constant`, a key of FAMILIES, or `samples`.
        values: the parameters, or the samples, all of them equally probable, in ascending order.
    """

    text: str = "0"
    kind: str = CONSTANT
    values: tuple[float, ...] = (0.0,)

    def quantile(self, share: float) -> float:
        """The seconds that this share of the plans takes at most; never negative: a normal distribution is cut off at 0.

        Args:
            share: in [0, 1).
        """
        share = min(max(share, 1e-12), 1 - 1e-12)
        first, last = self.values[0], self.values[-1]
        if self.kind == "normal":
            return max(0.0, first + last * NormalDist().inv_cdf(share))
        if self.kind == "lognormal":
            return first * math.exp(last * NormalDist().inv_cdf(share))
        if self.kind == "uniform":
            return first + (last - first) * share
        return self.values[math.ceil(share * len(self.values)) - 1]


@dataclass(frozen=True)
class Late:
    """How many steps plans come late in one robot's time.

    Args:
        latency: in seconds, rounded up to steps.
        spec: the robot's; its rate is that of the steps.
    """

    latency: Latency
    spec: Spec

    @property
    def estimate(self) -> int:
        """Steps that a plan is reckoned to take before it is there: the 95th percentile, which is exact for a constant."""
        return self._steps(ESTIMATE)

    def delays(self, seed: int) -> Iterator[int]:
        """Steps, one draw for each plan of the episode with this seed, which no other episode shares."""
        gen = np.random.default_rng(np.random.SeedSequence([seed, 3]))
        while True:
            yield self._steps(gen.random())

    def _steps(self, share: float) -> int:
        return math.ceil(self.latency.quantile(share) * self.spec.rate - 1e-9)


def parse_latency(text: str | float) -> Latency | None:
    """The distribution that `latency=` asks for; None for `measured`, which has to be measured first.

    `0.15` is a constant; `normal:0.1,0.03`, `uniform:0.05,0.2` and `lognormal:MEDIAN,SIGMA` (sigma of the logarithm) are drawn
    from; anything else is a file: a JSON list of seconds, or the result.json of an evaluation that drew from samples.

    Raises:
        UsageError: numbers that no latency can have, a file that holds no samples.
        KinoiseError: a file that can't be read.
    """
    text = str(text).strip()
    if text == MEASURED:
        return None
    kind, colon, rest = text.partition(":")
    if colon and kind in FAMILIES:
        values = _numbers(text, rest.split(","))
        if len(values) != 2 or (kind == "uniform" and values[0] > values[1]):
            raise UsageError(f"latency={text}: expected {kind}:{FAMILIES[kind]}")
        return Latency(text, kind, values)
    try:
        float(text)
    except ValueError:
        return _from_file(text)
    values = _numbers(text, [text])
    return Latency(str(values[0]).removesuffix(".0"), CONSTANT, values)


def samples(text: str, seconds: Sequence[Any]) -> Latency:
    """What was measured, as a distribution. Raises UsageError when there is nothing, or something that is no time."""
    if not seconds:
        raise UsageError(f"latency={text}: no samples")
    return Latency(text, "samples", tuple(sorted(_numbers(text, seconds))))


def _from_file(text: str) -> Latency:
    if not Path(text).is_file():
        raise UsageError(f"latency={text}: neither a file nor one of {HELP}")
    found = read_json(Path(text))
    if isinstance(found, dict):
        found = found.get("latency")
        found = found.get("samples_s") if isinstance(found, dict) else None
    if not isinstance(found, list):
        raise UsageError(f"latency={text}: expected a JSON list of seconds, or a result with latency.samples_s")
    return samples(text, found)


def _numbers(text: str, values: Sequence[Any]) -> tuple[float, ...]:
    try:
        found = tuple(float(item) for item in values)
    except (TypeError, ValueError):
        found = ()
    if not found or not all(0 <= item < math.inf for item in found):
        raise UsageError(f"latency={text}: expected seconds, at least 0: {HELP}")
    return found
