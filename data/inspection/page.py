"""The HTML page of `kinoise inspect`: one file that needs no other and no network."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from ... import __version__
from ..base import ACTION, EpisodeStore, starts
from .sheet import Frames, bars, channels, embedded, spread, traces

EPISODES, DIMENSIONS = 5, 64


def render(found: dict[str, Any], store: EpisodeStore | None, sheet: Sequence[Frames]) -> str:
    """The page.

    Args:
        found: what `survey` says.
        store: the good episodes, for traces of their actions; None when there are none.
        sheet: the frames to show, see `sheet.contact_sheet`.
    """
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters.update(number=_number, percent=lambda share: f"{100 * share:.1f}".removesuffix(".0"))
    minutes, seconds = divmod(round(found["duration_s"]), 60)
    hours, minutes = divmod(minutes, 60)
    names = dict(zip(found["numbers"], found["called"], strict=True))
    return page.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8")).render(
        found=found,
        title=Path(found["path"]).name or found["path"],
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        duration=f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s",
        names=names,
        states={key: _dimensions(key, item) for key, item in found["keys"].items() if item["kind"] == "state"},
        cameras={key: channels(item["histogram"], key) for key, item in found["keys"].items() if item["kind"] == "image"},
        lengths=_lengths(found["lengths"]),
        frames=[
            {
                "called": names[item.number],
                "instruction": item.instruction,
                "pictures": [(key, embedded(first), embedded(last)) for key, (first, last) in item.ends.items()],
            }
            for item in sheet
        ],
        traces=_traces(found, store),
    )


def _dimensions(key: str, item: dict[str, Any]) -> list[dict[str, Any]]:
    units = item["unit"] if len(item["unit"]) == len(item["names"]) else [*item["unit"], ""][:1] * len(item["names"])
    numbers = ("min", "q01", "mean", "q99", "max", "std")
    far = {outlier["name"]: outlier for outlier in item["outliers"]}
    return [
        {
            "name": name,
            "unit": units[index],
            **{number: item[number][index] for number in numbers},
            "histogram": bars(item["histogram"][index], f"{key} {name}"),
            "constant": name in item["constant"],
            "nearly": name in item["nearly_constant"],
            "outlier": far.get(name),
        }
        for index, name in enumerate(item["names"])
    ]


def _lengths(lengths: Sequence[int]) -> dict[str, Any] | None:
    if not lengths:
        return None
    counts, _ = np.histogram(lengths, bins=min(40, max(1, max(lengths) - min(lengths) + 1)))
    chart = bars(counts.tolist(), "episode lengths", "c1")
    return {"chart": chart, "low": min(lengths), "high": max(lengths), "median": float(np.median(lengths))}


def _traces(found: dict[str, Any], store: EpisodeStore | None) -> dict[str, Any] | None:
    if store is None:
        return None
    chosen = spread(len(store.ends), EPISODES)
    first = starts(store.ends)
    curves = [store.read(ACTION, int(first[index]), int(store.ends[index])) for index in chosen]
    flat = [curve.reshape(len(curve), -1) for curve in curves]
    names = found["keys"][ACTION]["names"]
    return {
        "episodes": [found["called"][index] for index in chosen],
        "longest": max(map(len, flat)),
        "charts": [
            {
                "name": name,
                "svg": traces([curve[:, dim] for curve in flat], f"action {name}"),
                "low": min(float(curve[:, dim].min()) for curve in flat),
                "high": max(float(curve[:, dim].max()) for curve in flat),
            }
            for dim, name in enumerate(names[:DIMENSIONS])
        ],
        "more": max(0, len(names) - DIMENSIONS),
    }


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}".replace("-", "\N{MINUS SIGN}")
