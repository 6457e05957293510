"""What a mapping file says: which Gymnasium environment, and what of it becomes which part of kinoise's Spec.

The file is YAML, read by OmegaConf (`${oc.env:NAME}` works); nothing in it is evaluated. It is still to be trusted like a
program: `gymnasium.import`, `gymnasium.id` and `expert` import Python modules, also from the file's own folder, and `python`
starts an interpreter.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

from ..spec import KinoiseError

SUFFIXES = (".yaml", ".yml")
RENDER = "render"
Control = Literal["absolute", "relative", "delta"]


def is_mapping(env: str) -> bool:
    """Whether an environment's id is the path of a mapping file."""
    return env.endswith(SUFFIXES)


@dataclass(frozen=True)
class Taken:
    """A state that is observed.

    Args:
        sources: entries of a Dict observation, one after the other, parts of nested ones joined by dots; none for the whole of
            a Box.
        slice: of their numbers [first, last), counted in C order; None for all.
        names: one for each number; empty for numbered ones.
        unit: one for all, or one for each number.
    """

    sources: tuple[str, ...]
    slice: tuple[int, int] | None
    names: tuple[str, ...]
    unit: tuple[str, ...]


@dataclass(frozen=True)
class ActionMeaning:
    """What the action's numbers command; `low` and `high` are the environment's own where None."""

    control: Control
    names: tuple[str, ...]
    unit: tuple[str, ...]
    gripper: tuple[int, ...]
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None


class InfoText(NamedTuple):
    """A text that is the entry `key` of what `reset` returns as `info`."""

    key: str


@dataclass(frozen=True)
class Success:
    """How success is read: an entry of `info` that is true, a reward of at least `reward`, or `terminated`."""

    info: str | None = None
    reward: float | None = None
    terminated: bool = False


@dataclass(frozen=True)
class EnvMap:
    """A mapping file's content, checked as far as it can be without the environment.

    Args:
        task: the file's path, as given: the environment's id, and what errors begin with.
        id, module, kwargs: of the environment in Gymnasium's registry; the module registers it.
        python: an interpreter, or an environment made by `kinoise simulator install`; None for this process.
        timeout: seconds that an answer of the process of `python` may take.
        instruction: of every episode, or an `InfoText` where the environment draws it.
        images: by camera, the entry of the observation that holds its picture, or "render" for `render()`'s frames.
        expert: `module:function`, called with the Gymnasium environment.
    """

    task: str
    id: str
    module: str | None
    kwargs: Mapping[str, Any]
    python: str | None
    timeout: float | None
    instruction: str | InfoText
    rate: float
    horizon: int
    observations: Mapping[str, Taken]
    images: Mapping[str, str]
    action: ActionMeaning
    success: Success
    expert: str | None

    def error(self, key: str, text: str) -> KinoiseError:
        """The error that `key` of this file causes."""
        return KinoiseError(f"{self.task}: {key}: {text}")


def read(task: str) -> dict[str, Any]:
    """A file's keys and values, plain, with a relative `python` that is a path resolved against the file's folder.

    Raises KinoiseError when it is missing, isn't YAML or isn't a mapping.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        value = OmegaConf.to_container(OmegaConf.load(task), resolve=True)
    except FileNotFoundError as error:
        raise KinoiseError(f"{task} does not exist: env= expected a mapping file (docs/environments.md)") from error
    except OSError as error:
        raise KinoiseError(f"{task} can't be read: {error.strerror or error}") from error
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise KinoiseError(f"{task} is not a valid mapping file: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise KinoiseError(f"{task}: expected keys with values, such as 'gymnasium:' (docs/environments.md)")
    python = value.get("python")
    if isinstance(python, str) and "/" in python:
        value["python"] = str(Path(task).parent.absolute() / Path(python).expanduser())
    return cast(dict[str, Any], value)


def digest(task: str) -> str:
    """A SHA-256 of what decides the environment that a file describes: all but where, and how patiently, it is simulated."""
    decides = {key: item for key, item in read(task).items() if key not in ("python", "timeout")}
    return hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()


def parse(task: str, value: Mapping[str, Any]) -> EnvMap:
    """Raises KinoiseError with the file, the key, what was expected and what came."""
    top = _Section(task, "", value)
    world = top.section("gymnasium", needed=True)
    shown = top.section("observations")
    pictures = top.section("images")
    found = EnvMap(
        task=task,
        id=world.text("id"),
        module=world.optional("import", world.text),
        kwargs=dict(world.section("kwargs").value),
        python=top.optional("python", top.text),
        timeout=top.optional("timeout", top.positive),
        instruction=_instruction(top),
        rate=top.positive("rate"),
        horizon=top.count("horizon"),
        observations={str(key): _taken(shown.section(key, needed=True)) for key in shown.value},
        images={str(camera): _picture(pictures.section(camera, needed=True)) for camera in pictures.value},
        action=_action(top.section("action", needed=True)),
        success=_success(top.section("success", needed=True)),
        expert=top.optional("expert", top.text),
    )
    world.done()
    top.done()
    if not found.observations:
        raise found.error("observations", "expected at least one, such as 'state: {unit: m}'; came none")
    for key in found.observations:
        if key.startswith("image.") or key == "action":
            raise found.error(f"observations.{key}", "pictures go under 'images:', and 'action' is the action's name")
    if found.expert is not None and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", found.expert):
        raise found.error("expert", f"expected module:function, came {found.expert!r}")
    return found


def _taken(part: _Section) -> Taken:
    found = Taken(
        part.texts("from"),
        part.optional("slice", part.slice),
        part.texts("names"),
        part.texts("unit", needed=True),
    )
    part.done()
    return found


def _instruction(top: _Section) -> str | InfoText:
    if not isinstance(top.value.get("instruction"), Mapping):
        return top.text("instruction")
    part = top.section("instruction")
    found = InfoText(part.text("info"))
    part.done()
    return found


def _picture(part: _Section) -> str:
    found = part.text("from")
    part.done()
    return found


def _action(part: _Section) -> ActionMeaning:
    control = part.text("control")
    if control not in get_args(Control):
        raise part.wrong("control", f"one of {', '.join(get_args(Control))}", control)
    names, unit = part.texts("names"), part.texts("unit", needed=True)
    gripper = part.optional("gripper", part.indices) or ()
    low, high = part.optional("low", part.numbers), part.optional("high", part.numbers)
    part.done()
    return ActionMeaning(cast(Control, control), names, unit, gripper, low, high)


def _success(part: _Section) -> Success:
    info, reward = part.optional("info", part.text), part.optional("reward", part.number)
    terminated = part.optional("terminated", part.true) or False
    part.done()
    if (info is not None) + (reward is not None) + terminated != 1:
        raise part.wrong("", "one of 'info: KEY', 'reward: LEAST', 'terminated: true'", part.value)
    return Success(info, reward, terminated)


class _Section:
    """The keys below one of a file's keys; each is taken once, and `done` refuses what nobody took."""

    def __init__(self, task: str, place: str, value: Mapping[Any, Any]) -> None:
        self.value, self._task, self._place, self._known = value, task, place, list[str]()

    def wrong(self, key: Any, expected: str, came: Any) -> KinoiseError:
        place = ".".join(part for part in (self._place, str(key)) if part)
        shown = "nothing" if came is None else repr(came)
        return KinoiseError(f"{self._task}: {place}: expected {expected}, came {shown[:200]}. See docs/environments.md.")

    def section(self, key: Any, needed: bool = False) -> _Section:
        found = self._take(key)
        if (found is None and needed) or not isinstance(found, Mapping | None):
            raise self.wrong(key, "keys with values", found)
        return _Section(self._task, ".".join(part for part in (self._place, str(key)) if part), found or {})

    def optional(self, key: str, read: Callable[[str], Any]) -> Any:
        return read(key) if self._take(key) is not None else None

    def text(self, key: str) -> str:
        found = self._take(key)
        if not isinstance(found, str) or not found.strip():
            raise self.wrong(key, "a text", found)
        return found

    def texts(self, key: str, needed: bool = False) -> tuple[str, ...]:
        found = self._take(key)
        if found is None and not needed:
            return ()
        listed = found if isinstance(found, list) else [found]
        if isinstance(found, int):
            listed = [str(found)]  # YAML reads the unit 1 as a number
        if not listed or not all(isinstance(item, str | int) and not isinstance(item, bool) for item in listed):
            raise self.wrong(key, "a text or a list of texts", found)
        return tuple(str(item) for item in listed)

    def number(self, key: str) -> float:
        return self._number(key, self._take(key), "a finite number")

    def positive(self, key: str) -> float:
        found = self._take(key)
        if self._number(key, found, "a number above 0") <= 0:
            raise self.wrong(key, "a number above 0", found)
        return float(found)

    def count(self, key: str) -> int:
        found = self._take(key)
        if type(found) is not int or found < 1:
            raise self.wrong(key, "a whole number of at least 1", found)
        return found

    def true(self, key: str) -> bool:
        found = self._take(key)
        if found is not True:
            raise self.wrong(key, "true", found)
        return True

    def numbers(self, key: str) -> tuple[float, ...]:
        found = self._take(key)
        listed = found if isinstance(found, list) else [found]
        return tuple(self._number(key, item, "a number or a list of numbers") for item in listed)

    def indices(self, key: str) -> tuple[int, ...]:
        found = self._take(key)
        if not isinstance(found, list) or any(type(item) is not int or item < 0 for item in found):
            raise self.wrong(key, "a list of indices, counted from 0", found)
        return tuple(found)

    def slice(self, key: str) -> tuple[int, int]:
        found = self._take(key)
        pair = found if isinstance(found, list) and len(found) == 2 and all(type(item) is int for item in found) else None
        if pair is None or not 0 <= pair[0] < pair[1]:
            raise self.wrong(key, "[first, last], counted from 0 without the last", found)
        return pair[0], pair[1]

    def done(self) -> None:
        """Raises KinoiseError for a key that isn't known here, or is there twice."""
        for key in self.value:
            if key not in self._known:
                close = difflib.get_close_matches(str(key), self._known, 1)
                hint = f"Did you mean {close[0]}?" if close else f"Known here: {', '.join(dict.fromkeys(self._known))}."
                raise KinoiseError(f"{self._task}: {'.'.join(filter(None, (self._place, str(key))))}: unknown key. {hint}")

    def _take(self, key: Any) -> Any:
        self._known.append(key)
        return self.value.get(key)

    def _number(self, key: str, value: Any, expected: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(key, expected, value)
        return float(value)
