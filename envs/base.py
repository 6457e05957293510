"""What every simulator offers, and the register of simulators.

Task ids are `<simulator>/<task>`; a suite's id, such as `metaworld/mt10`, stands for several tasks. A simulator is one module:
to add one, write it and name it in ENVS. Nothing heavy is imported before `make`.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any, Protocol, cast, runtime_checkable

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import Float32, UInt8

from ..spec import Feature, KinoiseError, Spec

Values = dict[str, np.ndarray]

ENVS = {"metaworld": ".metaworld", "pusht": ".pusht"}


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
        horizon: most steps of an episode.
    """

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

        Without a seed it is the next of the sequence that the last given seed began.
        """
        raise NotImplementedError

    def next_seed(self, seed: int | None) -> int:
        """For `reset`: `seed`, which begins a sequence, or the next of that sequence."""
        super().reset(seed=seed)
        return int(self.np_random.integers(2**53)) if seed is None else seed

    def initial(self) -> dict[str, Any]:
        """What pins the initial state that was drawn, as JSON numbers: equal for two episodes that begin alike."""
        raise NotImplementedError

    def expert(self) -> Expert:
        """A scripted demonstrator of this task. Raises KinoiseError if there is none."""
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
    """What a module named in ENVS holds."""

    TASKS: Mapping[str, str]
    """Instructions by task."""
    SUITES: Mapping[str, Sequence[str]]
    """Tasks by suite."""
    CAMERAS: Sequence[str]
    """What `cameras` of `make` may name."""

    def canonical(self, name: str) -> str:
        """The task or suite that `name` means; itself when it isn't another name for one."""
        ...

    def make(self, task: str, *, render: bool, cameras: Sequence[str], size: int) -> Env: ...


def make(task: str, *, render: bool = False, cameras: Sequence[str] = (), size: int = 84) -> Env:
    """Builds one task's environment.

    Args:
        task: its id.
        render: whether `render` will be called.
        cameras: by name; each adds an observation `image.<camera>`.
        size: of these images, `[size, size, 3]`.

    Raises KinoiseError: unknown task or camera, a suite instead of a task, no OpenGL for pictures.
    """
    simulator, name = _find(task)
    if name in _load(simulator).SUITES:
        raise KinoiseError(f"{task} is a suite of tasks: make takes one, for example {tasks(task)[0]}")
    return _load(simulator).make(name, render=render, cameras=tuple(cameras), size=size)


def showing(spec: Spec) -> Callable[..., Env]:
    """`make` for environments that show what `spec` observes: its cameras, at their size.

    Raises KinoiseError for images of several sizes, which no simulator renders.
    """
    images = {key: item for key, item in spec.observations.items() if item.kind == "image"}
    if not images:
        return make
    sizes = {item.shape[:2] for item in images.values()}
    if len(sizes) > 1 or len(set(*sizes)) > 1:
        raise KinoiseError(f"the policy's images have the sizes {sorted(sizes)}; simulators render one square size")
    return partial(make, cameras=tuple(key.removeprefix("image.") for key in images), size=sizes.pop()[0])


def tasks(env: str) -> tuple[str, ...]:
    """The full ids of the tasks that `env` means: a suite, a task, or several of them, `metaworld/push,reach`.

    Raises KinoiseError when there is no such, or one is named twice.
    """
    first, *others = env.split(",")
    found = [_find(first)]
    found += [_find(name if "/" in name else f"{found[0][0]}/{name}") for name in others]
    ids = [f"{origin}/{task}" for origin, name in found for task in _load(origin).SUITES.get(name, (name,))]
    if len(set(ids)) < len(ids):
        raise KinoiseError(f"env '{env}': a task is named twice")
    return tuple(ids)


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
    return "; ".join(parts)


def cameras() -> str:
    """The cameras there are, for `--help`."""
    return "; ".join(f"{simulator}: {', '.join(_load(simulator).CAMERAS)}" for simulator in ENVS)


def episode_seed(seed: int, task: str, index: int) -> int:
    """What an episode's environment is reset with: a hash of its arguments and nothing else, below 2**53 (exact in JSON)."""
    if seed < 0 or index < 0:
        raise KinoiseError(f"expected a seed and an index of at least 0, came seed={seed}, index={index}")
    name = int.from_bytes(hashlib.sha256(task.encode()).digest()[:16])
    return int(np.random.SeedSequence([seed, name, index]).generate_state(1, np.uint64)[0] >> np.uint64(11))


def _find(env: str) -> tuple[str, str]:
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


def _load(simulator: str) -> Simulator:
    return cast(Simulator, import_module(ENVS[simulator], __package__))


def _space(feature: Feature) -> spaces.Box:
    if feature.kind == "image":
        return spaces.Box(0, 255, feature.shape, np.uint8)
    low = np.full(feature.shape, -np.inf) if feature.low is None else np.asarray(feature.low)
    high = np.full(feature.shape, np.inf) if feature.high is None else np.asarray(feature.high)
    return spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
