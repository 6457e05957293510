"""How a report writes figures."""

from __future__ import annotations

# JSON does not tell 3.0 from 3.
Number = float | int

UNKNOWN = "\N{EN DASH}"
SPACE = "\N{NARROW NO-BREAK SPACE}"


def number(value: Number | None) -> str:
    """Three significant digits, without trailing zeros; thousands as k, M and G; a dash for None."""
    if value is None:
        return UNKNOWN
    size = abs(value)
    for least, scale, suffix in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if size >= least:
            return f"{_three(value / scale)}{suffix}"
    if 0 < size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e\N{MINUS SIGN}{-int(exponent)}"
    return _three(value)


def percent(share: Number) -> str:
    """A share in [0, 1] in percent, with a decimal where it has one: `97`, `91.5`."""
    return f"{100 * share:.1f}".removesuffix(".0")


def count(value: int, noun: str) -> str:
    """`1 step`, `12 steps`."""
    return f"{value} {noun}" if value == 1 else f"{value} {noun}s"


def duration(seconds: Number) -> str:
    """`12.3 s`, `4 min 05 s` or `1 h 07 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def short(task: str) -> str:
    """A task's id without its family: `push` of `metaworld/push`."""
    return task.rpartition("/")[2]


def _three(value: Number) -> str:
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.3g}"
