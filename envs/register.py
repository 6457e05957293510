"""The register of simulators, and what a task's id means.

Task ids are `<simulator>/<task>`; a suite's id, such as `metaworld/mt10`, stands for several tasks. A simulator is one module:
to add one, write it and name it in ENVS. Nothing heavy is imported before `make`. A mapping file's path is a task's id too; and
an id may begin with a place, where another process has the environment: `remote/NAME/`, `ws://HOST:PORT/`.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import PurePath
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np

from ..spec import KinoiseError, Spec
from .base import Env
from .mapping import digest, is_mapping, parse, read
from .remote.place import split

ENVS = {
    "metaworld": ".metaworld",
    "libero": ".libero",
    "ogbench": ".ogbench",
    "pusht": ".pusht",
    "robosuite": ".robosuite",
}
"""The first needs nothing besides kinoise: examples are taken from it."""


@runtime_checkable
class Simulator(Protocol):
    """What a module named in ENVS holds; and, where its tasks' episodes are not equally long, `horizon(task)`."""

    TASKS: Mapping[str, str]
    """Instructions by task."""
    SUITES: Mapping[str, Sequence[str]]
    """Tasks by suite. With suites, all tasks have one spec."""
    CAMERAS: Sequence[str]
    """What `cameras` of `make` may name."""

    def canonical(self, name: str) -> str:
        """The task or suite that `name` means; itself when it isn't another name for one."""
        ...

    def make(self, task: str, *, render: bool, cameras: Sequence[str], size: int) -> Env:
        """A module with PERTURBATIONS also takes `perturb`, strengths by kind."""
        ...


def make(
    task: str,
    *,
    render: bool = False,
    cameras: Sequence[str] = (),
    size: int = 84,
    perturb: Mapping[str, float] | None = None,
) -> Env:
    """Builds one task's environment.

    Args:
        task: its id.
        render: whether `render` will be called.
        cameras: by name; each adds an observation `image.<camera>`.
        size: of these images, `[size, size, 3]`.
        perturb: strengths of the simulator's `perturbations`, by kind.

    Raises KinoiseError: unknown task, camera or perturbation, a suite instead of a task, no OpenGL for pictures.
    """
    found = _find(task)
    module = _load(found.simulator)
    if found.name in module.SUITES:
        raise KinoiseError(f"{task} is a suite of tasks: make takes one, for example {tasks(task)[0]}")
    known = perturbations(task)
    for kind in perturb or {}:
        if kind not in known:
            there = f"it has {', '.join(known)}" if known else "it has none"
            raise KinoiseError(f"{task}: there is no perturbation '{kind}': {there}")
    extra = {"perturb": dict(perturb)} if perturb else {}
    if found.place:
        name, module = str(found), cast(Simulator, import_module(".remote.env", __package__))
    else:
        name = found.name
    return module.make(name, render=render, cameras=tuple(cameras), size=size, **extra)


def perturbations(task: str) -> Mapping[str, str]:
    """By kind, what the strengths of the perturbations mean that `task`'s simulator offers."""
    return getattr(_load(_find(task).simulator), "PERTURBATIONS", {})


def showing(spec: Spec, perturb: Mapping[str, float] | None = None) -> Callable[..., Env]:
    """`make` for environments that show what `spec` observes: its cameras, at their size, perturbed as `perturb` says.

    Raises KinoiseError for images of several sizes, which no simulator renders.
    """
    images = {key: item for key, item in spec.observations.items() if item.kind == "image"}
    if not images:
        return partial(make, perturb=perturb) if perturb else make
    sizes = {item.shape[:2] for item in images.values()}
    if len(sizes) > 1 or len(set(*sizes)) > 1:
        raise KinoiseError(f"the policy's images have the sizes {sorted(sizes)}; simulators render one square size")
    cameras = tuple(key.removeprefix("image.") for key in images)
    return partial(make, cameras=cameras, size=sizes.pop()[0], **({"perturb": perturb} if perturb else {}))


def tasks(env: str) -> tuple[str, ...]:
    """The full ids of the tasks that `env` means: a suite, a task, or several of them, `metaworld/push,reach`.

    Raises KinoiseError when there is no such, or one is named twice.
    """
    first, *others = env.split(",")
    found = [_find(first)]
    found += [_find(name if "/" in name or is_mapping(name) else str(found[0]._replace(name=name))) for name in others]
    members = [(item, task) for item in found for task in _load(item.simulator).SUITES.get(item.name, (item.name,))]
    ids = [str(item._replace(name=task)) for item, task in members]
    if len(set(ids)) < len(ids):
        raise KinoiseError(f"env '{env}': a task is named twice")
    return tuple(ids)


def instruction(task: str) -> str:
    """What `task`, a full id, asks for; without building it.

    Raises KinoiseError when there is no such task, and for a mapping file that lies elsewhere or leaves it to the environment.
    """
    found = _find(task)
    if is_mapping(found.name):
        said = None if found.place else parse(task, read(task)).instruction
        if not isinstance(said, str):
            why = "the file lies on another machine" if found.place else "the environment draws them (instruction.info)"
            raise KinoiseError(f"{task}: what it asks for is not known beforehand, {why}. Give data=, demonstrations of it.")
        return said
    return _load(found.simulator).TASKS[found.name]


def family(task: str) -> str:
    """What `task`, a full id, and others are of that show and take the same, and begin alike: a simulator that has suites,
    and its place; else the task itself.
    """
    place, own = split(task)
    simulator = own.partition("/")[0]
    if is_mapping(own) or (simulator in ENVS and not _load(simulator).SUITES):
        return task
    return place + simulator


def firsts(tasks: Sequence[str]) -> list[str]:
    """The first task of each family, in order."""
    known: dict[str, str] = {}
    for task in tasks:
        known.setdefault(family(task), task)
    return list(known.values())


def bare(task: str) -> str:
    """A full id without its place, and without the folder of a mapping file: the same wherever the task is simulated."""
    _, own = split(task)
    return PurePath(own).name if is_mapping(own) else own


def described(tasks: Sequence[str]) -> dict[str, str]:
    """Of those that are mapping files here, what `mapping.digest` makes of their content; elsewhere it can't be read."""
    return {task: digest(task) for task in tasks if not split(task)[0] and is_mapping(task)}


def horizon(task: str) -> int | None:
    """Most steps of an episode of `task`, a full id, without building it; None where all its family have as many."""
    said = _optional(task, "horizon")
    return None if said is None else said(split(task)[1].partition("/")[2])


def check_recorded(tasks: Sequence[str], env_args: Mapping[str, Any]) -> None:
    """Compares what demonstrations say of where they were recorded (robomimic's `env_args`) with where they would be used.

    Raises KinoiseError, with every difference, when a simulator knows that its task is another environment. Nothing is compared
    where nothing is said (`env_args` is empty), by simulators that keep no such record, and of environments elsewhere.
    """
    for found in map(_find, tasks if env_args else ()):
        check = None if found.place else getattr(_load(found.simulator), "check_recorded", None)
        if check is not None:
            check(found.name, env_args)


def check_made(task: str, meta: Mapping[str, Any], env_args: Mapping[str, Any]) -> None:
    """The same for an environment that was made, wherever it is, by what it says of itself (`Env.meta`)."""
    check = _optional(task, "check_made")
    if check is not None and env_args:
        check(task, meta, env_args)


def choices() -> str:
    """The ids there are, for `--help`."""
    parts = []
    for simulator in ENVS:
        module = _load(simulator)
        if not module.SUITES:
            parts.append(", ".join(f"{simulator}/{task}" for task in module.TASKS))
            continue
        suites = ", ".join(f"{simulator}/{suite}" for suite in module.SUITES)
        parts.append(f"{suites}, or {simulator}/TASK[,TASK...] with TASK one of {', '.join(module.TASKS)}")
    parts.append("FILE.yaml, a mapping of a Gymnasium environment; remote/NAME/ENV or ws://HOST:PORT/ENV, in another process")
    return "; ".join(parts)


def cameras() -> str:
    """The cameras there are, for `--help`."""
    return "; ".join(f"{simulator}: {', '.join(_load(simulator).CAMERAS)}" for simulator in ENVS)


def episode_seed(seed: int, task: str, index: int) -> int:
    """What an episode's environment is reset with: a hash of its arguments and nothing else, below 2**53 (exact in JSON).

    Neither an id's place counts nor the folder of a mapping file: a task has the same episodes everywhere.
    """
    if seed < 0 or index < 0:
        raise KinoiseError(f"expected a seed and an index of at least 0, came seed={seed}, index={index}")
    name = int.from_bytes(hashlib.sha256(bare(task).encode()).digest()[:16])
    return int(np.random.SeedSequence([seed, name, index]).generate_state(1, np.uint64)[0] >> np.uint64(11))


class _Id(NamedTuple):
    """An id in its parts: its place, "" for this process; the simulator, "" for a mapping file; the task or suite."""

    place: str
    simulator: str
    name: str

    def __str__(self) -> str:
        return self.place + (f"{self.simulator}/" if self.simulator else "") + self.name


def _find(env: str) -> _Id:
    place, own = split(env)
    return _Id(place, "", own) if is_mapping(own) else _Id(place, *_registered(own))


def _registered(env: str) -> tuple[str, str]:
    simulator, slash, name = env.partition("/")
    candidates = [simulator] if slash else list(ENVS)
    for candidate in candidates:
        if candidate in ENVS:
            module = _load(candidate)
            found = module.canonical(name if slash else env)
            if found in module.TASKS or found in module.SUITES:
                return candidate, found
    known = [f"{item}/{name}" for item in ENVS for name in (*_load(item).SUITES, *_load(item).TASKS)]
    close = [] if env in ENVS else difflib.get_close_matches(env if slash else f"{next(iter(ENVS))}/{env}", known, 3)
    hint = f"Did you mean {' or '.join(close)}?" if close else f"Take for example {known[0]}; kinoise collect --help lists all."
    raise KinoiseError(f"unknown env '{env}'. {hint}")


def _optional(task: str, name: str) -> Callable[..., Any] | None:
    """What the simulator of `task`, a full id, has under a name that not all of them know."""
    _, own = split(task)
    simulator = own.partition("/")[0]
    return None if is_mapping(own) or simulator not in ENVS else getattr(_load(simulator), name, None)


def _load(simulator: str) -> Simulator:
    """A simulator's module; "" is that of mapping files."""
    return cast(Simulator, import_module(ENVS[simulator] if simulator else ".mapped", __package__))
