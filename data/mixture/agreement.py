"""Whether data sets can be trained on together: one spec out of several, or everything that stands against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ...spec import Feature, Spec, SpecMismatch

OPTIONAL = ("names", "unit", "low", "high")
"""What a feature may leave out."""

EACH = "set normalise: each if these are robots whose numbers differ, or write one again with the other's names, units, bounds"
REMEDIES = {
    ": only in ": "rename observations, or leave out with keys what only some have",
    " shape: ": "leave out with keys what has different shapes; actions have to be equally long",
    " kind: ": "give a state and an image different names with rename, or leave them out with keys",
    "rate: ": "say rate where the files are wrong about it; nothing is resampled",
    "control: ": "say control where the files are wrong about it",
    "gripper: ": "say gripper, the indices of its dimensions in the action",
    "language: ": "give the data set that lacks instructions one, with instruction",
    " unit: ": EACH,
    " low: ": EACH,
    " high: ": EACH,
    " names: ": EACH,
}


def agreed(specs: Mapping[str, Spec], each: bool = False) -> Spec:
    """The spec of data sets taken together.

    The order of the observations is the first one's. Names, units and bounds that one data set lacks are those of the others.
    Everything that two of them say has to be the same; `each` lifts that from names, units and bounds, where the first one's
    hold then.

    Args:
        specs: of the data sets, by name.

    Raises:
        SpecMismatch: every difference between the first and the others, and what to do.
    """
    (first, spec), *others = specs.items()
    lines, common = [], spec
    for name, other in others:
        common = _filled(common, other)
        theirs = _as(other, common) if each else _filled(other, common)
        lines += common.differences(theirs, (first, name))
    if lines:
        remedies = [text for sign, text in REMEDIES.items() if any(sign in line for line in lines)]
        raise SpecMismatch(f"the data sets differ: {'; '.join(lines)}. What to do: {'; '.join(dict.fromkeys(remedies))}.")
    return spec if each else common


def _filled(spec: Spec, other: Spec) -> Spec:
    """`spec` with what its features lack and those of `other` have."""

    def one(mine: Feature, theirs: Feature | None) -> Feature:
        if theirs is None or (mine.shape, mine.kind) != (theirs.shape, theirs.kind):
            return mine
        return replace(mine, **{name: getattr(mine, name) or getattr(theirs, name) for name in OPTIONAL})

    return _mapped(spec, one, other)


def _as(spec: Spec, other: Spec) -> Spec:
    """`spec` with the names, units and bounds of `other`."""

    def one(mine: Feature, theirs: Feature | None) -> Feature:
        return mine if theirs is None else replace(mine, **{name: getattr(theirs, name) for name in OPTIONAL})

    return _mapped(spec, one, other)


def _mapped(spec: Spec, one: Callable[[Feature, Feature | None], Feature], other: Spec) -> Spec:
    observations = {key: one(item, other.observations.get(key)) for key, item in spec.observations.items()}
    return replace(spec, observations=observations, action=one(spec.action, other.action))
