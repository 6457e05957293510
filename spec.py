"""The shared vocabulary: what a robot observes and does (Spec), and what flows between the rooms.

Everything here is in physical units. Normalisation is the codec's business, inside a policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import torch
    from jaxtyping import Bool, Float, Int

Kind = Literal["state", "image"]

OBJECT = {
    "category": "1",
    **dict.fromkeys(("dx", "dy", "dz"), "m"),
    **dict.fromkeys(("x", "y", "z"), "m"),
    **dict.fromkeys(("r00", "r10", "r20", "r01", "r11", "r21"), "1"),
}
"""What a list of objects says of each, and its unit: the index of its category, -1 for an empty row; its position relative to
the gripper and to the robot's base, along the base's axes; the first two columns of its rotation."""

MOST_NUMBERS = 2**31
"""That one step of a feature may hold."""


class KinoiseError(Exception):
    """An error whose message names what was expected, what came, and the remedy. The CLI prints it as one line."""


class SpecMismatch(KinoiseError):
    """Two specs that have to agree do not."""


@dataclass(frozen=True)
class Feature:
    """One array of the robot's interface.

    Args:
        shape: without time; `(d,)` for state, `(height, width, 3)` for images.
        kind: `state` is float32; `image` is uint8 RGB in [0, 255], row 0 at the top.
        names: one per dimension for state, else empty.
        unit: "m", "rad", "1" for dimensionless; one for the feature, or one per dimension.
        low, high: bounds per dimension, where they exist.
        categories: for a list of objects, the kinds there are. It is a state of `rows * len(OBJECT)` numbers, a row for each
            object, in no particular order; so scenes with different objects have the same spec.
    """

    shape: tuple[int, ...]
    kind: Kind = "state"
    names: tuple[str, ...] = ()
    unit: tuple[str, ...] = ()
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    categories: tuple[str, ...] = ()

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8 if self.kind == "image" else np.float32)


@dataclass(frozen=True)
class Spec:
    """What a policy sees and commands; equal on both sides, or the policy cannot run there.

    Args:
        observations: features by key, in a fixed order.
        action: the action vector; `low`/`high` are its physical bounds.
        control: what an action means: `absolute`, `relative` (to the current observation) or `delta` (per step).
        rate: control steps per second (Hz).
        gripper: indices of the gripper's dimensions in the action.
        language: whether an instruction comes with every observation.
    """

    observations: dict[str, Feature]
    action: Feature
    rate: float
    control: Literal["absolute", "relative", "delta"] = "delta"
    gripper: tuple[int, ...] = ()
    language: bool = True

    @property
    def action_dim(self) -> int:
        return self.action.shape[0]

    def select(self, keys: Collection[str]) -> Spec:
        """This spec with only the observations in `keys`; those it lacks are left for `differences` to name."""
        return replace(self, observations={key: item for key, item in self.observations.items() if key in keys})

    def shown_to(self, policy: Spec) -> Spec:
        """What of this a policy with that spec is shown: its observations, and no instruction where it takes none."""
        return replace(self.select(policy.observations), language=self.language and policy.language)

    def differences(self, other: Spec, names: tuple[str, str] = ("expected", "found")) -> list[str]:
        """Every point at which `other` differs, a line each; empty when a policy for one runs on the other."""
        a, b = names
        lines = []
        for key in sorted(self.observations.keys() | other.observations.keys()):
            mine, theirs = self.observations.get(key), other.observations.get(key)
            if mine is None or theirs is None:
                lines.append(f"observation '{key}': only in {a if theirs is None else b}")
            else:
                lines += _feature_differences(f"observation '{key}'", mine, theirs, names)
        lines += _feature_differences("action", self.action, other.action, names)
        for name in ("rate", "control", "gripper", "language"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                lines.append(f"{name}: {a} {mine}, {b} {theirs}")
        return lines

    def require(self, other: Spec, names: tuple[str, str]) -> None:
        """Raises SpecMismatch with every difference, if there is one."""
        lines = self.differences(other, names)
        if lines:
            raise SpecMismatch(
                f"the {names[0]} does not match the {names[1]}: {'; '.join(lines)}. "
                f"Use a matching {names[1]}, or train on data from this one."
            )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Spec:
        """Raises KinoiseError for unknown or missing keys, and for values that are not what they should be."""
        _check_keys(cls, value, "spec")
        _check_kinds(value, _SPEC, "spec")
        observations = {key: _feature_from_json(item) for key, item in value["observations"].items()}
        rest = {key: item for key, item in value.items() if key not in ("observations", "action", "gripper")}
        return cls(
            observations=observations,
            action=_feature_from_json(value["action"]),
            gripper=tuple(value.get("gripper", ())),
            **rest,
        )


def _feature_differences(label: str, mine: Feature, theirs: Feature, names: tuple[str, str]) -> list[str]:
    return [
        f"{label} {item.name}: {names[0]} {getattr(mine, item.name)}, {names[1]} {getattr(theirs, item.name)}"
        for item in fields(Feature)
        if getattr(mine, item.name) != getattr(theirs, item.name)
    ]


def _feature_from_json(value: Any) -> Feature:
    _check_keys(Feature, value, "spec feature")
    _check_kinds(value, _FEATURE, "spec feature")
    return Feature(**_tuples(value))


def _tuples(value: dict[str, Any]) -> dict[str, Any]:
    return {key: _tuple(item) for key, item in value.items()}


def _tuple(item: Any) -> Any:
    return tuple(_tuple(part) for part in item) if isinstance(item, list) else item


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _list_of(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(_is(item, kind) for item in value)


_numbers, _texts, _whole = _list_of(Real), _list_of(str), _list_of(Integral)
_Kinds = dict[str, tuple[Callable[[Any], bool], str]]
_FEATURE: _Kinds = {
    "shape": (
        lambda value: _whole(value) and all(size >= 0 for size in value) and math.prod(value) <= MOST_NUMBERS,
        f"whole numbers of at least 0, at most {MOST_NUMBERS} numbers in all",
    ),
    "kind": (lambda value: value in ("state", "image"), "state or image"),
    **dict.fromkeys(("names", "unit", "categories"), (_texts, "a list of texts")),
    **dict.fromkeys(("low", "high"), (lambda value: value is None or _numbers(value), "a list of numbers, or nothing")),
}
_SPEC: _Kinds = {
    "observations": (lambda value: isinstance(value, dict) and all(map(_text, value)), "features by key"),
    "rate": (lambda value: _is(value, Real), "a number"),
    "control": (lambda value: value in ("absolute", "relative", "delta"), "absolute, relative or delta"),
    "gripper": (_whole, "a list of whole numbers"),
    "language": (lambda value: _is(value, bool), "true or false"),
}
_STATS: _Kinds = {
    **dict.fromkeys(("mean", "std", "min", "max", "q01", "q99"), (_numbers, "a list of numbers")),
    "count": (lambda value: _is(value, Integral), "a whole number"),
    "quantiles": (lambda value: isinstance(value, list | tuple) and all(map(_numbers, value)), "lists of numbers"),
}


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _check_kinds(value: dict[str, Any], kinds: _Kinds, label: str) -> None:
    """Raises KinoiseError for the first value that is something else than it should be: a file or a peer may say anything."""
    for key, (fits, expected) in kinds.items():
        if key in value and not fits(value[key]):
            came = str(value[key])[:80] if not isinstance(value[key], list | dict) else f"a {type(value[key]).__name__}"
            raise KinoiseError(f"{label}: '{key}' has to be {expected}, came {came}. The file was damaged: write it again.")


def _check_keys(cls: type, value: Any, label: str) -> None:
    if not isinstance(value, dict):
        raise KinoiseError(f"{label}: expected an object with keys, came {value}. The file was damaged: write it again.")
    known = {item.name for item in fields(cls)}
    needed = {item.name for item in fields(cls) if item.default is MISSING and item.default_factory is MISSING}
    unknown, missing = sorted(value.keys() - known), sorted(needed - value.keys())
    if unknown:
        raise KinoiseError(f"{label}: unknown keys {unknown}; known are {sorted(known)}. Was it written by a newer kinoise?")
    if missing:
        raise KinoiseError(f"{label}: keys {missing} are missing. The file was cut short or edited: write it again.")


@dataclass(frozen=True)
class Stats:
    """Statistics of one feature over a data set, in physical units, one number per dimension (per channel for images).

    `q01` and `q99` are the 1st and 99th percentiles; `count` is the number of time steps. `quantiles` are those from 0 to 1 in
    equal steps of probability, a row for each dimension; only actions have them.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]
    count: int
    quantiles: tuple[tuple[float, ...], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Stats:
        """Raises KinoiseError for unknown or missing keys, and for values that are not what they should be."""
        _check_keys(cls, value, "statistics")
        _check_kinds(value, _STATS, "statistics")
        return cls(**_tuples(value))


@dataclass(frozen=True)
class Observation:
    """A batch of observation histories.

    Args:
        values: by key; state `[batch, history, d]` float32 in physical units,
            images `[batch, history, height, width, 3]` uint8.
            The last history index is now.
        texts: the distinct instructions of the batch.
        text: for each row the index of its instruction in `texts`; None when the spec has no language.
    """

    values: dict[str, torch.Tensor]
    texts: tuple[str, ...] = ()
    text: Int[torch.Tensor, "batch"] | None = None

    @property
    def batch(self) -> int:
        return next(iter(self.values.values())).shape[0]

    def rows(self, rows: list[int]) -> Observation:
        """The batch of these rows."""
        text = None if self.text is None else self.text[rows]
        return Observation({key: item[rows] for key, item in self.values.items()}, self.texts, text)


@dataclass(frozen=True)
class Batch:
    """What a loss is computed from: an observation, the demonstrated chunk that follows, and which of it is real."""

    observation: Observation
    actions: Float[torch.Tensor, "batch chunk action"]
    valid: Bool[torch.Tensor, "batch chunk"]


@dataclass(frozen=True)
class Plan:
    """A chunk of actions to carry out, one plan per batch row.

    Args:
        actions: physical units.
        t0: time of the first action, seconds on the caller's clock (0 where the caller has none).
        dt: seconds between actions.
        obs_time: time of the observation that the plan answers.
        nfe: network evaluations spent, each of them on the whole batch, or on those of its rows that a gate sent back to noise.
        nfe_rows: for each row, how many of them it needed; empty where all needed all.
        confidence: how sure the policy was of each number, from 0 to 1, where it knows; a warm start goes by it.
        surprise: for each row of a warm start, how far the first belief was from the guess (RMS, normalised actions).
        cold: for each row, whether it was decoded from noise because of that; empty where there was no gate.
        timing: seconds per stage (`encode`, `denoise`) and of an `evaluation`, measured by the policy.
    """

    actions: Float[torch.Tensor, "batch chunk action"]
    dt: float
    nfe: int
    t0: float = 0.0
    obs_time: float = 0.0
    nfe_rows: tuple[int, ...] = ()
    confidence: Float[torch.Tensor, "batch chunk action"] | None = None
    surprise: tuple[float, ...] = ()
    cold: tuple[bool, ...] = ()
    timing: dict[str, float] = field(default_factory=dict)

    def row(self, row: int) -> Plan:
        """One row of the batch, with the evaluations that it needed."""
        rows = slice(row, row + 1)
        return replace(
            self,
            actions=self.actions[rows],
            nfe=self.nfe_rows[row] if self.nfe_rows else self.nfe,
            nfe_rows=(),
            confidence=None if self.confidence is None else self.confidence[rows],
            surprise=self.surprise[rows],
            cold=self.cold[rows],
        )
