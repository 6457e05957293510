"""What every simulator offers: Gymnasium's interface with a spec, an instruction and, where there is one, an expert."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import Float32, UInt8

from ..spec import Feature, KinoiseError, Spec

Values = dict[str, np.ndarray]

MAX_SIZE = 4096  # pixels a side of an image


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
        drawn: whether what is observed holds images; for whoever doesn't look at every step. While it is False, simulators that
            can save themselves the drawing leave them out.
    """

    drawn: bool = True
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


def check_pictures(cameras: Sequence[str], size: int, known: Sequence[str]) -> None:
    """Raises KinoiseError for a camera that isn't among `known`, and for a size that no simulator draws."""
    if not 1 <= size <= MAX_SIZE:
        raise KinoiseError(f"size={size}: an image has between 1 and {MAX_SIZE} pixels a side")
    for camera in cameras:
        if camera not in known:
            close = difflib.get_close_matches(camera, known, 1)
            hint = f". Did you mean {close[0]}? The" if close else ": the"
            raise KinoiseError(f"unknown camera '{camera}'{hint} cameras are {', '.join(known)}")


def _space(feature: Feature) -> spaces.Box:
    if feature.kind == "image":
        return spaces.Box(0, 255, feature.shape, np.uint8)
    low = np.full(feature.shape, -np.inf) if feature.low is None else np.asarray(feature.low)
    high = np.full(feature.shape, np.inf) if feature.high is None else np.asarray(feature.high)
    return spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
