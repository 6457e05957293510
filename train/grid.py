"""What a sweep tries: settings with several values each, multiplied out. Values are written as in Hydra's own sweeps."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Transformer, ValueType
from hydra.errors import HydraException

from ..config import UsageError

LONGEST = 150
"""Characters of a folder's name; file systems take 255 bytes, and files beside it have longer ones."""

BRACKETS = "\"'[]{}() "


class Point(NamedTuple):
    """One job's own settings.

    Args:
        name: of its folder: the settings as `key=value`, joined by two underscores.
        overrides: value by setting, as text.
    """

    name: str
    overrides: dict[str, str]


class Grid(NamedTuple):
    """A sweep's arguments.

    Args:
        fixed: what all jobs are given, as it was typed.
        points: the jobs, the last setting changing fastest.
    """

    fixed: tuple[str, ...]
    points: tuple[Point, ...]


def expand(arguments: Sequence[str]) -> Grid:
    """Multiplies out arguments such as `seed=0,1`, `policy.network.width=choice(64,128)` and `train.lr=range(...)`.

    A value in quotes is one value, whatever it holds: `env='"metaworld/push,reach"'` are two tasks of one job.

    Raises:
        UsageError: nothing to try, a value that can't be read, a kind of sweep that has no list of values.
    """
    parser, fixed = OverridesParser.create(), []
    choices: dict[str, list[str]] = {}
    for item in arguments:
        key, equals, value = item.partition("=")
        several = [] if not equals or "/" in key else _values(parser, key, value)
        if not several:
            fixed.append(item)
        elif key in choices:
            raise UsageError(f"{key} is swept twice: write all its values behind one {key}=")
        else:
            choices[key] = list(dict.fromkeys(several))
    if not choices:
        raise UsageError("nothing to sweep: give a setting several values, such as seed=0,1,2")
    points = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
    names = [_name(point) for point in points]
    return Grid(
        tuple(fixed),
        tuple(
            Point(name if names.count(name) == 1 and len(name) <= LONGEST else _distinct(name, point), point)
            for name, point in zip(names, points, strict=True)
        ),
    )


def _values(parser: OverridesParser, key: str, value: str) -> list[str]:
    """The values of a sweep, none if it is a single value."""
    try:
        override = parser.parse_override(f"{key}={value}")
        if not override.is_sweep_override():
            return []
        return [_text(item) for item in _elements(override)]
    except HydraException as error:
        if "," not in value and "(" not in value:  # the command's own rules are wider: it may well be a path
            return []
        raise UsageError(
            f"{key}={value}: can't be read as values of a sweep ({str(error).splitlines()[0]}). Put each that holds more than "
            f"letters, digits and ._-/ in quotes: {key}=\"'a=1','b=2'\"."
        ) from error


def _elements(override: Override) -> list[object]:
    if override.is_interval_sweep() or override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        raise UsageError(
            f"{override.input_line}: an interval or a pattern is no list of values. Name them, or take range(...)."
        )
    return list(override.sweep_iterator(transformer=Transformer.identity))


def _text(value: object) -> str:
    """A value as it would be typed; what Hydra would escape in plain text, kinoise's commands take as it is."""
    return value if isinstance(value, str) else Transformer.str(value)  # type: ignore[arg-type]


def _name(point: dict[str, str]) -> str:
    """Of a folder, that a shell and other commands take without quotes."""
    plain = {key: re.sub(r"[^A-Za-z0-9_.+-]+", "-", value.strip(BRACKETS)) for key, value in point.items()}
    return "__".join(f"{key}={value}" for key, value in plain.items())


def _distinct(name: str, point: dict[str, str]) -> str:
    """A name for a point whose plain one is too long, or another's too."""
    return f"{name[:LONGEST]}-{hashlib.sha256(repr(sorted(point.items())).encode()).hexdigest()[:8]}"
