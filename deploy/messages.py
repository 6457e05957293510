"""What a policy server and its clients say to each other, as values: what is served, a question, an answer.

A question is what openpi's clients send, observations by key and `prompt`, with fields of our own that may be left out. See
docs/server.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from .. import __version__
from ..policies.base import Policy
from ..spec import Feature, KinoiseError, Observation, Plan, Spec
from ..wire import WireError

EXTENDED = ("prompt", "previous", "previous_confidence", "elapsed", "prefix", "budget", "id")
# Every instruction that the training data did not have is embedded (10 ms) and remembered by the policy.
INSTRUCTIONS = 1024


@dataclass(frozen=True)
class Served:
    """What a server says when a client connects.

    Args:
        kinoise: the server's version.
        policy: its name.
        spec: what a question has to hold, and what the actions mean.
        chunk: actions in a plan.
        execute: actions to carry out before the next plan.
        history: observation steps that a question holds.
        rate: actions per second (Hz) in the training data.
        sha256: of the weights; None for a policy that was never saved.
    """

    kinoise: str
    policy: str
    spec: Spec
    chunk: int
    execute: int
    history: int
    rate: float
    sha256: str | None

    @classmethod
    def of(cls, policy: Policy, sha256: str | None = None) -> Served:
        config, spec = policy.config, policy.spec
        lengths = (config.chunk, config.execute, config.history)
        return cls(__version__, config.name, spec, *lengths, spec.rate, sha256)

    def to_message(self) -> dict[str, Any]:
        return {**asdict(self), "spec": self.spec.to_json()}

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Served:
        """Raises KinoiseError when a server of another make sent it."""
        names = [item.name for item in fields(cls)]
        absent = [name for name in names if name not in message]
        if absent:
            raise KinoiseError(f"the server's first message lacks {absent}: expected a server started by kinoise serve")
        return cls(**{**{name: message[name] for name in names}, "spec": Spec.from_json(message["spec"])})


@dataclass(frozen=True)
class Question:
    """A checked request.

    Args:
        values: by the spec's keys, `[history, ...]`, float32 or uint8.
        instruction: "" where the policy knows no language.
        previous: what is left of the plan that is being carried out, physical units.
        confidence: that came with it, where one did.
        prefix: how many of its actions come back as the plan's first ones.
        budget: seconds from the question to its answer.
        id: comes back with the answer.
    """

    values: dict[str, np.ndarray]
    instruction: str = ""
    previous: Float[np.ndarray, "steps action"] | None = None
    confidence: Float[np.ndarray, "steps action"] | None = None
    prefix: int = 0
    budget: float | None = None
    id: int | str | None = None

    @property
    def kind(self) -> tuple[int, int, bool, bool]:
        """What questions must have in common to be planned in one batch: as many actions to go on from, a budget or none."""
        length = -1 if self.previous is None else len(self.previous)
        return self.prefix, length, self.confidence is None, self.budget is None


class Reader:
    """Messages to questions, for one policy.

    Observations go by the spec's keys, by the same with "/" for ".", and by both after `observation/`, as openpi writes them.
    """

    def __init__(self, policy: Policy) -> None:
        self._spec, self._history, self._chunk = policy.spec, policy.config.history, policy.config.chunk
        self._keys, self._warm = aliases(policy.spec), policy.config.decode.warm < 1
        self._known, self._others = frozenset(policy.texts), set[str]()

    def __call__(self, message: Mapping[str, Any]) -> Question:
        """Raises WireError for what the policy can't be asked: keys missing or unknown, other shapes, NaN."""
        values: dict[str, np.ndarray] = {}
        for name, value in message.items():
            if name in EXTENDED:
                continue
            key = self._keys.get(name)
            if key is None:
                raise WireError(f"{name[:80]!r} is unknown: the policy's observations are {list(self._spec.observations)}")
            if key in values:
                raise WireError(f"the observation '{key}' comes twice, under two names")
            values[key] = _observed(key, self._spec.observations[key], self._history, value)
        absent = [key for key in self._spec.observations if key not in values]
        if absent:
            raise WireError(f"the observation lacks {absent}; it has {sorted(values)}")
        own = self._previous(message)
        instruction, budget = self._instruction(message.get("prompt")), _seconds("budget", message.get("budget"))
        return Question(values, instruction, budget=budget, id=_id(message.get("id")), **own)

    def _instruction(self, prompt: Any) -> str:
        if not isinstance(prompt, str | None):
            raise WireError(f"prompt: expected a text, came a {type(prompt).__name__}")
        if not self._spec.language:
            if prompt:
                raise WireError("the policy knows no language: leave out prompt")
            return ""
        if not prompt:
            raise WireError("the policy needs an instruction with every observation: send it as prompt")
        if prompt not in self._known and prompt not in self._others:
            if len(self._others) >= INSTRUCTIONS:
                raise WireError(f"{INSTRUCTIONS} different instructions were asked for already; restart the server for others")
            self._others.add(prompt)
        return prompt

    def _previous(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a question that are about the plan before."""
        elapsed, prefix = (_count(name, message.get(name, 0)) for name in ("elapsed", "prefix"))
        value, sure, dims = message.get("previous"), message.get("previous_confidence"), self._spec.action_dim
        if value is None:
            if elapsed or prefix or sure is not None:
                raise WireError("elapsed, prefix and previous_confidence are about the previous plan: send it as previous")
            return {}
        previous = _numbers("previous", value)
        if previous.ndim != 2 or previous.shape[1] != dims or not len(previous):
            raise WireError(f"previous has shape {list(previous.shape)}; expected [actions, {dims}]")
        if prefix > self._chunk:
            raise WireError(f"prefix={prefix} is longer than the policy's chunk of {self._chunk} actions")
        if elapsed + prefix > len(previous):
            raise WireError(f"elapsed={elapsed} and prefix={prefix}: the previous plan has {len(previous)} actions")
        confidence = None if sure is None else _numbers("previous_confidence", sure)
        if confidence is not None and confidence.shape != previous.shape:
            raise WireError(f"previous_confidence has shape {list(confidence.shape)}, previous {list(previous.shape)}")
        if elapsed >= len(previous) or not (self._warm or prefix):
            return {}
        # What was carried out doesn't matter. Without it, questions of different ages can share a plan.
        left = None if confidence is None else confidence[elapsed:]
        return {"previous": previous[elapsed:], "confidence": left, "prefix": prefix}


def aliases(spec: Spec) -> dict[str, str]:
    """The spec's key behind every name that a client may use for it. A name that could mean two of them is left out."""
    found: dict[str, set[str]] = {}
    for key in spec.observations:
        for prefix in ("", "observation/"):
            for name in (key, key.replace(".", "/")):
                found.setdefault(prefix + name, set()).add(key)
    own = {key: key for key in spec.observations}
    return {name: keys.pop() for name, keys in found.items() if len(keys) == 1 and name not in EXTENDED} | own


def _observed(key: str, feature: Feature, history: int, value: Any) -> np.ndarray:
    """One observation as `[history, ...]` in the spec's dtype."""
    if feature.kind == "image":
        if not isinstance(value, np.ndarray) or value.dtype != np.uint8:
            raise WireError(f"'{key}': expected an array of uint8, came {_found(value)}")
    else:
        value = _numbers(f"'{key}'", value)
    if value.shape == (history, *feature.shape):
        return value
    if value.shape != feature.shape:
        wanted = f"{list(feature.shape)} or {[history, *feature.shape]}" if history == 1 else f"{[history, *feature.shape]}"
        raise WireError(f"'{key}' has shape {list(value.shape)}; expected {wanted}")
    if history > 1:
        raise WireError(
            f"'{key}' is a single step, and the policy sees {history}: send the newest {history}, oldest first, of shape "
            f"{[history, *feature.shape]}. The server keeps none."
        )
    return value[None]


def _numbers(name: str, value: Any) -> Float[np.ndarray, "..."]:
    """An array as finite float32."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fi":
        raise WireError(f"{name}: expected an array of numbers, came {_found(value)}")
    with np.errstate(over="ignore"):
        value = value.astype(np.float32)
    if not np.isfinite(value).all():
        raise WireError(f"{name} holds NaN, or numbers beyond float32")
    return value


def _count(name: str, value: Any) -> int:
    if isinstance(value, np.integer):
        value = int(value)
    if type(value) is not int or not 0 <= value < 2**31:
        raise WireError(f"{name}: expected a whole number of at least 0, came {str(value)[:80]}")
    return value


def _seconds(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 < value < math.inf:
        raise WireError(f"{name}: expected seconds, more than 0, came {str(value)[:80]}")
    return float(value)


def _id(value: Any) -> int | str | None:
    if isinstance(value, bool) or not isinstance(value, int | str | None):
        raise WireError(f"id: expected a whole number or a text, came a {type(value).__name__}")
    return value


def _found(value: Any) -> str:
    return f"{value.dtype} of shape {list(value.shape)}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def observation(questions: list[Question], language: bool) -> Observation:
    """The questions as one batch, a row each."""
    first = questions[0]
    values = {key: torch.from_numpy(np.stack([item.values[key] for item in questions])) for key in first.values}
    if not language:
        return Observation(values)
    texts = tuple(dict.fromkeys(item.instruction for item in questions))
    return Observation(values, texts, torch.tensor([texts.index(item.instruction) for item in questions]))


def previous_plan(questions: list[Question], dt: float) -> Plan | None:
    """The plans that the questions, which are of one kind, come from; None where they come from none."""
    plans = [item.previous for item in questions if item.previous is not None]
    sure = [item.confidence for item in questions if item.confidence is not None]
    if not plans:
        return None
    return Plan(torch.from_numpy(np.stack(plans)), dt, 0, confidence=torch.from_numpy(np.stack(sure)) if sure else None)


def answer_of(plan: Plan, policy_timing: Mapping[str, float], server_timing: Mapping[str, float]) -> dict[str, Any]:
    """A plan of one row as a message. Times are in milliseconds; what the plan doesn't know is left out."""
    message: dict[str, Any] = {"actions": plan.actions[0].numpy(), "nfe": plan.nfe, "dt": plan.dt}
    if plan.confidence is not None:
        message["confidence"] = plan.confidence[0].numpy()
    if plan.surprise:
        message["surprise"] = plan.surprise[0]
    if plan.cold:
        message["cold"] = plan.cold[0]
    return {**message, "policy_timing": dict(policy_timing), "server_timing": dict(server_timing)}


def plan_of(message: Mapping[str, Any], served: Served) -> Plan:
    """The plan in a server's answer; its `timing` has the policy's stages, and the server's as `server_*`.

    Raises KinoiseError when it isn't one of the policy that is served.
    """
    times = {"": message.get("policy_timing", {}), "server_": message.get("server_timing", {})}
    try:
        return Plan(
            _chunk("actions", message.get("actions"), served),
            dt=float(message["dt"]),
            nfe=int(message["nfe"]),
            confidence=_chunk("confidence", message["confidence"], served) if "confidence" in message else None,
            surprise=(float(message["surprise"]),) if "surprise" in message else (),
            cold=(bool(message["cold"]),) if "cold" in message else (),
            timing={
                prefix + name.removesuffix("_ms"): value / 1e3
                for prefix, part in times.items()
                for name, value in part.items()
                if name.endswith("_ms")
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise KinoiseError(f"the server's answer is none of kinoise's: {type(error).__name__}: {error}") from error


def _chunk(name: str, value: Any, served: Served) -> Float[torch.Tensor, "1 chunk action"]:
    wanted = (served.chunk, served.spec.action_dim)
    if not isinstance(value, np.ndarray) or value.dtype != np.float32 or value.shape != wanted:
        raise KinoiseError(f"the server's answer holds {_found(value)} as {name}; expected float32 of shape {list(wanted)}")
    return torch.from_numpy(value.copy())[None]
