"""Pictures of a data set: the first and last frames of its episodes, histograms and traces."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from markupsafe import Markup, escape

from ...files import write_file
from ...spec import KinoiseError
from ..base import EpisodeStore, starts

SIDE = 192
WIDTH, HEIGHT = 180, 64
QUALITY = 80
COLUMNS = 8


class Frames(NamedTuple):
    """The first and the last frame of an episode, for each camera."""

    number: int
    instruction: str
    ends: dict[str, tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"]]]


def spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` indices, evenly spread."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()


def contact_sheet(store: EpisodeStore, numbers: Sequence[int], most: int, wanted: Sequence[int] = ()) -> list[Frames]:
    """First and last frames of at most `most` episodes, made smaller: those in `wanted` (by number) first, then spread evenly.

    Empty without cameras.
    """
    cameras = [key for key, feature in store.spec.observations.items() if feature.kind == "image"]
    if not cameras or most < 1:
        return []
    suspects = [index for index, number in enumerate(numbers) if number in set(wanted)][: (most + 1) // 2]
    others = [index for index in range(len(numbers)) if index not in set(suspects)]
    chosen = sorted([*suspects, *(others[index] for index in spread(len(others), most - len(suspects)))])
    first = starts(store.ends)
    return [
        Frames(
            numbers[index],
            store.texts[store.text[index]],
            {
                key: (
                    _smaller(store.read(key, int(first[index]), int(first[index]) + 1)[0]),
                    _smaller(store.read(key, int(store.ends[index]) - 1, int(store.ends[index]))[0]),
                )
                for key in cameras
            },
        )
        for index in chosen
    ]


def write_sheet(path: Path, sheet: Sequence[Frames]) -> None:
    """A contact sheet as one picture: for each episode, and each of its cameras, the first and the last frame side by side.

    Raises KinoiseError when there are no frames.
    """
    from matplotlib.figure import Figure

    if not sheet:
        raise KinoiseError(f"there is nothing to draw {path} from: the data have no cameras. Leave sheet= out.")
    cameras = list(sheet[0].ends)
    pictures = 2 * len(cameras)
    beside = min(len(sheet), max(1, COLUMNS // pictures))
    rows = -(-len(sheet) // beside)
    tallest = max(first.shape[0] / first.shape[1] for first, _ in sheet[0].ends.values())
    figure = Figure((1.6 * pictures * beside, (1.6 * tallest + 0.15) * rows + 0.4), dpi=110, layout="constrained")
    axes = figure.subplots(rows, pictures * beside, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], frame_on=False)
    for index, item in enumerate(sheet):
        row, start = index // beside, index % beside * pictures
        axes[row, start].set_ylabel(f"episode {item.number}", fontsize=8)
        for column, (camera, side) in enumerate((camera, side) for camera in cameras for side in (0, 1)):
            axis = axes[row, start + column]
            axis.imshow(item.ends[camera][side])
            if row == 0:
                axis.set_title(f"{camera}\n{('first', 'last')[side]}", fontsize=8)
    write_file(path, lambda temporary: figure.savefig(temporary, format="png"))


def embedded(frame: UInt8[np.ndarray, "h w 3"]) -> str:
    """A frame as a data URL (JPEG)."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, np.ascontiguousarray(frame), format="jpg", pil_kwargs={"quality": QUALITY})
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def bars(counts: Sequence[int], label: str, colour: str = "c0") -> Markup:
    """A histogram: one bar for each count, the tallest as high as the chart."""
    top, width = max(*counts, 1), WIDTH / len(counts)
    # A bar that isn't empty is seen: an outlier is one step of many thousands.
    heights = [0.0 if count == 0 else max(1.2, HEIGHT * count / top) for count in counts]
    path = "".join(
        f"M{index * width:.1f} {HEIGHT}v{-height:.1f}h{width:.1f}v{height:.1f}z"
        for index, height in enumerate(heights)
        if height
    )
    return Markup(
        f'<svg class="bars" role="img" aria-label="{escape(label)}" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none">'
        f'<path class="fill {colour}" d="{path}"/><path class="axis" d="M0 {HEIGHT}h{WIDTH}"/></svg>'
    )


def channels(counts: Sequence[Sequence[int]], label: str) -> Markup:
    """The histograms of a camera's channels over each other, as outlines. Their ends are cut where one value outweighs all."""
    top = max(1.0, 1.2 * float(np.quantile(np.array(counts), 0.98)))
    paths = ""
    for index, channel in enumerate(counts):
        step = WIDTH / (len(channel) - 1)
        points = "L".join(f"{i * step:.1f} {HEIGHT - min(HEIGHT, HEIGHT * n / top):.1f}" for i, n in enumerate(channel))
        paths += f'<path class="channel k{index}" d="M{points}"/>'
    return Markup(
        f'<svg class="bars" role="img" aria-label="{escape(label)}" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none">'
        f'{paths}<path class="axis" d="M0 {HEIGHT}h{WIDTH}"/></svg>'
    )


def traces(curves: Sequence[np.ndarray], label: str) -> Markup:
    """One dimension over time in several episodes, on one scale; long ones are thinned to 400 points."""
    low, high = min(float(curve.min()) for curve in curves), max(float(curve.max()) for curve in curves)
    longest, height = max(len(curve) for curve in curves), high - low or 1.0
    paths = ""
    for index, curve in enumerate(curves):
        kept = range(0, len(curve), max(1, len(curve) // 400))
        points = "L".join(
            f"{step / max(1, longest - 1) * WIDTH:.1f} {HEIGHT - (float(curve[step]) - low) / height * HEIGHT:.1f}"
            for step in kept
        )
        paths += f'<path class="trace e{index % 8}" d="M{points}"/>'
    return Markup(
        f'<svg class="bars tall" role="img" aria-label="{escape(label)}" viewBox="0 -1 {WIDTH} {HEIGHT + 2}" '
        f'preserveAspectRatio="none">{paths}</svg>'
    )


def _smaller(frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """At most 192 pixels a side, by averaging whole blocks."""
    block = -(-max(frame.shape[:2]) // SIDE)
    height, width = (size // block * block for size in frame.shape[:2])
    if block == 1 or not height or not width:
        return frame
    parts = frame[:height, :width].reshape(height // block, block, width // block, block, 3)
    return parts.mean((1, 3)).round().astype(np.uint8)
