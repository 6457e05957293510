"""What an evaluation plays: which tasks, how many episodes, from which initial states, for how long."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from ..config import UsageError
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


class Shard(NamedTuple):
    """The part of an evaluation that one of several processes plays: `number`, from 1, of `total`."""

    number: int
    total: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From "2/8". Raises UsageError for anything else."""
        number, _, total = text.partition("/")
        if not (number.isdecimal() and total.isdecimal() and 1 <= int(number) <= int(total)):
            raise UsageError(f"shard={text}: expected NUMBER/COUNT from 1/COUNT to COUNT/COUNT, such as 2/8")
        return cls(int(number), int(total))

    def deal(self, episodes: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
        """Its own of all episodes, listed task by task: of each task as many as any other shard has, or one more or less.

        Raises UsageError when none is left for it.
        """
        if self.total > len(episodes):
            raise UsageError(f"shard={self.number}/{self.total}: there are only {len(episodes)} episodes to share")
        return episodes[self.number - 1 :: self.total]

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"
