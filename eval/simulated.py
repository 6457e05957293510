"""What a simulator shows and takes, for those that need no more of it than its spec."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from .. import envs
from ..spec import Spec


def simulated(env: str, cameras: Sequence[str], size: int) -> tuple[Spec, tuple[str, ...]]:
    """The spec and the distinct instructions of `env`, a task or several.

    Args:
        cameras: by name; each is an observation `image.<camera>`, `[size, size, 3]`.

    Raises KinoiseError: no such task or camera, and tasks that show or take different things.
    """
    tasks = envs.tasks(env)
    first, *others = envs.firsts(tasks)
    with closing(envs.make(first, cameras=cameras, size=size)) as made:
        spec = made.spec
    for task in others:
        with closing(envs.make(task, cameras=cameras, size=size)) as other:
            spec.require(other.spec, (first, task))
    return spec, tuple(dict.fromkeys(map(envs.instruction, tasks)))
