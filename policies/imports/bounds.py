"""How large, deep and long the settings of strangers may be, and how they are shown in errors."""

from __future__ import annotations

import reprlib
from typing import Any

from ...spec import KinoiseError

LARGEST = 2**20
"""A whole number in settings: a width, a size, a count."""
LARGEST_FLOAT = 1e30
LONGEST = 4096
"""Actions of a plan, or observations before one: networks hold tables of every pair of them."""
MOST = 2**17
"""Values and characters of settings, each as often as it occurs."""
DEEPEST = 64
"""Containers within each other."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100


def shown(value: Any) -> str:
    """A value out of a file, for an error: short, however large it is."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python writes out no number of thousands of digits
        return "a number of thousands of digits"


class Budget:
    """Of one file's settings: `spend` for each value on the way, however often it occurs. Raises KinoiseError beyond."""

    def __init__(self) -> None:
        self._left = MOST

    def spend(self, value: Any, depth: int) -> None:
        self._left -= 1 + (len(value) if isinstance(value, (str, bytes)) else 0)
        if self._left < 0 or depth > DEEPEST:
            raise KinoiseError(
                f"its settings hold more than {MOST} values and characters, each counted as often as it occurs, or are nested "
                f"deeper than {DEEPEST}: nobody's are. Take the file from where it was made"
            )


def within(value: Any, source: Any, depth: int = 0) -> None:
    """Raises KinoiseError where a whole number, anywhere in `value`, is larger than `LARGEST`, or it is nested too deep."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if depth > DEEPEST or (isinstance(item, int) and item > LARGEST):
            raise KinoiseError(f"{source}: {shown(key)} is {shown(item)}: expected {LARGEST} at most. The file is damaged")
        within(item, source, depth + 1)
