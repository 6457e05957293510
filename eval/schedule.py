"""Which episode runs where: decided by the list of episodes alone, never by timing or by the number of processes."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

from .slot import Job

# Building a simulator costs as much as several episodes, so a slot changes to another task only for this many.
WORTH_MOVING = 4


class Schedule:
    """Hands out jobs to slots, each of which holds one simulator of one task.

    A slot stays with its task while that has jobs left. Then it takes a task that nobody serves, or the task with the most
    waiting jobs a slot if that is worth building another simulator; otherwise it is done.

    Args:
        jobs: in the order in which each task's episodes are to start.
        slots: how many episodes run at once, at most.
    """

    def __init__(self, jobs: Sequence[Job], slots: int) -> None:
        self._waiting: dict[str, deque[Job]] = {}
        for job in jobs:
            self._waiting.setdefault(job.task, deque()).append(job)
        self._task: dict[int, str] = {}
        first = [(slot, self.next(slot)) for slot in range(min(slots, len(jobs)))]
        self.first = {slot: job for slot, job in first if job is not None}

    def next(self, slot: int) -> Job | None:
        """The slot's next job; None when it has no more to do."""
        task = self._task.get(slot)
        if task is None or not self._waiting[task]:
            task = self._choose()
            if task is None:
                self._task.pop(slot, None)
                return None
            self._task[slot] = task
        return self._waiting[task].popleft()

    def _choose(self) -> str | None:
        serving = Counter(self._task.values())
        open_tasks = [task for task, jobs in self._waiting.items() if jobs]
        unserved = [task for task in open_tasks if not serving[task]]
        if unserved:
            return unserved[0]
        worth = [task for task in open_tasks if len(self._waiting[task]) >= WORTH_MOVING]
        return max(worth, key=lambda task: len(self._waiting[task]) / serving[task], default=None)
