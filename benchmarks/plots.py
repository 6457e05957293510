"""What `benchmarks.decode` and `benchmarks.peers` found, as a reader wants it: `python -m benchmarks.plots`.

From results/decode_*.json and results/peers.json it writes the tables between two markers in benchmarks/README.md, and
results/decode.png: success against a plan's milliseconds, a panel a policy, a curve a method.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinoise.config import UsageError, parse, run
from kinoise.files import read_json, write_file

from .record import RESULTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
README = Path(__file__).parent / "README.md"


@dataclass
class Settings:
    """The whole command line."""

    results: str = str(RESULTS)
    readme: str = str(README)


def percent(rate: float) -> str:
    return f"{100 * rate:.1f}"


def points(difference: dict[str, float]) -> str:
    value, low, high = (f"{100 * difference[key]:+.1f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def table(found: Sequence[dict[str, Any]]) -> str:
    """A row for each policy's way to plan."""
    lines = [
        "| policy | plan | success, % | difference to full, points | evaluations | computed | times faster than full | ms | "
        "actions carried out | ms each |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for item in found:
        for name, row in item["rows"].items():
            success, difference, faster = row.get("success"), row.get("difference"), row["faster"]["full"]
            cells = [
                f"{item['label']} ({row['n']} episodes)" if success else item["label"],
                f"`{name}`",
                percent(success["rate"]) if success else "",
                points(difference) if difference and name != "full" else "",
                str(row["evaluations"]),
                f"{row['computed']:.0%}",
                f"{faster['ratio']:.2f} ({faster['ratio_q25']:.2f} to {faster['ratio_q75']:.2f})" if name != "full" else "1",
                f"{row['plan_ms']['median']:.1f}",
                str(row["execute"]),
                f"{row['ms_per_action']:.2f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def targets(found: Sequence[dict[str, Any]]) -> str:
    """A row for each target of a policy's."""
    lines = ["| policy | plan | times faster | target | difference, at least -1 point | met |", "|---|---|---|---|---|---|"]
    for item in found:
        for one in item["targets"]:
            alike = "not played" if one["difference"] is None else points(one["difference"])
            met = {True: "yes", False: "no", None: "as to speed"}[one["met"]]
            cells = [item["label"], f"`{one['row']}`", f"{one['faster']:.2f} than {one['than']}", f"{one['faster_at_least']:g}"]
            lines.append(f"| {' | '.join([*cells, alike, met])} |")
    return "\n".join(lines)


def peers(found: dict[str, Any]) -> str:
    """A row for each side of `benchmarks.peers`, and for each that is absent."""
    lines = [
        "| size | plan by | parameters | ms | times as long as kinoise's | as kinoise's, compiled | as that in bfloat16 |",
        "|---|---|---|---|---|---|---|",
    ]
    for size, sides in found["sizes"].items():
        for name, side in sides.items():
            told = " | ".join(times(side[key]) for key in ("slower", "slower_than_compiled", "slower_than_bf16"))
            lines.append(f"| {size} | {name} | {side['parameters']:,} | {side['plan_ms']['median']:.1f} | {told} |")
    return "\n".join(lines + [f"| | {name} | could not be had | | | | |" for name in found["absent"]])


def times(slower: dict[str, float]) -> str:
    """A ratio with its quartiles; 1 where something is compared with itself."""
    ratio, low, high = (slower[key] for key in ("ratio", "ratio_q25", "ratio_q75"))
    return "1" if ratio == low == high == 1 else f"{ratio:.2f} ({low:.2f} to {high:.2f})"


def machine(found: dict[str, Any]) -> str:
    about = found["machine"]
    threads = f"{about['threads']} thread{'s' if about['threads'] > 1 else ''}"
    return f"{about['cpu']}, {about['cores']} cores, {threads} of torch {found['versions']['torch']}"


def summary(decoded: Sequence[dict[str, Any]], beside: dict[str, Any] | None) -> str:
    """Everything between the markers."""
    parts = []
    if decoded:
        aims = [targets(decoded)] if any(item["targets"] for item in decoded) else []
        where = "; ".join(dict.fromkeys(machine(item) for item in decoded))
        picture = ["![success against milliseconds](results/decode.png)"] if any(curves(item) for item in decoded) else []
        parts += [f"Plans from one checkpoint each ({where}):", table(decoded), *aims, *picture]
    if beside:
        parts += [f"One plan beside the peers', batch 1, the same number of evaluations ({machine(beside)}):", peers(beside)]
    return "\n\n".join(parts)


def inserted(text: str, between: str) -> str:
    """`text` with `between` between its markers. Raises UsageError when it has none."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"expected {BEGIN} and {END}, in this order, where the tables go")
    return f"{head}{BEGIN}\n{between}\n{END}{tail}"


def curves(found: dict[str, Any]) -> dict[str, list[tuple[float, dict[str, float]]]]:
    """By method its points, milliseconds and success, from fast to slow; rows without episodes have none."""
    lines: dict[str, list[tuple[float, dict[str, float]]]] = {}
    for row in found["rows"].values():
        if "success" in row:
            lines.setdefault(row["method"], []).append((row["plan_ms"]["median"], row["success"]))
    return {name: sorted(points, key=lambda point: point[0]) for name, points in lines.items()}


def draw(axes: Axes, found: dict[str, Any], colours: dict[str, Any]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    for method, points in curves(found).items():
        ms, rates = [point[0] for point in points], [point[1] for point in points]
        low, middle, high = ([100 * rate[key] for rate in rates] for key in ("low", "rate", "high"))
        spread = [[m - below for m, below in zip(middle, low, strict=True)], [h - m for h, m in zip(high, middle, strict=True)]]
        axes.errorbar(ms, middle, yerr=spread, marker="o", markersize=4, linewidth=1, elinewidth=0.5, color=colours[method])
    axes.set(xscale="log", title=found["label"], xlabel="a plan, ms", ylabel="success, %")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)


def plot(found: Sequence[dict[str, Any]], path: Path) -> None:
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    methods = list(dict.fromkeys(method for item in found for method in curves(item)))
    colours = {method: colormaps["tab20"](index % 20) for index, method in enumerate(methods)}
    figure = Figure((4.2 * len(found), 4.8), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, item in zip(panels, found, strict=True):
        draw(axes, item, colours)
    marks = [Line2D([], [], marker="o", markersize=4, linewidth=1, color=colours[method]) for method in methods]
    figure.legend(marks, methods, loc="outside lower center", ncols=max(2, 2 * len(found)), fontsize=7, frameon=False)
    write_file(path, lambda place: figure.savefig(place, format="png", dpi=130))


def main(argv: Sequence[str]) -> int:
    settings = parse("plots", Settings, argv, about=__doc__ or "")
    results, readme = Path(settings.results), Path(settings.readme)
    decoded = [read_json(path) for path in sorted(results.glob("decode_*.json"))]
    beside = read_json(results / "peers.json") if (results / "peers.json").exists() else None
    if not decoded and beside is None:
        raise UsageError(f"{results} has no decode_*.json and no peers.json: run benchmarks.decode or benchmarks.peers first")
    text = inserted(readme.read_text(), summary(decoded, beside))
    write_file(readme, lambda place: place.write_text(text))
    played = [item for item in decoded if curves(item)]
    if played:
        plot(played, results / "decode.png")
    return 0


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
