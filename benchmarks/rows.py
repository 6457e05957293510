"""The ways to decode one discrete_vla that `benchmarks.decoding` compares. Imports torch only when policies are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kinoise.config import UsageError
from kinoise.spec import KinoiseError

from .played import Row

REFERENCE, AGAINST = "max_12", "against"

GREEDY: dict[str, Any] = {
    "sampler": "reveal",
    "steps": 12,
    "guidance": 1.0,
    "warm": 1.0,
    "confidence": "max",
    "temperature": 0.0,
    "noise": "tokens",
    "threshold": 0.0,
    "residual": 1.0,
    "adaptive": 1.0,
    "adaptive_by": "spread",
    "value": "expectation",
}
"""How `max_12` decodes, whatever the checkpoint says."""

ROWS: dict[str, dict[str, Any]] = {
    REFERENCE: {},
    "one_shot": {"steps": 1},
    "max_2": {"steps": 2},
    "max_4": {"steps": 4},
    "max_8": {"steps": 8},
    "random_12": {"confidence": "random"},
    "gap_12": {"confidence": "gap"},
    "mass_12": {"confidence": "mass"},
    "spread_12": {"confidence": "spread"},
    "autoregressive": {"sampler": "autoregressive"},
    "ancestral_12": {"sampler": "ancestral", "value": "centre"},
    "temperature_tokens": {"temperature": 1.0, "noise": "tokens", "value": "centre"},
    "temperature_ranks": {"temperature": 1.0, "noise": "ranks"},
    "centre": {"value": "centre"},
    "threshold": {"threshold": 0.1},
    "residual": {"residual": 0.3},
    "threshold_residual": {"threshold": 0.1, "residual": 0.3},
}
"""Changes to GREEDY, by row. `adaptive` adds two for each bound: of at most 12 rounds, and of 6."""


def changes(adaptive: Sequence[float], only: Sequence[str] | None, against: bool) -> dict[str, dict[str, Any]]:
    """What each row changes, the reference first, another policy (which changes nothing) second.

    Raises UsageError for names in `only` that are none.
    """
    found = {REFERENCE: ROWS[REFERENCE], **({AGAINST: {}} if against else {}), **ROWS}
    found |= {f"adaptive_{bound:g}": {"adaptive": bound} for bound in adaptive}
    found |= {f"adaptive_{bound:g}_of_6": {"adaptive": bound, "steps": 6} for bound in adaptive}
    unknown = [name for name in only or [] if name not in found]
    if unknown:
        raise UsageError(f"only={unknown}: the rows are {', '.join(found)}")
    return {name: item for name, item in found.items() if only is None or name in (REFERENCE, *only)}


def load(run: str, against: str | None, execute: int | None, wanted: dict[str, dict[str, Any]]) -> list[Row]:
    """The rows with their policies, that of `run` loaded once.

    Args:
        wanted: see `changes`.
        execute: actions carried out of plans by `run`; its own number if None.

    Raises:
        KinoiseError: `run` is no discrete_vla, no checkpoint is there, or it refuses how a row decodes.
    """
    from kinoise.policies.checkpoint import identity, load_policy, resolve
    from kinoise.policies.discrete_vla import DiscreteVLAPolicy

    checkpoint = resolve(run)
    policy = load_policy(checkpoint)
    if not isinstance(policy, DiscreteVLAPolicy):
        raise KinoiseError(f"{run} is a {policy.config.name}: expected a discrete_vla, whose decodings are compared")
    who, execute, rows = identity(policy, checkpoint), policy.config.execute if execute is None else execute, []
    for name, change in wanted.items():
        if name == AGAINST and against is not None:
            place = resolve(against)
            other = load_policy(place)
            rows.append(Row(name, other, other.config.decode, other.config.execute, place, identity(other, place), None))
        else:
            decode = replace(policy.config.decode, **GREEDY | change)
            rows.append(Row(name, policy, decode, execute, checkpoint, who, change))
    return rows
