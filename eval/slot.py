"""One simulator and the episodes that it plays, one after the other. Runs in a worker process: no torch here."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from ..envs.base import Env, EnvGone, EnvLost, Values
from ..spec import KinoiseError, Spec
from .video import Film

FRAMES_PER_SECOND = 20.0

# How images are shown to the policy. LIBERO's own come upside down; turned by 180 degrees, as many projects turn them, they are
# upright and mirrored.
UPRIGHT, MIRRORED, UPSIDE_DOWN = "upright", "mirrored", "upside_down"
TURNS: dict[str, tuple[slice, ...]] = {
    UPRIGHT: (),
    MIRRORED: (slice(None), slice(None, None, -1)),
    UPSIDE_DOWN: (slice(None, None, -1),),
}
"""What has to be done to an upright image, `[height, width, 3]`."""

Make = Callable[..., Env]  # (task, *, render: bool) -> Env


@runtime_checkable
class Driver(Protocol):
    """Decides an episode's actions beside the simulator, step by step; such an episode needs no plans."""

    def start(self, env: Env, seed: int) -> Callable[[Values], np.ndarray]:
        """What maps each observation of the episode that has just been reset to the next action."""
        ...


@dataclass(frozen=True)
class ReplayDriver:
    """Actions that are known beforehand; if the episode outlasts them, that is its error."""

    actions: Float[np.ndarray, "steps action"]

    def start(self, env: Env, seed: int) -> Callable[[Values], np.ndarray]:
        actions = iter(self.actions)
        return lambda observation: next(actions)


@dataclass(frozen=True)
class Terms:
    """What the episodes of a task share in one evaluation.

    Args:
        history: steps that are observed.
        keys: of what is observed.
        horizon: the most steps taken.
        wait: steps of `idle` that come before the first observation, and don't count.
        idle: an action.
        images: how they are turned, a key of TURNS.
    """

    history: int
    keys: tuple[str, ...]
    horizon: int
    wait: int = 0
    idle: tuple[float, ...] = ()
    images: str = UPRIGHT


@dataclass(frozen=True)
class Job:
    """One episode to run.

    Args:
        task: full id, such as "metaworld/push".
        index: of the episode within its task.
        seed: what the simulator is reset with.
        terms: those of the evaluation.
        driver: decides the actions inside the simulator's process; None when a policy plans them.
        film: where its video goes, if it is to be recorded.
        keep: whether its observations and actions come back.
    """

    task: str
    index: int
    seed: int
    terms: Terms
    driver: Driver | None = None
    film: Path | None = None
    keep: bool = False


@dataclass(frozen=True)
class Simulator:
    """What a simulator says of itself once it is built.

    Args:
        spec: what it shows and takes.
        horizon: most steps of an episode, unless another number is asked for.
        stored: how many initial states it has stored.
        settle: steps that pass before what they show has come to rest.
        idle: the action that leaves everything as it is; None where there is none.
        meta: see `Env.meta`.
        versions: of Python and the simulator's packages, where it is in a process that is not kinoise's own.
    """

    spec: Spec
    horizon: int
    stored: int = 0
    settle: int = 0
    idle: tuple[float, ...] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of an episode.

    Args:
        job: the episode.
        success: whether it succeeded at any step.
        steps: actions carried out.
        total: sum of the rewards.
        error: why it could not be played to its end; None when it was.
        initial: the drawn initial state, as `Env.initial` gives it; None when the reset failed.
        arrays: when the job said `keep`: observations and "action", `[steps, ...]`, each observation before its action.
    """

    job: Job
    success: bool = False
    steps: int = 0
    total: float = 0.0
    error: str | None = None
    initial: dict[str, Any] | None = None
    arrays: Values = field(default_factory=dict)


class Slot:
    """Holds a simulator, built when its task changes, and plays jobs on it.

    Args:
        beat: called after every step of it.
    """

    def __init__(self, make: Make, beat: Callable[[], None] = lambda: None) -> None:
        self._make, self._beat = make, beat
        self._env: Env | None = None
        self._built: tuple[str, bool] = ("", False)
        self._episode: _Episode | None = None
        self._had: set[str] = set()

    @property
    def waiting(self) -> bool:
        """Whether an episode is under way, which then needs actions."""
        return self._episode is not None

    @property
    def instruction(self) -> str:
        return "" if self._env is None else self._env.instruction

    def build(self, task: str, render: bool) -> Simulator:
        """Makes the simulator unless it is there. Raises what its making raises."""
        env = self._env
        if env is None or self._built[0] != task or (render and not self._built[1]):
            self.close()
            env = self._env = self._make(task, render=render)
            self._built = (task, render)
            self._had.add(task)
        try:
            idle = tuple(float(item) for item in env.idle_action())
        except KinoiseError:
            idle = None
        return Simulator(env.spec, env.horizon, env.stored, env.settle, idle, env.meta(), dict(env.versions))

    def begin(self, job: Job) -> Outcome | None:
        """Resets for `job`; with a driver, plays it to its end.

        Raises EnvLost; then the job can be begun again. Raises EnvGone when a simulator that was there can't be had again: the
        episodes that are left would all fail, and say nothing of the policy.
        """
        try:
            self._have(job)
            assert self._env is not None
            self._episode = _Episode(self._env, job, self._beat)
            over = self._episode.drive()
        except (EnvLost, EnvGone):
            self._drop()
            raise
        except Exception as error:
            return self._fail(job, error)
        return self._finish() if over else None

    def _have(self, job: Job) -> None:
        try:
            self.build(job.task, job.film is not None)
        except EnvLost:
            raise
        except Exception as error:
            if job.task not in self._had:
                raise
            raise EnvGone(f"{job.task} was there, and can't be had again: {describe(error)}") from error

    def advance(self, actions: Float[np.ndarray, "execute action"]) -> Outcome | None:
        """Carries out `actions`; the outcome, once the episode ends. Raises EnvLost; then the job can be begun again."""
        assert self._episode is not None
        try:
            over = any(self._episode.step(action, len(actions) - count) for count, action in enumerate(actions, 1))
        except EnvLost:
            self._drop()
            raise
        except Exception as error:
            return self._fail(self._episode.job, error)
        return self._finish() if over else None

    def observation(self) -> Values:
        """By key the last observations, `[history, ...]`, oldest first; before there were that many, the first repeats."""
        assert self._episode is not None
        return self._episode.observation()

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
        self._env = None

    def _finish(self) -> Outcome:
        """The outcome. A video that can't be written is not the episode's fault: it raises."""
        assert self._episode is not None
        outcome = self._episode.outcome()
        self._episode.save_film()
        self._episode = None
        return outcome

    def _fail(self, job: Job, error: Exception) -> Outcome:
        """The outcome of an episode that raised. The simulator may be in any state, so the next episode gets a new one."""
        text = describe(error)
        outcome = Outcome(job, error=text)
        if self._episode is not None:
            outcome = self._episode.outcome(text)
        self._drop()
        with suppress(Exception):
            self.close()
        self._env = None
        return outcome

    def _drop(self) -> None:
        """Forgets the episode."""
        if self._episode is not None:
            self._episode.drop_film()
        self._episode = None


class _Episode:
    def __init__(self, env: Env, job: Job, beat: Callable[[], None]) -> None:
        self.job, self._beat = job, beat
        self._env, self._terms = env, job.terms
        self._success, self._steps, self._total = False, 0, 0.0
        env.horizon = job.terms.wait + job.terms.horizon
        # What lies before the first look, and between one look and the next, need not be drawn.
        env.drawn = job.terms.wait == 0
        observation, _ = env.reset(seed=job.seed, options={"index": job.index})
        self._initial = env.initial()
        for left in range(job.terms.wait)[::-1]:
            env.drawn = left == 0
            observation, *_ = env.step(np.array(job.terms.idle, np.float32))
            beat()
        self._turned = {key for key in job.terms.keys if env.spec.observations[key].kind == "image"}
        self._seen = deque([observation] * job.terms.history, maxlen=job.terms.history)
        self._kept: list[tuple[Values, np.ndarray]] = []
        self._every = max(1, round(env.spec.rate / FRAMES_PER_SECOND))
        self._film = Film(job.film, env.spec.rate / self._every) if job.film else None
        self._act = job.driver.start(env, job.seed) if job.driver else None
        self._record()

    def drive(self) -> bool:
        """Plays to the end if the job has a driver; whether it did."""
        if self._act is None:
            return False
        while not self.step(self._act(self._seen[-1])):
            pass
        return True

    def step(self, action: np.ndarray, left: int = 0) -> bool:
        """Carries out one action, after which `left` more come before the next look; whether the episode is over."""
        if not np.isfinite(action).all():
            raise KinoiseError(f"action {np.asarray(action).tolist()} at step {self._steps} is not finite")
        self._env.drawn = self.job.keep or left < self._terms.history
        observation, reward, terminated, truncated, info = self._env.step(action)
        self._beat()
        reward = float(reward)
        if not np.isfinite(reward):
            raise KinoiseError(f"the simulator's reward at step {self._steps} is {reward}")
        if self.job.keep:
            self._kept.append((self._seen[-1], np.asarray(action)))
        self._seen.append(observation)
        self._steps += 1
        self._total += reward
        self._success = bool(info["success"])
        over = self._success or bool(terminated) or bool(truncated) or self._steps >= self._terms.horizon
        if over or self._steps % self._every == 0:
            self._record()
        return over

    def observation(self) -> Values:
        return {key: np.stack([self._shown(key, item[key]) for item in self._seen]) for key in self._terms.keys}

    def _shown(self, key: str, value: np.ndarray) -> np.ndarray:
        return value[TURNS[self._terms.images]] if key in self._turned else value

    def outcome(self, error: str | None = None) -> Outcome:
        arrays = {}
        if self._kept:
            arrays = {key: np.stack([seen[key] for seen, _ in self._kept]) for key in self._terms.keys}
            arrays["action"] = np.stack([action for _, action in self._kept])
        success = self._success and error is None
        return Outcome(self.job, success, self._steps, self._total, error, self._initial, arrays)

    def save_film(self) -> None:
        if self._film is not None:
            self._film.save()
            self._film.close()

    def drop_film(self) -> None:
        if self._film is not None:
            self._film.close()

    def _record(self) -> None:
        if self._film is not None:
            self._film.add(self._env.render())


def describe(error: BaseException) -> str:
    """An exception on one line, with the place it came from unless its message is meant to be read as it is."""
    text = " ".join(str(error).split())
    if isinstance(error, KinoiseError):
        return text
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {text} ({Path(place.filename).name}, line {place.lineno})"
