"""The ways to plan that `benchmarks.decode` compares, from one checkpoint: what they change, and the caches fitted to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from kinoise.config import UsageError

from .rows import GREEDY

if TYPE_CHECKING:  # worker processes import the benchmarks too: they are not to load torch
    from kinoise.data.base import EpisodeStore
    from kinoise.policies import Policy
    from kinoise.policies.core.schedules import Features
    from kinoise.policies.decode import DecodeConfig

FULL, SHORT, CACHED = "full", "short", "cached"
SAME_COMPUTE, SAME_TIME = "same_compute", "same_time"
WARM, COMPILED, EVERYTHING = "warm", "compiled", "everything"

TWINS = {COMPILED: SHORT, EVERYTHING: WARM}
"""Rows of a compiled policy, and those that plan the same without."""

PLAIN: dict[str, Any] = {"guidance": 1.0, "warm": 1.0, "gate": None, "cache": "none", "cache_order": 0}
"""What every way begins with, whatever the checkpoint says."""


class Fit(NamedTuple):
    """A schedule to be fitted."""

    method: str
    budget: int


class Way(NamedTuple):
    """What a row changes, and the curve that it is a point of. `fit` makes its cache, if it has a fitted one."""

    method: str
    changes: Mapping[str, Any]
    fit: Fit | None = None


class Kind(NamedTuple):
    """What is usual for one kind of policy.

    Args:
        chains: plans that caches are for, by the prefix of their rows' names.
        few: what steps without a cache take: the row `short`, and others of the same kind.
        budget: evaluations that compute a branch.
        steps, budgets: of further points on the curves.
    """

    name: str
    chains: Mapping[str, dict[str, Any]]
    few: dict[str, Any]
    budget: int
    steps: Sequence[int]
    budgets: Sequence[int]


CONTINUOUS = Kind(
    "DDIM",
    {"": {"sampler": "ddpm", "steps": 100}, "ddim_": {"sampler": "ddim", "steps": 100}},
    {"sampler": "ddim", "steps": 10},
    10,
    (3, 5),
    (5, 20),
)
TOKENS = Kind("rounds", {"": {**GREEDY, "steps": 12}}, {**GREEDY, "steps": 4}, 4, (2, 8), (2, 6))


def ways(kind: Kind, budget: int, steps: Sequence[int], budgets: Sequence[int]) -> dict[str, Way]:
    """By name, all but those that depend on what is fitted or measured."""
    curves = {prefix: "DDPM" if chain["sampler"] == "ddpm" else kind.name for prefix, chain in kind.chains.items()}
    found = {FULL: Way(curves[""], kind.chains[""]), SHORT: Way(kind.name, kind.few)}
    for few in steps:
        found[f"{SHORT}_{few}"] = Way(kind.name, {**kind.few, "steps": few})
    for prefix, chain in kind.chains.items():
        on = f" on {curves[prefix]}" if len(kind.chains) > 1 else ""
        if prefix:
            found[f"{prefix}{FULL}"] = Way(curves[prefix], chain)
        every = {**chain, "cache": "every", "cache_every": -(-chain["steps"] // budget)}
        found[f"{prefix}{CACHED}"] = Way(f"adaptive{on}", chain, Fit("adaptive", budget))
        found[f"{prefix}{CACHED}_order1"] = Way(f"adaptive, order 1{on}", {**chain, "cache_order": 1}, Fit("adaptive", budget))
        found[f"{prefix}uniform"] = Way(f"uniform{on}", every)
        found[f"{prefix}uniform_order1"] = Way(f"uniform, order 1{on}", {**every, "cache_order": 1})
        found[f"{prefix}smooth"] = Way(f"smooth{on}", chain, Fit("smooth", budget))
    chain = kind.chains[""]
    for other in budgets:
        if other != budget:
            on = f" on {curves['']}" if len(kind.chains) > 1 else ""
            found[f"{CACHED}_{other}"] = Way(f"adaptive{on}", chain, Fit("adaptive", other))
    return found


def chosen(names: Sequence[str], only: Sequence[str] | None) -> list[str]:
    """Those asked for, in the order of `names`; `full` and `short` in any case. Raises UsageError for names that are none."""
    unknown = [name for name in only or [] if name not in names]
    if unknown:
        raise UsageError(f"only={unknown}: the rows are {', '.join(names)}")
    return [name for name in names if only is None or name in (FULL, SHORT, *only)]


class Fitter:
    """Fits caches as `kinoise fit-cache` does; what is recorded of one sampler serves all its schedules.

    Args:
        windows, union, seed: see `kinoise fit-cache`.
    """

    def __init__(self, policy: Policy, store: EpisodeStore, *, windows: int, union: int, seed: int) -> None:
        from kinoise.policies.caching import fingerprint

        self.policy, self.store = policy, store
        self.about = {"run": "", "data": "", "windows": windows, "union": union, "seed": seed}
        self._features: dict[tuple[str, int], Features] = {}
        self._weights = fingerprint(policy)

    def __call__(self, decode: DecodeConfig, fit: Fit) -> DecodeConfig:
        """`decode` with a schedule for it. Raises KinoiseError for a budget that isn't below its evaluations."""
        from kinoise.eval import fit_cache
        from kinoise.policies.decode import CacheSchedule

        settings = fit_cache.Settings(**self.about, method=fit.method, budget=fit.budget)  # type: ignore[arg-type]
        self.policy.config.decode = decode
        key = decode.sampler, self.policy.evaluations
        if key not in self._features:
            self._features[key] = fit_cache.features(self.policy, self.store, settings)[0]
        schedule = fit_cache.fit(self._features[key], settings)
        return replace(decode, cache="fitted", schedule=CacheSchedule(fit.method, *key, self._weights, schedule))
