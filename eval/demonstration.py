"""One demonstration by a simulator's scripted expert: played, kept in a file of its own, read again. No torch here."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from .. import envs
from ..data.base import ACTION, Episode
from ..data.check import check_episode, label
from ..envs import Env, episode_seed
from ..envs.base import EnvGone, EnvLost, Expert
from ..files import write_file, write_text
from ..spec import KinoiseError
from .disturb import Disturbed
from .slot import describe

# Steps recorded after the first success. An episode that stopped there would teach to arrive at the border of success and no
# further, and a policy's small errors fall on both sides of it. In these steps (an eighth of a second in Metaworld) the expert
# goes on into the goal, and what comes after success is shown too; many more would be idle frames, which teach standing still.
HOLD = 10
HEADER = "kinoise"


@dataclass(frozen=True)
class Recipe:
    """With a task and an attempt's index, all that an attempt depends on.

    Args:
        seed: what initial states and noise are drawn from.
        noise: standard deviation of the Gaussian noise on executed actions, in the action's units.
        cameras: images to record, by name.
        size: of the images.
        disturb: the chance, at each step, that a disturbance begins (`Disturbed`).
    """

    seed: int
    noise: float
    cameras: tuple[str, ...]
    size: int
    disturb: float = 0.0

    def make(self, task: str) -> Env:
        return envs.make(task, cameras=self.cameras, size=self.size)


class Unfit(KinoiseError):
    """No attempt at all can be made: there is no expert, or no simulator any more."""


@dataclass(frozen=True)
class Attempted:
    """What became of an attempt.

    Args:
        trouble: why it could not be played to its end; "" when it was.
        lost: whether that was the end of the simulator's own process, in another of which it may well be played.
    """

    success: bool = False
    steps: int = 0
    trouble: str = ""
    lost: bool = False


def play(env: Env, recipe: Recipe, index: int, beat: Callable[[], None] = lambda: None) -> Episode:
    """An attempt at demonstrating `env`'s task; `info["success"]` says whether it is a demonstration.

    Noise and disturbances change what is executed and not what is recorded: states beside the expert's path come with the
    commands that lead back to it (DART: Laskey et al. 2017, "Noise Injection for Robust Imitation Learning").

    Args:
        beat: called after the reset, the expert's making and every step.

    Raises Unfit when there is no expert, KinoiseError for an attempt that is not finite, and what the simulator raises.
    """
    seed = episode_seed(recipe.seed, env.task, index)
    executed = Disturbed(env.spec, recipe.noise, recipe.disturb, seed)
    observation, _ = env.reset(seed=seed)
    beat()
    expert = _expert(env)
    beat()
    observations, actions, success, end = [], [], False, env.horizon
    while len(actions) < end:
        action = expert.act(observation)
        observations.append(observation)
        actions.append(action)
        observation, _, terminated, truncated, info = env.step(executed(action))
        beat()
        if info["success"] and not success:
            success, end = True, min(end, len(actions) + HOLD)
        if terminated or truncated:
            break
    arrays = {key: np.stack([item[key] for item in observations]) for key in env.spec.observations}
    info = {
        "task": env.task,
        "index": index,
        "seed": seed,
        "initial": env.initial(),
        "success": success,
        "steps": len(actions),
    }
    episode = Episode({**arrays, ACTION: np.stack(actions)}, env.instruction, info)
    check_episode(env.spec, {}, episode, label(index, episode))
    return episode


def _expert(env: Env) -> Expert:
    try:
        return env.expert()
    except EnvLost:
        raise
    except KinoiseError as error:
        raise Unfit(str(error)) from error


class Folder:
    """Attempts as files: `<task>/<index>.npz` is a demonstration, `<task>/<index>.failed` says that there is none.

    One that is not empty says why the attempt could not be played to its end: that may have been an accident, the machine's or
    the network's, so it counts as not made when the command begins again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def found(self, task: str) -> dict[int, bool]:
        """By index whether an attempt was a success, of those that are there."""
        files = [(int(file.stem), file) for file in self._of(task).glob("[0-9]*")]
        return {index: file.suffix == ".npz" for index, file in files if file.suffix == ".npz" or not file.stat().st_size}

    def give_up(self, task: str, index: int, trouble: str) -> None:
        """Writes down why an attempt could not be played to its end."""
        write_text(self._of(task) / f"{index:06d}.failed", f"{trouble}\n")

    def write(self, episode: Episode) -> None:
        file = self._of(episode.info["task"]) / f"{episode.info['index']:06d}"
        if not episode.info["success"]:
            write_text(file.with_suffix(".failed"), "")
            return
        file.with_suffix(".failed").unlink(missing_ok=True)  # a reason, of an attempt that has been made again
        header = np.array(json.dumps({"instruction": episode.instruction, "info": episode.info}))
        arrays: dict[str, Any] = {HEADER: header, **episode.arrays}
        write_file(file.with_suffix(".npz"), lambda path: np.savez(path, **arrays))

    def read(self, task: str, index: int) -> Episode:
        """A demonstration that `found` names. Raises KinoiseError when its file is damaged."""
        file = self._of(task) / f"{index:06d}.npz"
        try:
            with np.load(file, allow_pickle=False) as content:
                arrays = {key: content[key] for key in content.files}
            return Episode(arrays, **json.loads(arrays.pop(HEADER).item()))
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise KinoiseError(f"{file} is damaged ({error!r}). Remove it and run the command again.") from error

    def _of(self, task: str) -> Path:
        return self.path / task.replace("/", ".")


def serve(connection: Connection, recipe: Recipe, folder: Folder, done: Any) -> None:
    """A worker process: plays and writes each `(task, index)` that comes, until the other end of the pipe is closed.

    Answers with what became of it, or with a line that says why nothing further can be played.

    Args:
        done: shared with the main process; its `value` says how often the process got on.
    """
    env: Env | None = None

    def beat() -> None:
        done.value += 1

    beat()
    try:
        while True:
            task, index = connection.recv()
            beat()
            try:
                if env is None or env.task != task:
                    if env is not None:
                        env.close()
                    env = recipe.make(task)
                beat()
                reply: Attempted | str = _attempt(env, recipe, index, folder, beat)
            except EnvLost as error:  # while it was made
                reply = Attempted(trouble=describe(error), lost=True)
            except KinoiseError as error:
                reply = str(error)
            except Exception as error:
                reply = f"{task}, attempt {index}: {describe(error)}"
            if isinstance(reply, Attempted) and reply.trouble and not reply.lost and env is not None:
                with suppress(Exception):  # it may be in any state, so the next attempt gets a new one
                    env.close()
                env = None
            connection.send(reply)
    except (EOFError, OSError):
        return


def _attempt(env: Env, recipe: Recipe, index: int, folder: Folder, beat: Callable[[], None]) -> Attempted:
    """Plays and writes one. Raises what no other attempt would be spared either: a full disk, no expert."""
    try:
        episode = play(env, recipe, index, beat)
    except (Unfit, EnvGone):
        raise
    except Exception as error:
        return Attempted(trouble=describe(error) or type(error).__name__, lost=isinstance(error, EnvLost))
    beat()
    folder.write(episode)
    return Attempted(episode.info["success"], episode.info["steps"])
