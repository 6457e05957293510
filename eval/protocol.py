"""What an evaluation plays: which tasks, how many episodes, from which initial states, for how long."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, TypeVar

from ..config import UsageError
from ..envs import episode_seed
from .slot import UPRIGHT, Job, Terms

# Names of protocols that follow no preset. Initial states are drawn from the seed, or are the simulator's stored ones.
SEEDED, STORED = "seeded", "stored"
# An episode's seed is `episode_seed`, which knows seed, task and index and nothing else; or the seed plus the index.
HASHED, COUNTED = "hashed", "counted"
ANY_STEP = "any step"

Item = TypeVar("Item")


@dataclass(frozen=True)
class EvaluationProtocol:
    """Two results are comparable when their protocols have the same hash.

    Args:
        env: as it was asked for: a suite such as "metaworld/mt10", or a task.
        tasks: full ids.
        episodes: of each task.
        horizon: steps after which an episode has failed; by task where they differ.
        seed: what all initial states are drawn from.
        name: of the preset, and which of its values were changed; or how initial states are had.
        seeding: how an episode's seed follows from `seed`: "hashed" or "counted".
        stored: how many initial states the simulator has stored for each task; episode i begins in that with number
            i modulo `stored`, whatever was played before. 0: they are drawn from the episode's seed.
        wait: steps of `idle` after the reset, before the policy sees anything; they don't count for the horizon.
        idle: the action of these steps.
        success: when it is judged: an episode ends with success at any step.
        images: how they are turned: "upright", "mirrored" or "upside_down".
        size: of images, in pixels a side, for policies that look; None: whatever the policy looks at.
        perturb: strengths of perturbations, by kind.
        mappings: of tasks that are mapping files, a SHA-256 of what these say.
    """

    env: str
    tasks: tuple[str, ...]
    episodes: int
    horizon: int | Mapping[str, int]
    seed: int
    name: str = SEEDED
    seeding: str = HASHED
    stored: int = 0
    wait: int = 0
    idle: tuple[float, ...] = ()
    success: str = ANY_STEP
    images: str = UPRIGHT
    size: int | None = None
    perturb: Mapping[str, float] = field(default_factory=dict)
    mappings: Mapping[str, str] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """16 hexadecimal digits of the SHA-256 of everything else."""
        text = json.dumps(self._plain(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def steps(self, task: str) -> int:
        """The horizon of `task`."""
        return self.horizon if isinstance(self.horizon, int) else self.horizon[task]

    def episode_seeds(self) -> list[tuple[str, int, int]]:
        """(task, index, seed) of every episode, task by task."""
        return [
            (task, index, self.seed + index if self.seeding == COUNTED else episode_seed(self.seed, task, index))
            for task in self.tasks
            for index in range(self.episodes)
        ]

    def jobs(self, history: int, keys: Sequence[str]) -> list[Job]:
        """Every episode, task by task, for a policy that observes these keys with so many steps of history."""
        terms = {task: Terms(history, tuple(keys), self.steps(task), self.wait, self.idle, self.images) for task in self.tasks}
        return [Job(task, index, seed, terms[task]) for task, index, seed in self.episode_seeds()]

    def to_json(self) -> dict[str, Any]:
        return {**self._plain(), "tasks": list(self.tasks), "idle": list(self.idle), "hash": self.hash}

    def _plain(self) -> dict[str, Any]:
        """All of it; `mappings` only where there are any."""
        return {key: item for key, item in asdict(self).items() if item or key != "mappings"}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> EvaluationProtocol:
        """Of what `to_json` gives. Raises KeyError or TypeError for anything else."""
        plain = {key: item for key, item in value.items() if key != "hash"}
        return cls(**{**plain, "tasks": tuple(plain["tasks"]), "idle": tuple(plain["idle"])})


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

    def deal(self, episodes: Sequence[Item]) -> Sequence[Item]:
        """Its own of all episodes, listed task by task: of each task as many as any other shard has, or one more or less.

        Raises UsageError when none is left for it.
        """
        if self.total > len(episodes):
            raise UsageError(f"shard={self.number}/{self.total}: there are only {len(episodes)} episodes to share")
        return episodes[self.number - 1 :: self.total]

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"
