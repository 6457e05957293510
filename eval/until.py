"""When an evaluation knows enough."""

from __future__ import annotations

from typing import Any

from ..config import UsageError
from .metrics import wilson
from .protocol import EvaluationProtocol
from .slot import Outcome


class Until:
    """Stops once the overall Wilson 95 % interval's half-width is at most `half_width`.

    It looks only at whole rounds: round r is the episode with index r of every task. So every task has as many episodes,
    and where it stops depends on the episodes alone, not on the order in which they end. Episodes of later rounds, which
    ended meanwhile, don't count.

    Args:
        half_width: in (0, 0.5).
        protocol: with the most episodes of each task.

    Raises:
        UsageError: another `half_width`.
    """

    def __init__(self, half_width: float, protocol: EvaluationProtocol) -> None:
        if not 0 < half_width < 0.5:
            raise UsageError(f"until={half_width}: expected above 0 and below 0.5, half the width of an interval of a share")
        self.asked, self._protocol = half_width, protocol
        self._success: dict[tuple[str, int], bool] = {}
        self.rounds, self.half_width = 0, 0.5

    @property
    def reached(self) -> bool:
        return self.half_width <= self.asked

    def add(self, outcome: Outcome) -> None:
        """Takes note of one more episode."""
        self._success[outcome.job.task, outcome.job.index] = outcome.success
        tasks = self._protocol.tasks
        while not self.reached and all((task, self.rounds) in self._success for task in tasks):
            self.rounds += 1
            known = [self._success[task, index] for task in tasks for index in range(self.rounds)]
            _, low, high = wilson(sum(known), len(known))
            self.half_width = (high - low) / 2

    def counts(self, outcome: Outcome) -> bool:
        """Whether the episode belongs to the result."""
        return not self.reached or outcome.job.index < self.rounds

    def to_json(self) -> dict[str, Any]:
        return {"until": self.asked, "reached": self.reached, "rounds": self.rounds, "half_width": self.half_width}
