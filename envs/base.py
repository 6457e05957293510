"""What every simulator offers, and the register of simulators.

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
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import Float32, UInt8

from ..spec import Feature, KinoiseError, Spec
from .mapping import digest, is_mapping
from .remote.place import split

Values = dict[str, np.ndarray]

MAX_SIZE = 4096  # pixels a side of an image

ENVS = {
    "metaworld": ".metaworld",
    "libero": ".libero",
    "ogbench": ".ogbench",
    "pusht": ".pusht",
    "robosuite": ".robosuite",
}
"""The first needs nothing besides kinoise: examples are taken from it."""


class EnvLost(KinoiseError):
    """The process that has the environment is gone, and the episode with it; the next `reset` starts another."""


class EnvGone(KinoiseError):
    """What was had once can't be had again: no further episode can be played."""


@runtime_checkable
class Expert(Protocol):
    """A scripted demonstrator."""

    def act(self, observation: Values) -> Float32[np.ndarray, "action"]:
        """The action for what the environment has just shown, within the action's bounds."""
        ...


class Env(gymnasium.Env[Any, np.ndarray]):
    """A simulated task behind Gymnasium's interface.

    Observations are dictionaries with the spec's keys, in the spec's dtypes. `info["success"]` of every step says whether the
    task is done then; success does not end the episode, that is for the caller to decide. Truncation comes at the horizon.
    Actions beyond their bounds are clipped.

    Args:
        task: full id, such as "metaworld/push".
        instruction: what is to be done, in English.
        spec: what is observed and commanded.
        horizon: most steps of an episode; may be set to another number, which holds from the next reset on.

    Attributes:
        stored: how many initial states come with the task, for `reset` to begin in; 0 where each is drawn.
        settle: steps of `idle_action` after which what hangs in the air in such a state has come to rest.
        versions: of Python and the simulator's packages where these are in a process that is not kinoise's own.
    """

    stored: int = 0
    settle: int = 0
    versions: Mapping[str, str] = MappingProxyType({})
    spec: Spec  # pyright: ignore[reportIncompatibleVariableOverride] (Gymnasium's is for its registry, which we don't use)
    task: str
    instruction: str
    horizon: int

    def __init__(self, task: str, instruction: str, spec: Spec, horizon: int) -> None:
        self.task, self.instruction, self.horizon = task, instruction, horizon
        self.spec = spec  # pyright: ignore[reportIncompatibleVariableOverride]
        self.metadata = {"render_modes": ["rgb_array"]}
        self.observation_space = spaces.Dict({key: _space(item) for key, item in spec.observations.items()})
        self.action_space = _space(spec.action)

    def __str__(self) -> str:
        return f"<{type(self).__name__} {self.task}>"

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Values, dict[str, Any]]:
        """The first observation of an episode whose initial state depends on `seed` alone, whatever was played before.

        Without a seed it is the next of the sequence that the last given seed began. `options={"index": i}` begins in stored
        state i modulo `stored`, where there are any, and draws from `seed` only what that leaves open.
        """
        raise NotImplementedError

    def idle_action(self) -> Float32[np.ndarray, "action"]:
        """The action that leaves everything as it is. Raises KinoiseError where there is none."""
        if self.spec.control != "delta":
            raise KinoiseError(f"{self.task} has no action that leaves everything as it is. Leave out wait=.")
        return np.zeros(self.spec.action.shape, np.float32)

    def next_seed(self, seed: int | None) -> int:
        """For `reset`: `seed`, which begins a sequence, or the next of that sequence."""
        super().reset(seed=seed)
        return int(self.np_random.integers(2**53)) if seed is None else seed

    def initial(self) -> dict[str, Any]:
        """What pins the initial state that was drawn, as JSON numbers: equal for two episodes that begin alike."""
        raise NotImplementedError

    def meta(self) -> dict[str, Any]:
        """What `EpisodeStore.meta` of demonstrations from here says, under the name of the format whose words it is in."""
        return {}

    def expert(self) -> Expert:
        """A scripted demonstrator for the episode that the last `reset` began. Raises KinoiseError if there is none."""
        raise KinoiseError(f"{self.task} has no scripted expert: collect needs a task that has one.")

    def render(self) -> UInt8[np.ndarray, "height width 3"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The scene as people see it, RGB, row 0 at the top. Raises KinoiseError unless made with `render=True`."""
        raise KinoiseError(f"{self.task} cannot be rendered")

    def bounded(self, action: np.ndarray) -> Float32[np.ndarray, "action"]:
        """`action` clipped to its bounds. Raises KinoiseError when it isn't finite or has another shape."""
        feature, action = self.spec.action, np.asarray(action)
        if action.shape != feature.shape:
            raise KinoiseError(f"{self.task}: expected an action of shape {feature.shape}, came {action.shape}")
        if not np.isfinite(action).all():
            raise KinoiseError(f"{self.task}: expected a finite action, came {action.tolist()}. Check the policy's output.")
        return np.clip(action, feature.low, feature.high).astype(np.float32)


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
    """What `task`, a full id, asks for; without building it. Raises KinoiseError when there is no such task."""
    found = _find(task)
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


def check_pictures(cameras: Sequence[str], size: int, known: Sequence[str]) -> None:
    """Raises KinoiseError for a camera that isn't among `known`, and for a size that no simulator draws."""
    if not 1 <= size <= MAX_SIZE:
        raise KinoiseError(f"size={size}: an image has between 1 and {MAX_SIZE} pixels a side")
    for camera in cameras:
        if camera not in known:
            close = difflib.get_close_matches(camera, known, 1)
            hint = f". Did you mean {close[0]}? The" if close else ": the"
            raise KinoiseError(f"unknown camera '{camera}'{hint} cameras are {', '.join(known)}")


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


def _space(feature: Feature) -> spaces.Box:
    if feature.kind == "image":
        return spaces.Box(0, 255, feature.shape, np.uint8)
    low = np.full(feature.shape, -np.inf) if feature.low is None else np.asarray(feature.low)
    high = np.full(feature.shape, np.inf) if feature.high is None else np.asarray(feature.high)
    return spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
