"""What a plan goes on from: the plan before it, checked and shifted, and the time there is."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..spec import KinoiseError, Plan
from .core.budget import Budget
from .core.start import shift


class Guess(NamedTuple):
    """The plan before, as it looks from now on, in physical units.

    Args:
        actions: shifted by what was carried out, as long as a chunk; the last is repeated.
        elapsed: how many at the end are repetitions.
        confidence: that the plan before had in them, where it knew.
        done: its actions that were carried out by then.
    """

    actions: Float[Tensor, "batch chunk action"]
    elapsed: int
    confidence: Float[Tensor, "batch chunk action"] | None
    done: Float[Tensor, "batch done action"] | None = None

    def rows(self, rows: list[int]) -> Guess:
        """Of these rows."""
        confidence, done = (None if item is None else item[rows] for item in (self.confidence, self.done))
        return self._replace(actions=self.actions[rows], confidence=confidence, done=done)

    def since(self, past: int) -> Float[Tensor, "batch length action"]:
        """The actions, and before them the last `past` that were carried out; the earliest known in place of unknown ones."""
        if past == 0:
            return self.actions
        done = self.actions[:, :0] if self.done is None else self.done
        known = torch.cat([done[:, max(0, done.shape[1] - past) :], self.actions], 1)
        missing = past + self.actions.shape[1] - known.shape[1]
        return torch.cat([known[:, :1].expand(-1, missing, -1), known], 1)


class Start(NamedTuple):
    """Where decoding starts, and what binds it.

    Args:
        guess: the plan before, if anything of it is left.
        warm: whether decoding starts from the guess, and not from noise.
        prefix: how many of the guess's first actions are carried out whatever the plan says.
        budget: the time there is; None for as long as it takes.
    """

    guess: Guess | None = None
    warm: bool = False
    prefix: int = 0
    budget: Budget | None = None

    @property
    def pinned(self) -> Float[Tensor, "batch prefix action"] | None:
        """The actions to keep; None for none."""
        return None if self.guess is None or self.prefix == 0 else self.guess.actions[:, : self.prefix]

    def cold(self, rows: list[int]) -> Start:
        """From noise, for these rows."""
        return self._replace(guess=None if self.guess is None else self.guess.rows(rows), warm=False)


def left_of(previous: Plan, elapsed: int, chunk: int) -> Guess | None:
    """What the plan before says of the chunk that begins now; None when nothing of it is left.

    Raises KinoiseError for a plan with NaN, or a confidence of another shape.
    """
    actions, sure = previous.actions, previous.confidence
    if sure is not None and sure.shape != actions.shape:
        raise KinoiseError(f"the previous plan's confidence has the shape {tuple(sure.shape)}: expected {tuple(actions.shape)}")
    if not actions.isfinite().all():
        raise KinoiseError("the previous plan holds NaN or infinity: plan without it")
    length = actions.shape[1]
    if elapsed >= length:
        return None
    left = min(length - elapsed, chunk)
    actions, sure = (None if item is None else fitted(shift(item, elapsed), chunk) for item in (actions, sure))
    assert actions is not None
    return Guess(actions, chunk - left, sure, previous.actions[:, :elapsed])


def fitted(plan: Float[Tensor, "batch length action"], chunk: int) -> Float[Tensor, "batch {chunk} action"]:
    """The plan cut to `chunk` actions, or its last one repeated."""
    missing = max(0, chunk - plan.shape[1])
    return torch.cat([plan[:, :chunk], plan[:, -1:].expand(-1, missing, -1)], 1)


def check_prefix(prefix: int, elapsed: int, previous: Plan | None, chunk: int) -> None:
    """Raises KinoiseError when there are not so many actions to keep, in the previous plan or in a chunk."""
    if prefix < 0 or elapsed < 0:
        raise KinoiseError(f"prefix={prefix}, elapsed={elapsed}: expected at least 0")
    if prefix == 0:
        return
    if prefix > chunk:
        raise KinoiseError(f"prefix={prefix} is longer than the policy's chunk of {chunk} actions")
    if previous is None:
        raise KinoiseError(f"prefix={prefix} pins actions of the previous plan: give previous=")
    length = previous.actions.shape[1]
    if elapsed + prefix > length:
        raise KinoiseError(
            f"prefix={prefix} after elapsed={elapsed} needs {elapsed + prefix} actions; the previous plan has {length}"
        )


def timed(begin: float, encoded: float, evaluations: int) -> dict[str, float]:
    """A plan's `timing` when it is made, seconds: `encode`, `denoise`, and of that one `evaluation`.

    Args:
        begin, encoded: by time.perf_counter, when planning and when denoising began.
    """
    denoise = time.perf_counter() - encoded
    return {"encode": encoded - begin, "denoise": denoise, "evaluation": denoise / max(1, evaluations)}


def replaced(plan: Plan, rows: list[int], other: Plan) -> Plan:
    """`plan`, with the plans of `other` in these rows, and what both cost."""
    actions, confidence = plan.actions.clone(), None if plan.confidence is None else plan.confidence.clone()
    actions[rows] = other.actions
    if confidence is not None and other.confidence is not None:
        confidence[rows] = other.confidence
    each = list(plan.nfe_rows or (plan.nfe,) * len(actions))
    for row, more in zip(rows, other.nfe_rows or (other.nfe,) * len(rows), strict=True):
        each[row] += more
    return replace(
        plan,
        actions=actions,
        confidence=confidence,
        nfe=plan.nfe + other.nfe,
        nfe_rows=tuple(each),
        cold=tuple(row in rows for row in range(len(actions))),
        timing={
            **{key: plan.timing[key] + other.timing[key] for key in ("encode", "denoise")},
            "evaluation": max(plan.timing["evaluation"], other.timing["evaluation"]),
        },
    )
