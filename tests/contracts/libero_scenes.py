"""LIBERO's tasks made once for all tests, begun in a stored state, and a demonstrator's skill carried out in them."""

from __future__ import annotations

from functools import cache

from kinoise.envs import make
from kinoise.envs.experts.libero.motion import Skill
from kinoise.envs.experts.libero.scene import Scene
from kinoise.envs.libero import Libero


@cache
def env(task: str) -> Libero:
    made = make(task)
    assert isinstance(made, Libero)
    return made


def rest(task: str, steps: int = 10) -> None:
    for _ in range(steps):
        env(task).step(env(task).idle_action())


def begun(task: str, index: int = 0) -> Scene:
    """The task's stored state of this number, come to rest."""
    env(task).reset(seed=index, options={"index": index})
    rest(task)
    return Scene(env(task)._scene.upstream)


def played(task: str, skill: Skill) -> bool:
    """What the skill returned."""
    while True:
        try:
            env(task).step(next(skill))
        except StopIteration as end:
            return bool(end.value)
