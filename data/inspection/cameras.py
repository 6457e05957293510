"""What a camera's frames show to be wrong without knowing what is in them: black, frozen, stuck, one twice, upside down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, UInt8

from ...spec import Feature
from ..stats import ImageCounts

SIDE, SMALLEST = 32, 8
DARK, DARK_SHARE = 16, 0.999
FEWEST_FRAMES, FEWEST_EPISODES = 5, 4
CORRELATION, MARGIN = 0.5, 0.25
FLIPS = {"upside down": np.s_[::-1], "mirrored": np.s_[:, ::-1], "turned by 180 degrees": np.s_[::-1, ::-1]}
"""What a flip is called, and how to take it back."""


class Look(NamedTuple):
    """What is kept of one episode of one camera."""

    thumbnail: Float64[np.ndarray, "height width"]
    ends: tuple[int, int]
    """The hashes of the first and the last frame."""
    black: bool
    uniform: bool
    frozen: bool
    stuck: int
    """The most steps in a row at which the frame was exactly the one before while the robot moved."""
    stuck_at: int


class Film:
    """Looks at the frames of one episode, block by block."""

    def __init__(self, feature: Feature, moved: Bool[np.ndarray, "steps"]) -> None:
        self.counts, self._moved = ImageCounts(feature.shape[-1]), moved
        self._same = np.zeros(len(moved), bool)
        self._first: np.ndarray | None = None
        self._last: np.ndarray | None = None

    def add(self, start: int, frames: UInt8[np.ndarray, "steps height width channels"]) -> None:
        """Frames from step `start` of the episode on."""
        self.counts.add(frames)
        if self._last is None:
            self._first = frames[0].copy()
        else:
            self._same[start] = np.array_equal(self._last, frames[0])
        self._same[start + 1 : start + len(frames)] = (frames[1:] == frames[:-1]).all(axis=(1, 2, 3))
        self._last = frames[-1].copy()

    def look(self) -> Look:
        assert self._first is not None
        assert self._last is not None
        counts, steps = self.counts.counts, len(self._moved)
        dark = counts[:, : DARK + 1].sum() >= DARK_SHARE * counts.sum()
        frozen = bool(steps >= FEWEST_FRAMES and self._same[1:].all() and self._moved.any())
        stuck, at = _longest(self._same & self._moved)
        return Look(
            _thumbnail(self._first),
            (hash(self._first.tobytes()), hash(self._last.tobytes())),
            bool(dark),
            bool((counts.max(1) == counts.sum(1)).all()),
            frozen,
            stuck,
            at,
        )


class Camera:
    """All episodes of a camera that could be read."""

    def __init__(self, feature: Feature) -> None:
        self.counts, self.looks = ImageCounts(feature.shape[-1]), list[Look]()

    def keep(self, film: Film) -> None:
        self.counts.merge(film.counts)
        self.looks.append(film.look())


def camera_findings(cameras: Mapping[str, Camera], numbers: Sequence[int], rate: float) -> dict[str, dict[str, Any]]:
    """For each camera the episodes that are black, of one colour, frozen, stuck for a second or more, or flipped against the
    others of that camera, and the cameras that show the same.

    Args:
        numbers: how messages call the episodes.
        rate: steps per second.
    """
    found = {}
    for key, camera in cameras.items():
        black = [number for number, look in zip(numbers, camera.looks, strict=True) if look.black]
        frozen = [number for number, look in zip(numbers, camera.looks, strict=True) if look.frozen and not look.black]
        uniform = [number for number, look in zip(numbers, camera.looks, strict=True) if look.uniform and not look.black]
        stuck = [
            {"episode": number, "step": look.stuck_at, "steps": look.stuck}
            for number, look in zip(numbers, camera.looks, strict=True)
            if look.stuck >= max(FEWEST_FRAMES, rate) and not look.frozen and not look.black
        ]
        same = [
            other
            for other, item in cameras.items()
            if other != key and [look.ends for look in item.looks] == [look.ends for look in camera.looks] and not black
        ]
        flipped = flips(np.stack([look.thumbnail for look in camera.looks]), numbers)
        found[key] = {
            "black": black, "uniform": uniform, "frozen": frozen, "stuck": stuck, "identical_to": same, "flipped": flipped
        }  # fmt: skip
    return found


def camera_problems(found: Mapping[str, Mapping[str, Any]], called: Callable[[int], str]) -> list[str]:
    """What is wrong in `camera_findings`, a line each; `called` is how messages call an episode, given its number there."""
    problems = []
    for index, (key, item) in enumerate(found.items()):
        for name, text in (("black", "black"), ("uniform", "of one colour"), ("frozen", "frozen while the robot moves")):
            if item[name]:
                problems.append(f"'{key}': episodes that are {text}: {len(item[name])} ({_listed(item[name], called)})")
        if item["stuck"]:
            worst = max(item["stuck"], key=lambda it: it["steps"])
            problems.append(
                f"'{key}': episodes in which the picture stands still while the robot moves: {len(item['stuck'])} (the "
                f"longest in {called(worst['episode'])}, {worst['steps']} steps from step {worst['step']}): frames were lost, "
                "unless it moved too little to be seen"
            )
        for other in item["identical_to"]:
            if other in list(found)[index + 1 :]:
                problems.append(f"'{key}' and '{other}' show the same pictures: one of them is not what its name says")
        for name in FLIPS:
            chosen = [flip for flip in item["flipped"] if flip["flip"] == name]
            if chosen:
                problems.append(
                    f"'{key}': first frames that look {name} against the other episodes': {len(chosen)} (the first is "
                    f"{called(chosen[0]['episode'])}: correlation with their median {chosen[0]['correlation']:.2f}, "
                    f"{chosen[0]['flipped_correlation']:.2f} once turned)"
                )
    return problems


def flips(frames: Float64[np.ndarray, "episodes height width"], numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Episodes whose small first frame fits the median of all clearly better once it is flipped: by 0.25 of correlation or
    more, and with 0.5 or more. Too few episodes (below 4) or pixels (below 8 x 8) say nothing, nor do symmetric scenes.
    """
    if len(frames) < FEWEST_EPISODES or min(frames.shape[1:]) < SMALLEST:
        return []
    middle = np.median(frames, 0)
    found = []
    for number, frame in zip(numbers, frames, strict=True):
        plain = _correlation(frame, middle)
        name, best = max(((name, _correlation(frame[view], middle)) for name, view in FLIPS.items()), key=lambda item: item[1])
        if best >= CORRELATION and best - plain >= MARGIN:
            found.append({"episode": int(number), "flip": name, "correlation": plain, "flipped_correlation": best})
    return found


def moving(arrays: Sequence[np.ndarray]) -> Bool[np.ndarray, "steps"]:
    """The steps at which any dimension of what was observed moved by more than 0.1 % of its range in this episode."""
    result = np.zeros(len(arrays[0]) if arrays else 0, bool)
    for array in arrays:
        flat = array.reshape(len(array), -1)
        result[1:] |= (np.abs(np.diff(flat, axis=0)) > 1e-3 * np.ptp(flat, axis=0)).any(1)
    return result


def _thumbnail(frame: UInt8[np.ndarray, "height width channels"]) -> Float64[np.ndarray, "rows columns"]:
    """Grey, averaged to 32 x 32 at most."""
    grey = frame.mean(-1)
    for axis in (0, 1):
        edges = np.linspace(0, grey.shape[axis], min(SIDE, grey.shape[axis]) + 1).astype(int)
        grey = np.add.reduceat(grey, edges[:-1], axis=axis)
        grey /= np.expand_dims(np.diff(edges), 1 - axis)
    return grey


def _correlation(a: Float64[np.ndarray, "h w"], b: Float64[np.ndarray, "h w"]) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / scale if scale > 0 else 0.0


def _longest(flags: Bool[np.ndarray, "steps"]) -> tuple[int, int]:
    """(length, start) of the longest run of true flags."""
    if not flags.any():
        return 0, 0
    edges = np.flatnonzero(np.diff(flags, prepend=False, append=False))
    lengths = edges[1::2] - edges[::2]
    best = int(lengths.argmax())
    return int(lengths[best]), int(edges[2 * best])


def _listed(episodes: Sequence[int], called: Callable[[int], str]) -> str:
    return ", ".join(map(called, episodes[:8])) + (", ..." if len(episodes) > 8 else "")
