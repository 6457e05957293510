"""For tests, imported by name in planning processes: planners that answer, wait, fail or die as the question says."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from kinoise.config import UsageError
from kinoise.deploy.inference import Planner, Request
from kinoise.spec import Plan


class StrangeError(Exception):
    """Can't be pickled, nor made again from its arguments."""

    def __init__(self, one: object, two: object) -> None:
        super().__init__(f"{one} and {two}")
        self.held = lambda: (one, two)


@dataclass(frozen=True)
class Make:
    """Makes `plan`; says of itself what `about` holds. `fail` is what goes wrong instead: usage, or the process's end."""

    about: str = "far"
    fail: str = ""

    def __call__(self) -> tuple[Planner, Mapping[str, Any]]:
        if self.fail == "usage":
            raise UsageError("device=tpu9: no such device")
        if self.fail == "exit":
            os._exit(3)
        return plan, {"about": self.about, "pid": os.getpid()}


def plan(request: Request) -> Plan:
    """Does as the instruction says; answers with the newest state in every action, and what came with the question."""
    word, _, rest = request.readings[-1].instruction.partition(" ")
    if word == "wait":
        Path(rest).touch()
        time.sleep(600)
    elif word == "fail":
        raise StrangeError("one", "two")
    elif word == "half":
        return Plan(torch.zeros(1, 4, 3, dtype=torch.bfloat16), dt=0.05, nfe=1)
    state = torch.from_numpy(request.readings[-1].values["state"].copy())
    actions = state.expand(1, 4, -1) + (0 if request.previous is None else request.previous.actions)
    confidence = None if request.previous is None else request.previous.confidence
    rest_of_it = {"pid": float(os.getpid()), "pictures": float(sum(item.values["image"].sum() for item in request.readings))}
    return Plan(actions, dt=0.05, nfe=request.elapsed + request.prefix, confidence=confidence, timing=rest_of_it)
