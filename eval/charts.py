"""Charts as inline SVG: coloured by the page's style sheet (light, dark, print), sized for one grid column.

Written by hand rather than by matplotlib: the text stays text, the colours follow the reader's scheme, and a chart
weighs a few kilobytes. Everything that is drawn takes plain numbers and returns markup.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from markupsafe import Markup, escape

from .text import Number, number, percent

WIDTH, HEIGHT = 360, 208
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 38
BINS, FEWEST_BARS = 150, 5
RAIL = '<line class="rail" x1="0" x2="100%" y1="8" y2="8"/>'


@dataclass(frozen=True)
class Axis:
    """A map from values to [0, 1].

    Args:
        low, high: its ends; `low` may be the greater. Positive ones with `log`.
        label: its name.
        whole: ticks only at whole numbers.
    """

    low: Number
    high: Number
    log: bool = False
    label: str = ""
    whole: bool = False

    @classmethod
    def around(cls, values: Sequence[Number], *, log: bool = False, zero: bool = False, label: str = "") -> Axis:
        """From the least to the greatest value, widened to whole ticks; `zero` makes it start at 0."""
        least, most = min(values), max(values)
        if log:
            low, high = math.log10(least), math.log10(most)
            margin = max(0.05 * (high - low), 0.02)
            return cls(10 ** (low - margin), 10 ** (high + margin), True, label)
        least = min(least, 0.0) if zero else least
        step = _step(least, most, 4)
        low, high = math.floor(least / step) * step, math.ceil(most / step) * step
        return cls(low, high if high > low else low + step, False, label)

    def __call__(self, value: Number) -> float:
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, count: int = 4) -> list[Number]:
        """Round values within the axis: multiples of 1, 2 or 5, or powers of ten on a long log axis."""
        least, most = sorted((self.low, self.high))
        if not self.log:
            step = max(_step(least, most, count), 1.0 if self.whole else 0.0)
            first = math.ceil(least / step - 1e-9)
            return [step * i for i in range(first, math.floor(most / step + 1e-9) + 1)]
        decades = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
        candidates = [[10.0**d for d in decades], *([m * 10.0**d for d in decades for m in ms] for ms in ((1, 3), (1, 2, 5)))]
        inside = [[value for value in values if least <= value * 1.0001 and value <= most * 1.0001] for values in candidates]
        best = next((values for values in inside if len(values) >= 3), inside[-1])
        if len(best) < 2:
            return [value for value in Axis(least, most).ticks(3) if value > 0]
        return best[:: max(1, math.ceil(len(best) / (count + 2)))]


@dataclass(frozen=True)
class Series:
    """What to draw: a `line` through the means of bins over the band of their ranges, joined `dots`, or `points` apart."""

    name: str
    points: Sequence[tuple[Number, Number]]
    mark: Literal["line", "dots", "points"] = "line"


class Lane(NamedTuple):
    """Values by step, drawn from `low` to `high`; what lies beyond is drawn at the border."""

    name: str
    values: Sequence[Number]
    low: Number
    high: Number


class Bin(NamedTuple):
    x: Number
    mean: Number
    low: Number
    high: Number


def whisker(interval: Mapping[str, Number], name: str) -> Markup:
    """An estimated share with its interval, as wide as its table cell (positions are in percent).

    Args:
        interval: rate, low and high in [0, 1].
    """
    low, rate, high = (f"{percent(interval[key])}%" for key in ("low", "rate", "high"))
    return Markup(
        f'<svg class="strip" role="img" aria-label="{escape(name)}: {rate}, interval {low} to {high}" width="100%" height="16">'
        f'{RAIL}<line class="span" x1="{low}" x2="{high}" y1="8" y2="8"/><circle class="dot" cx="{rate}" cy="8" r="4.5"/></svg>'
    )


def strip(axis: Axis, marks: Sequence[Number], label: str) -> Markup:
    """Ascending quantiles on one rail: a dot for the first, ticks for the others, a bar between the ends.

    What lies below the axis is drawn at its low end.
    """
    places = [f"{100 * axis(max(value, axis.low)):.2f}%" for value in marks]
    ticks = "".join(f'<line class="tick" x1="{x}" x2="{x}" y1="3" y2="13"/>' for x in places[1:])
    return Markup(
        f'<svg class="strip" role="img" aria-label="{escape(label)}" width="100%" height="16">'
        f'{RAIL}<line class="span" x1="{places[0]}" x2="{places[-1]}" y1="8" y2="8"/>{ticks}'
        f'<circle class="dot" cx="{places[0]}" cy="8" r="4.5"/></svg>'
    )


def lines(series: Sequence[Series], label: str, *, x: str, log: bool = False, zero: bool = False) -> Markup:
    """Curves over a shared x.

    Args:
        series: each with at least one point, of finite values; positive ones with `log`.
        label: what a reader who can't see the chart should know.
        x: the x axis's name.
        log, zero: see `Axis.around`.
    """
    across = Axis.around([point[0] for item in series for point in item.points], label=x)
    up = Axis.around([point[1] for item in series for point in item.points], log=log, zero=zero)
    return _frame(across, up, "".join(_curve(item, across, up, f"c{index % 3}") for index, item in enumerate(series)), label)


def lanes(rows: Sequence[Lane], label: str, *, x: str, marks: Sequence[Number] = ()) -> Markup:
    """Values by step, a lane for each, one above the other over a shared x; `marks` are steps to point out.

    Args:
        rows: at least one, with as many values each, at least one.
    """
    steps = len(rows[0].values)
    across = Axis(0, max(steps - 1, 1), label=x, whole=True)
    high = (HEIGHT - TOP - BOTTOM) / len(rows)
    body = "".join(
        f'<line class="join" x1="{px:.1f}" x2="{px:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        for px in (LEFT + across(mark) * (WIDTH - LEFT - RIGHT) for mark in marks)
    )
    for index, row in enumerate(rows):
        up, top = Axis(row.low, row.high), TOP + index * high
        places = [
            (LEFT + across(step) * (WIDTH - LEFT - RIGHT), top + high * (0.92 - 0.84 * min(max(up(value), 0.0), 1.0)))
            for step, value in enumerate(row.values)
        ]
        middle = top + high / 2
        body += f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{middle:.1f}" y2="{middle:.1f}"/>'
        body += f'<text x="{LEFT - 7}" y="{middle + 4:.1f}" text-anchor="end">{escape(row.name)}</text>'
        body += f'<path class="lane e{index % 8}" d="{_path(places)}"/>'
    return _frame(across, None, body, label)


def areas(
    x: Axis, levels: Sequence[Number], shares: Sequence[Sequence[Number]], label: str, marks: Sequence[Number] = ()
) -> Markup:
    """Shares that add up to 1 at each level, stacked; `marks` are levels to point out on the x axis."""
    up = Axis(0.0, 1.0)
    bottoms, body = [0.0] * len(levels), ""
    for index in range(len(shares[0])):
        tops = [bottom + share[index] for bottom, share in zip(bottoms, shares, strict=True)]
        outline = [*zip(levels, tops, strict=True), *reversed([*zip(levels, bottoms, strict=True)])]
        widest = max(range(len(levels)), key=lambda i: shares[i][index] * math.sin(math.pi * (i + 1) / (len(levels) + 1)))
        body += f'<path class="area e{index % 8}" d="{_path([_place(x, up, *p) for p in outline])}Z"/>'
        if shares[widest][index] > 0.12:
            px, py = _place(x, up, levels[widest], (tops[widest] + bottoms[widest]) / 2)
            body += f'<text class="inside" x="{px:.1f}" y="{py + 4:.1f}" text-anchor="middle">{index + 1}</text>'
        bottoms = tops
    for value in marks:
        px, py = _place(x, up, value, 0.0)
        body += f'<path class="visit" d="{_path([(px, py), (px - 3.5, py + 6), (px + 3.5, py + 6)])}Z"/>'
    return _frame(x, up, body, label)


def histogram(values: Sequence[Number], label: str, *, x: str) -> Markup:
    """Counts over equal bins, twice as many as the square root of the number of values."""
    across = Axis.around(values, label=x)
    size = max(8, min(36, round(2 * math.sqrt(len(values)))))
    heights = Counter(min(int(across(value) * size), size - 1) for value in values)
    width = (across.high - across.low) / size
    return _bars(across, {across.low + (index + 0.5) * width: n for index, n in heights.items()}, width, label)


def bars(heights: Mapping[Number, int], label: str, *, x: str) -> Markup:
    """How often each whole number from 0 came."""
    axis = Axis(-0.5, max(*heights, FEWEST_BARS) + 0.5, label=x, whole=True)
    return _bars(axis, heights, 0.8, label)


def thin(points: Sequence[tuple[Number, Number]], bins: int = BINS) -> list[Bin]:
    """At most `bins` bins of neighbouring points, each with its mean and range, so that no outlier is lost."""
    size = math.ceil(len(points) / bins)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        Bin(sum(p[0] for p in g) / len(g), sum(p[1] for p in g) / len(g), min(p[1] for p in g), max(p[1] for p in g))
        for g in groups
    ]


def _curve(series: Series, across: Axis, up: Axis, colour: str) -> str:
    bins = thin(series.points) if series.mark == "line" else [Bin(x, y, y, y) for x, y in series.points]
    middle = [_place(across, up, item.x, item.mean) for item in bins]
    drawn = "" if series.mark == "points" else f'<path class="{series.mark} {colour}" d="{_path(middle)}"/>'
    if any(item.high > item.low for item in bins):
        top = [_place(across, up, item.x, item.high) for item in bins]
        bottom = [_place(across, up, item.x, item.low) for item in reversed(bins)]
        drawn = f'<path class="band {colour}" d="{_path([*top, *bottom])}Z"/>{drawn}'
    if series.mark == "line":
        return drawn
    return drawn + "".join(f'<circle class="point {colour}" cx="{px:.1f}" cy="{py:.1f}" r="2.6"/>' for px, py in middle)


def _bars(across: Axis, heights: Mapping[Number, int], width: Number, label: str) -> Markup:
    up, body = Axis(0, max(heights.values()) * 1.05, whole=True), ""
    for centre, height in heights.items():
        left, top = _place(across, up, centre - width / 2, height)
        right, bottom = _place(across, up, centre + width / 2, 0)
        body += (
            f'<rect class="bar" x="{left + 0.5:.1f}" y="{top:.1f}" width="{right - left - 1:.1f}" height="{bottom - top:.1f}"/>'
        )
    return _frame(across, up, body, label)


def _frame(across: Axis, up: Axis | None, body: str, label: str) -> Markup:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    if up is not None:
        for value in up.ticks():
            y = _place(across, up, across.low, value)[1]
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>')
    parts.append(body)
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    for value in across.ticks(5):
        x = LEFT + across(value) * (right - LEFT)
        anchor = "end" if x > right - 8 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="{anchor}">{number(value)}</text>')
    parts.append(f'<text class="name" x="{right}" y="{HEIGHT - 3}" text-anchor="end">{escape(across.label)}</text>')
    return Markup(
        f'<svg class="chart" role="img" aria-label="{escape(label)}" viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(parts)}</svg>'
    )


def _place(across: Axis, up: Axis, x: Number, y: Number) -> tuple[Number, Number]:
    return LEFT + across(x) * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up(y) * (HEIGHT - TOP - BOTTOM)


def _path(points: Sequence[tuple[Number, Number]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _step(low: Number, high: Number, count: int) -> Number:
    rough = (high - low) / count or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
