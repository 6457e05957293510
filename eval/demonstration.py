"""One demonstration by a simulator's scripted expert: played, kept in a file of its own, read again. No torch here."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from .. import envs
from ..data.base import ACTION, Episode
from ..envs import Env, episode_seed
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


def play(env: Env, recipe: Recipe, index: int) -> Episode:
    """An attempt at demonstrating `env`'s task; `info["success"]` says whether it is a demonstration.

    Noise and disturbances change what is executed and not what is recorded: states beside the expert's path come with the
    commands that lead back to it (DART: Laskey et al. 2017, "Noise Injection for Robust Imitation Learning").
    """
    seed = episode_seed(recipe.seed, env.task, index)
    executed = Disturbed(env.spec, recipe.noise, recipe.disturb, seed)
    observation, _ = env.reset(seed=seed)
    expert = env.expert()
    observations, actions, success, end = [], [], False, env.horizon
    while len(actions) < end:
        action = expert.act(observation)
        observations.append(observation)
        actions.append(action)
        observation, _, terminated, truncated, info = env.step(executed(action))
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
    return Episode({**arrays, ACTION: np.stack(actions)}, env.instruction, info)


class Folder:
    """Attempts as files: `<task>/<index>.npz` is a demonstration, `<task>/<index>.failed` says that there is none."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def found(self, task: str) -> dict[int, bool]:
        """By index whether an attempt was a success, of those that are there."""
        return {int(file.stem): file.suffix == ".npz" for file in self._of(task).glob("[0-9]*")}

    def write(self, episode: Episode) -> None:
        file = self._of(episode.info["task"]) / f"{episode.info['index']:06d}"
        if not episode.info["success"]:
            write_text(file.with_suffix(".failed"), "")
            return
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


def serve(connection: Connection, recipe: Recipe, folder: Folder) -> None:
    """A worker process: plays and writes each `(task, index)` that comes, until the other end of the pipe is closed.

    Answers with whether it was a success and its steps, or with a line that says what went wrong.
    """
    env: Env | None = None
    try:
        while True:
            task, index = connection.recv()
            try:
                if env is None or env.task != task:
                    if env is not None:
                        env.close()
                    env = recipe.make(task)
                episode = play(env, recipe, index)
                folder.write(episode)
                reply = (episode.info["success"], episode.info["steps"])
            except KinoiseError as error:
                reply = str(error)
            except Exception as error:
                reply = f"{task}, attempt {index}: {describe(error)}"
            connection.send(reply)
    except (EOFError, OSError):
        return
