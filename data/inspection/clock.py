"""Time stamps against the rate that a store's steps shall have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Num

GAP = 1.5
"""Intervals, in steps, from which on a frame is missing in between."""
JITTER = 0.1
RATE_ERROR = 0.02
KEPT = 20


class Clock:
    """What the time stamps of the episodes added so far say; seconds, one for each step.

    Args:
        rate: steps per second that are expected.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._back: list[dict[str, Any]] = []
        self._gaps: list[dict[str, Any]] = []
        self._back_count, self._gap_count, self._lost = 0, 0, 0
        self._medians: list[float] = []
        self._squares, self._count, self._largest = 0.0, 0, 0.0

    def add(self, episode: int, stamps: Num[np.ndarray, "steps"]) -> None:
        """Takes an episode's stamps; its number is for the messages."""
        intervals = np.diff(stamps.astype(np.float64)) * self.rate
        if not len(intervals):
            return
        back = np.flatnonzero(intervals <= 0)
        self._back = _worst([*self._back, *_listed(episode, back, intervals)], 1)
        self._back_count += len(back)
        middle = float(np.median(intervals))
        # Against the episode's own pace: a wrong rate is one problem, not a gap at every step.
        pace = intervals / middle if middle > 0 else intervals
        gaps = np.flatnonzero(pace > GAP)
        self._gaps = _worst([*self._gaps, *_listed(episode, gaps, pace)], -1)
        self._gap_count += len(gaps)
        self._lost += int((np.round(pace[gaps]) - 1).sum())
        even = pace[(pace > 0) & (pace <= GAP)]
        self._squares += float(((even - 1) ** 2).sum())
        self._count += len(even)
        self._medians.append(middle)

    def summary(self) -> dict[str, Any] | None:
        """None without any interval; `gaps` and `backwards` hold the worst ones, with intervals in steps."""
        if not self._medians:
            return None
        middle = float(np.median(self._medians))
        return {
            "rate": self.rate / middle if middle > 0 else None,
            "expected": self.rate,
            "jitter": float(np.sqrt(self._squares / self._count)) if self._count else None,
            "lost_frames": self._lost,
            "gaps": self._gaps,
            "gap_count": self._gap_count,
            "backwards": self._back,
            "backwards_count": self._back_count,
        }


def clock_problems(found: dict[str, Any] | None, called: Callable[[int], str]) -> list[str]:
    """What is wrong in a clock's summary, a line each."""
    if found is None:
        return []
    problems, rate, expected = [], found["rate"], found["expected"]
    if found["backwards"]:
        worst = found["backwards"][0]
        problems.append(
            f"time stamps that stand still or go back: {found['backwards_count']} (the worst in "
            f"{called(worst['episode'])} at step {worst['step']}, "
            f"by {worst['interval']:.3g} steps): the recording's order is in doubt"
        )
    if rate is not None and abs(rate / expected - 1) > RATE_ERROR:
        problems.append(
            f"time stamps say {rate:.4g} Hz, the data's rate is {expected:g} Hz: a policy would act at the wrong pace. "
            f"Say rate={rate:.4g} if the stamps are right"
        )
    if found["gaps"]:
        worst = found["gaps"][0]
        problems.append(
            f"gaps in the time stamps: {found['gap_count']}, about {found['lost_frames']} frames lost (the longest in "
            f"{called(worst['episode'])} at step {worst['step']}: {worst['interval']:.3g} steps long)"
        )
    if found["jitter"] is not None and found["jitter"] > JITTER:
        problems.append(f"time stamps jitter by {found['jitter']:.0%} of a step (RMS): the rate isn't kept")
    return problems


def _listed(episode: int, steps: np.ndarray, intervals: np.ndarray) -> list[dict[str, Any]]:
    return [{"episode": episode, "step": int(step) + 1, "interval": float(intervals[step])} for step in steps]


def _worst(items: list[dict[str, Any]], sign: int) -> list[dict[str, Any]]:
    return sorted(items, key=lambda item: sign * item["interval"])[:KEPT]
