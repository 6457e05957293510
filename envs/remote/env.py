"""An environment in another process, behind `Env` like one in this."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from ...spec import KinoiseError, Spec
from ..base import Env, EnvGone, EnvLost, Expert, Values
from ..mapping import EnvMap, is_mapping, read
from .place import interpreter, split
from .process import Line, Lost, Process

START_S = 300.0
"""Seconds that making an environment may take: imports, compiling, textures."""
ANSWER_S = 60.0
"""Seconds that any other answer may take, unless the mapping says otherwise."""

ANSWERS = {
    "make": ("spec", "instruction", "horizon", "stored", "settle", "meta", "idle", "versions"),
    "reset": ("observation", "info", "initial", "instruction"),
    "step": ("observation", "reward", "terminated", "truncated", "info"),
    "render": ("picture",),
    "expert": ("number",),
    "act": ("action",),
}
"""What the answer to each call holds."""


def make(
    task: str, *, render: bool, cameras: Sequence[str], size: int, perturb: Mapping[str, float] | None = None
) -> ProcessEnv:
    """The environment of an id with a place in front: `remote/NAME/ID`, `ws://host:port/ID`.

    Raises KinoiseError when that place can't be had, or can't make it.
    """
    place, own = split(task)
    message = _message(own, render, cameras, size) | {"perturb": dict(perturb or {})}
    if "://" in place:
        from .far import Far  # websockets is not among what a simulator's environment needs

        return ProcessEnv(task, partial(Far, place), message)
    if is_mapping(own):
        message["mapping"] = read(own)
    python = interpreter(place.removeprefix("remote/").rstrip("/"))
    return ProcessEnv(task, partial(Process, python), message)


def mapped(mapping: EnvMap, value: Mapping[str, Any], *, render: bool, cameras: Sequence[str], size: int) -> ProcessEnv:
    """A mapping file's environment in a process with its `python`. Raises KinoiseError like `make`."""
    assert mapping.python is not None
    message = _message(mapping.task, render, cameras, size) | {"mapping": dict(value)}
    python = mapping.python if "/" in mapping.python else interpreter(mapping.python)
    return ProcessEnv(mapping.task, partial(Process, python), message, mapping.timeout or ANSWER_S)


def _message(task: str, render: bool, cameras: Sequence[str], size: int) -> dict[str, Any]:
    return {"call": "make", "task": task, "render": render, "cameras": list(cameras), "size": size}


class ProcessEnv(Env):
    """An environment behind a line.

    What the other side raises comes as KinoiseError with its words, and the conversation goes on. When the process dies or does
    not answer in time, the call raises EnvLost, and the next `reset` starts another.

    Args:
        task: the id, place included.
        connect: opens a line; also after the one before was lost.
        message: what makes the environment there.
        seconds: that an answer may take.

    Raises KinoiseError: what making it raised there.
    """

    def __init__(self, task: str, connect: Callable[[], Line], message: Mapping[str, Any], seconds: float = ANSWER_S) -> None:
        self.task = task
        self._connect, self._message, self._seconds = connect, message, seconds
        self._line: Line | None = None
        self._initial: dict[str, Any] | None = None
        self.render_mode = "rgb_array" if message["render"] else None
        said = self._start()
        super().__init__(task, said["instruction"], Spec.from_json(said["spec"]), said["horizon"])
        self.versions = said["versions"]
        self.stored, self.settle, self._meta, self._idle = said["stored"], said["settle"], said["meta"], said["idle"]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Values, dict[str, Any]]:
        seed = self.next_seed(seed)  # here, so that the sequence outlives a process
        if self._line is None:
            again = Spec.from_json(self._restart()["spec"])
            self.spec.require(again, ("environment as it was first made", "environment of the new process"))
        reply = self._ask({"call": "reset", "seed": seed, "options": options, "horizon": self.horizon, "drawn": self.drawn})
        self._initial, self.instruction = reply["initial"], reply["instruction"]
        return self._observed(reply), reply["info"]

    def step(self, action: np.ndarray) -> tuple[Values, float, bool, bool, dict[str, Any]]:
        reply = self._ask({"call": "step", "action": self.bounded(action), "drawn": self.drawn})
        return self._observed(reply), reply["reward"], reply["terminated"], reply["truncated"], reply["info"]

    def idle_action(self) -> Float32[np.ndarray, "action"]:
        if self._idle is None:
            return super().idle_action()
        return np.array(self._idle)

    def meta(self) -> dict[str, Any]:
        return self._meta

    def initial(self) -> dict[str, Any]:
        if self._initial is None:
            raise KinoiseError(f"{self.task}: no initial state has been drawn. Call reset first.")
        return self._initial

    def expert(self) -> Expert:
        """The other side's, which may read the simulator there."""
        if self._line is None:
            self._start()
        number = self._ask({"call": "expert"})["number"]
        return _ProcessExpert(lambda observation: self._ask({"call": "act", "number": number, "observation": observation}))

    def render(self) -> UInt8[np.ndarray, "height width 3"]:
        return np.array(self._ask({"call": "render"})["picture"])

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
        self._line = None

    def _restart(self) -> dict[str, Any]:
        try:
            return self._start()
        except EnvLost:
            raise
        except KinoiseError as error:
            raise EnvGone(f"{self.task} was there, and can't be had again: {error}") from error

    def _start(self) -> dict[str, Any]:
        """Opens a line and makes the environment there; what it says of itself."""
        self._line = self._connect()
        try:
            return self._ask(self._message, START_S)
        except BaseException:
            self.close()
            raise

    def _ask(self, message: Mapping[str, Any], seconds: float | None = None) -> dict[str, Any]:
        if self._line is None:
            raise EnvLost(f"{self.task}: there is no process, since the one before was lost. Call reset.")
        try:
            reply = self._line.ask(message, seconds or self._seconds)
        except Lost as error:
            self.close()
            lost = "It was being made" if message["call"] == "make" else "The episode is lost; the next reset starts another"
            raise EnvLost(f"{self.task}: {error}. {lost}.") from error
        if "error" in reply:
            raise KinoiseError(str(reply["error"]))
        missing = sorted(set(ANSWERS[message["call"]]) - reply.keys())
        if missing:
            raise KinoiseError(f"{self.task}: the answer to '{message['call']}' lacks {missing}. Is it another kinoise there?")
        return reply

    def _observed(self, reply: Mapping[str, Any]) -> Values:
        """The observation of a reply, in arrays that nobody else holds. Raises KinoiseError when it isn't as the spec says."""
        found = reply["observation"]
        features = self.spec.observations
        if not self.drawn:  # those that can't leave images out send them
            features = {key: item for key, item in features.items() if item.kind != "image" or key in found}
        if found.keys() != features.keys():
            raise KinoiseError(f"{self.task}: expected observations of {list(features)}, came {list(found)}")
        for key, feature in features.items():
            came = (found[key].shape, found[key].dtype)
            if came != (feature.shape, feature.dtype):
                raise KinoiseError(f"{self.task}: observation '{key}': expected {feature.dtype}{feature.shape}, came {came}")
            if feature.dtype.kind == "f" and not np.isfinite(found[key]).all():
                raise KinoiseError(f"{self.task}: observation '{key}' is not finite: {found[key].tolist()}. Call reset.")
        return {key: np.array(found[key]) for key in features}


class _ProcessExpert:
    def __init__(self, ask: Callable[[Values], Mapping[str, Any]]) -> None:
        self._ask = ask

    def act(self, observation: Values) -> Float32[np.ndarray, "action"]:
        return np.array(self._ask(observation)["action"])
