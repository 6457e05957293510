"""What an evaluation plays: which tasks, how many episodes, from which initial states, for how long."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from ..envs.base import episode_seed

# Initial states by `episode_seed`, which knows the seed, the task and the episode's index and nothing else; an episode
# succeeds at any step, and ends there.
SEEDED = "seeded"


@dataclass(frozen=True)
class EvaluationProtocol:
    """Two results are comparable when their protocols have the same hash.

    Args:
        env: as it was asked for: a suite such as "metaworld/mt10", or a task.
        tasks: full ids.
        episodes: of each task.
        horizon: steps after which an episode has failed.
        seed: what all initial states are drawn from.
        name: how initial states are drawn and success is judged.
    """

    env: str
    tasks: tuple[str, ...]
    episodes: int
    horizon: int
    seed: int
    name: str = SEEDED

    @property
    def hash(self) -> str:
        """16 hexadecimal digits of the SHA-256 of everything else."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def episode_seeds(self) -> list[tuple[str, int, int]]:
        """(task, index, seed) of every episode, task by task."""
        return [(task, index, episode_seed(self.seed, task, index)) for task in self.tasks for index in range(self.episodes)]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "tasks": list(self.tasks), "hash": self.hash}
