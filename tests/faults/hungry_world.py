"""For tests, imported by name in worker processes: line_world in a process that may not have more memory, and wants some."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import numpy as np
from line_world import LineWorld

ROOM = 64 << 20
WANTED = 1 << 30


class HungryWorld(LineWorld):
    """In the middle of an episode with an odd seed it asks for more memory than there is."""

    def __init__(self, task: str, *, render: bool = False) -> None:
        super().__init__(task, render=render)
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, resource.RLIM_INFINITY))

    def step(self, action: np.ndarray):
        if self._odd and self._clock == 3:
            np.ones(WANTED, np.uint8)
        return super().step(action)


def make(task: str, *, render: bool = False) -> HungryWorld:
    return HungryWorld(task, render=render)
