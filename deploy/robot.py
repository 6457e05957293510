"""What the controller asks of a robot, and the simulators behind that question."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from ..envs import Env, episode_seed
from ..spec import KinoiseError, Spec
from .clock import Clock, MonotonicClock
from .guards import Action

# A step of the simulated world ends this part of a period before the tick that observes it, so that a tick which begins a
# little earlier or later than the one before still finds exactly one step done.
LEAD = 0.25


class Reading(NamedTuple):
    """What a robot's sensors say now.

    Args:
        values: by the spec's keys; state float32, images uint8, without time.
        instruction: what the robot is to do; "" when the spec has no language.
        episode: changes when the scene was restarted, so that nothing from before is mixed with what comes after.
        time: when the oldest of `values` was measured, seconds on the loop's clock (`time.monotonic()`); None for just now.
    """

    values: dict[str, np.ndarray]
    instruction: str = ""
    episode: int = 0
    time: float | None = None


class ObservationTimeout(KinoiseError):
    """The sensors have nothing to show: the loop goes on with the reading before, until that is stale."""


@runtime_checkable
class Robot(Protocol):
    """A robot, seen from the control thread: no call may take a noticeable part of a period."""

    @property
    def spec(self) -> Spec: ...

    def observe(self) -> Reading:
        """The newest reading, once a tick. Raises ObservationTimeout when there is none; anything else ends the run."""
        ...

    def command(self, action: Action) -> None:
        """Acts by `action` (physical units, past the guards) until the next command, `servo` times a tick."""
        ...

    def stop(self) -> None:
        """Brings the robot to rest. Called when the fallback stops it, and at the end of every run, whatever ended it."""
        ...


@dataclass
class Episode:
    """What became of one episode.

    Args:
        index: counts the run's episodes.
        seed: that the initial state is drawn from.
        steps: that the world made.
        success: whether the last of them succeeded.
        finished: false for the episode that the end of the run cut off.
        commands: one a step, as carried out.
    """

    index: int
    seed: int
    steps: int = 0
    success: bool = False
    finished: bool = False
    commands: list[Action] = field(default_factory=list, repr=False)

    def to_json(self) -> dict[str, Any]:
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "commands"}


class _Scene:
    """An environment in a thread of its own, where steps and resets keep nobody waiting.

    It does everything in that thread, since a GL context belongs to the thread that made it.
    """

    def __init__(self, make: Callable[[], Env], name: str) -> None:
        self.thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self.env = self.thread.submit(make).result()

    def reset(self, seed: int) -> Future[dict[str, np.ndarray]]:
        return self.thread.submit(lambda: self.env.reset(seed=seed)[0])

    def step(self, action: Action) -> Future[tuple[Any, ...]]:
        return self.thread.submit(self.env.step, action)

    def close(self) -> None:
        self.thread.submit(self.env.close).result()
        self.thread.shutdown()


class SimRobot:
    """A simulator that doesn't wait: it makes a step every period with the latest command, whether or not a new one came.

    One step of the environment is one period of the controller. Metaworld steps at 80 Hz of its own time, and policies are
    trained on one action a step; at `rate=20` its world therefore runs four times slower than life, and a policy has four
    times longer to plan. A step is computed as soon as its command is known and shows when its time has come; when deadlines
    are missed the world moves on with the last command, up to a second's worth (what exceeds it is counted in `frozen`).

    An episode ends with success or at the environment's horizon. The next begins at once, in a second environment that was
    reset meanwhile, from the initial state that its index gives it; its world stands still until its first command. Only an
    episode shorter than a reset makes the robot wait for one.

    Args:
        make: builds one environment; called twice.
        rate: steps per second of wall-clock time.
        seed: of the run; episode `i` starts from `episode_seed(seed, task, i)`.
        clock: what time it is.
        recorded: whether episodes keep their commands, for `replay`: memory that grows as long as it runs.

    Raises:
        KinoiseError: from `observe`, when the simulator failed.
    """

    def __init__(
        self, make: Callable[[], Env], rate: float, seed: int = 0, clock: Clock | None = None, recorded: bool = False
    ) -> None:
        self._recorded = recorded
        self.episodes: list[Episode] = []
        self.frozen = 0
        self._rate, self._seed = rate, seed
        self._clock = clock or MonotonicClock()
        self._scene, self._spare = _Scene(make, "scene-a"), _Scene(make, "scene-b")
        self._first = self._prepare(self._scene, 0)
        self._begin()

    @property
    def spec(self) -> Spec:
        return self._scene.env.spec

    @property
    def episode(self) -> Episode:
        return self.episodes[-1]

    def observe(self) -> Reading:
        due = self._due()
        while self.episode.steps < due and self._origin is not None:
            self._step()
        return Reading(self._values, self._scene.env.instruction, self.episode.index)

    def command(self, action: Action) -> None:
        self._latest = action
        if self._origin is None:
            self._origin = self._clock.now() - self.episode.steps / self._rate
        if self._under_way is None:
            self._under_way = self._carry_out(action)

    def stop(self) -> None:
        self._origin = None
        if self._under_way is not None:
            self._under_way.exception()

    def close(self) -> None:
        """Ends both environments and their threads."""
        self.stop()
        for scene in (self._scene, self._spare):
            scene.close()

    def _due(self) -> int:
        """How many steps of this episode the world should have made by now."""
        if self._origin is None:
            return 0
        due = math.floor((self._clock.now() - self._origin) * self._rate + LEAD)
        excess = due - self.episode.steps - max(1, round(self._rate))
        if excess > 0:
            self.frozen += excess
            self._origin += excess / self._rate
        return due - max(0, excess)

    def _step(self) -> None:
        step = self._under_way or self._carry_out(self._latest)
        self._under_way = None
        self._values, _, terminated, truncated, info = self._result(step)
        episode = self.episode
        episode.steps += 1
        episode.success = bool(info["success"])
        if episode.success or terminated or truncated:
            episode.finished = True
            self._scene, self._spare = self._spare, self._scene
            self._begin()

    def _carry_out(self, action: Action) -> Future[tuple[Any, ...]]:
        if self._recorded:
            self.episode.commands.append(action.copy())
        return self._scene.step(action)

    def _prepare(self, scene: _Scene, index: int) -> Future[dict[str, np.ndarray]]:
        return scene.reset(episode_seed(self._seed, scene.env.task, index))

    def _begin(self) -> None:
        """Starts the episode that the current scene was reset for, and has the other scene reset for the one after."""
        index = len(self.episodes)
        self._values = self._result(self._first)
        self.episodes.append(Episode(index, episode_seed(self._seed, self._scene.env.task, index)))
        self._first = self._prepare(self._spare, index + 1)
        self._under_way: Future[tuple[Any, ...]] | None = None
        self._origin: float | None = None

    def _result(self, future: Future[Any]) -> Any:
        try:
            return future.result()
        except Exception as error:
            raise KinoiseError(
                f"the simulator failed in episode {max(0, len(self.episodes) - 1)}: {type(error).__name__}: {error}. "
                "Run `kinoise doctor`."
            ) from error


def replay(env: Env, episodes: Iterable[Episode], every: int = 1) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    """Carries out a run's commands again and yields every `every`-th frame: rendering takes longer than the loop could spare.

    Raises KinoiseError when an episode doesn't end as it did in the run.
    """
    for episode in episodes:
        env.reset(seed=episode.seed)
        success = False
        for step, action in enumerate(episode.commands[: episode.steps]):
            success = bool(env.step(action)[-1]["success"])
            if step % every == 0:
                yield env.render()
        if success != episode.success:
            raise KinoiseError(
                f"no video: the simulator doesn't repeat itself, episode {episode.index} ended with "
                f"success={episode.success} in the run and success={success} when its commands were carried out again"
            )
