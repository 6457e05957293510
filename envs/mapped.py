"""Any Gymnasium environment, as a mapping file says (docs/environments.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Float32, UInt8

from ..spec import Feature, KinoiseError, Spec
from .base import Env, Expert, Values
from .mapping import RENDER, EnvMap, Taken, parse, read
from .named import build, described, imported
from .remote.env import mapped as in_process

SEEDS = 2**32
"""Seeds are below it: many environments hand theirs to generators that take 32 bits."""
PROBE = SEEDS - 1000
"""The seed of two beginnings that are compared when an environment is made: whoever can't take large ones fails then, not in
an episode; those that add a little to theirs can."""

TASKS: Mapping[str, str] = {}
SUITES: Mapping[str, Sequence[str]] = {}
CAMERAS: Sequence[str] = ()


def canonical(name: str) -> str:
    """A path has one name."""
    return name


def make(task: str, *, render: bool, cameras: Sequence[str], size: int) -> Env:
    """The environment of the mapping file at `task`, in a process of its own where the file names a `python`.

    Raises KinoiseError for whatever the file has wrong, with its key.
    """
    value = read(task)
    mapping = parse(task, value)
    if mapping.python is None:
        return MappedEnv(mapping, render=render, cameras=cameras, size=size)
    return in_process(mapping, value, render=render, cameras=cameras, size=size)


class MappedEnv(Env):
    """A Gymnasium environment behind ours; further arguments as for `envs.make`.

    Observes what the mapping names; a camera's picture only where `cameras` asks for it, at `size`, which is the size that the
    environment draws or a whole fraction of it. Where the environment ends an episode itself, so does this.

    Raises KinoiseError, with the file and the key: a package that is missing, an id that isn't registered, entries that are not
    there, shapes that don't fit, an environment whose `reset(seed=)` doesn't determine how it begins and what steps do.
    """

    def __init__(self, mapping: EnvMap, *, render: bool = False, cameras: Sequence[str] = (), size: int = 84) -> None:
        self._map, self._size, self._cameras = mapping, size, tuple(cameras)
        for camera in self._cameras:
            if camera not in mapping.images:
                known = ", ".join(mapping.images) or "none"
                raise mapping.error("images", f"unknown camera '{camera}'; the file has {known}")
        drawn = render or RENDER in {mapping.images[camera] for camera in self._cameras}
        self.render_mode = "rgb_array" if render else None
        self._sim = build(mapping, drawn)
        self._begun, self._steps, self._initial = False, 0, None
        self._raw: Any = None
        try:
            spec = self._spec()
            super().__init__(mapping.task, self._asked, spec, mapping.horizon)
            self._probe()
        except BaseException:
            self._sim.close()
            raise

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Values, dict[str, Any]]:
        self._draw(_narrow(self.next_seed(seed)))
        self.instruction, found = self._asked, self._observation()
        self._begun = True
        self._initial = {key: item.tolist() for key, item in found.items() if self.spec.observations[key].kind == "state"}
        return found, {}

    def step(self, action: np.ndarray) -> tuple[Values, float, bool, bool, dict[str, Any]]:
        if not self._begun:
            raise KinoiseError(f"{self.task}: the episode has not begun, or is over: call reset")
        command = self.bounded(action)
        with self._calling(f"step {self._steps}"):
            self._raw, reward, terminated, truncated, info = self._sim.step(command.astype(self._command))
        self._steps += 1
        found = self._observation()
        success = self._succeeded(float(reward), bool(terminated), info)
        truncated = bool(truncated) or self._steps >= self.horizon
        self._begun = not (terminated or truncated)
        return found, float(reward), bool(terminated), truncated, {"success": success}

    def initial(self) -> dict[str, Any]:
        """By key the states first observed. Raises KinoiseError before `reset`."""
        if self._initial is None:
            raise KinoiseError(f"{self.task}: no initial state has been drawn. Call reset first.")
        return self._initial

    def expert(self) -> Expert:
        if self._map.expert is None:
            raise KinoiseError(
                f"{self.task} names no expert: collect needs one ('expert: module:function', docs/environments.md)"
            )
        module, _, name = self._map.expert.partition(":")
        function = getattr(imported(self._map, "expert", module), name, None)
        if not callable(function):
            raise self._map.error("expert", f"the module {module} has no function {name}")
        return _Bounded(self, function(self._sim.unwrapped))

    def render(self) -> UInt8[np.ndarray, "height width 3"]:
        if self.render_mode is None:
            raise KinoiseError(f"{self.task} was made without pictures for people. Make it with render=True.")
        return _picture(self._map, "gymnasium", self._sim.render())

    def close(self) -> None:
        self._sim.close()

    def _draw(self, seed: int) -> None:
        self._begun, self._steps = False, 0
        with self._calling(f"reset(seed={seed})"):
            self._raw, info = self._sim.reset(seed=seed)
        self._asked = self._instruction(info)

    def _instruction(self, info: Mapping[str, Any]) -> str:
        said = self._map.instruction
        if isinstance(said, str):
            return said
        found = info.get(said.key)
        if not isinstance(found, str) or not found.strip():
            came = repr(found)[:100] if said.key in info else f"nothing; there are {', '.join(map(str, info)) or 'no keys'}"
            raise self._map.error("instruction.info", f"expected a text as '{said.key}' in the info of reset, came {came}")
        return found

    def _probe(self) -> None:
        """Raises KinoiseError when a reset with the same seed begins differently from the first, or a step ends otherwise."""
        first, asked = self._observation(), self._asked
        after = self._probe_step()
        self._draw(PROBE)
        if self._asked != asked:
            raise self._map.error(
                "instruction.info",
                f"reset(seed={PROBE}) asked for '{asked}', the second time for '{self._asked}': episodes of {self._map.id} "
                "can't be repeated. An environment has to draw from its np_random alone.",
            )
        self._require_same(f"reset(seed={PROBE}) began", first, self._observation())
        self._require_same(f"a step after reset(seed={PROBE}) ended", after, self._probe_step())

    def _probe_step(self) -> Values:
        """What a step from where the environment is shows and earns."""
        low, high = np.asarray(self.spec.action.low), np.asarray(self.spec.action.high)
        self._begun = True
        found, reward, *_, info = self.step(low + 0.75 * (high - low))
        self._begun = False  # whoever gets the environment has to reset it
        return {**found, "the reward": np.array(reward), "success or not": np.array(info["success"])}

    def _require_same(self, what: str, first: Values, again: Values) -> None:
        changed = [key for key in first if not np.array_equal(first[key], again[key], equal_nan=True)]
        if changed:
            raise self._map.error(
                "gymnasium.id",
                f"{what} differently the second time ({', '.join(changed)}): episodes of {self._map.id} "
                "can't be repeated. An environment has to draw from its np_random alone.",
            )

    def _spec(self) -> Spec:
        mapping, meant = self._map, self._map.action
        self._draw(PROBE)
        seen = {key: self._feature(key, taken) for key, taken in mapping.observations.items()}
        for camera in self._cameras:
            self._image(camera)
            seen[f"image.{camera}"] = Feature((self._size, self._size, 3), "image")
        space = self._sim.action_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise mapping.error("gymnasium.id", f"{mapping.id} has the actions {space}; expected a Box of one dimension")
        count = space.shape[0]
        self._command = space.dtype
        low = self._bound("low", meant.low, space.low)
        high = self._bound("high", meant.high, space.high)
        if any(index >= count for index in meant.gripper):
            raise mapping.error("action.gripper", f"the action has {count} numbers, came {list(meant.gripper)}")
        names = _many(mapping, "action.names", meant.names, count, "action")
        unit = _many(mapping, "action.unit", meant.unit, count)
        action = Feature((count,), names=names, unit=unit, low=low, high=high)
        return Spec(seen, action, mapping.rate, meant.control, meant.gripper, language=True)

    def _bound(self, key: str, given: tuple[float, ...] | None, own: np.ndarray) -> tuple[float, ...]:
        if given is None:
            if not np.isfinite(own).all():
                raise self._map.error(f"action.{key}", f"{self._map.id} has no bound ({own.tolist()}): give one")
            return tuple(float(item) for item in own)
        values = _many(self._map, f"action.{key}", given, len(own))
        outside = np.asarray(values) < own if key == "low" else np.asarray(values) > own
        if outside.any():
            raise self._map.error(f"action.{key}", f"{list(values)} goes beyond the environment's {own.tolist()}")
        return values

    def _feature(self, key: str, taken: Taken) -> Feature:
        values = self._state(key, taken)
        place = f"observations.{key}"
        names = _many(self._map, f"{place}.names", taken.names, len(values), key)
        return Feature((len(values),), names=names, unit=_many(self._map, f"{place}.unit", taken.unit, len(values)))

    def _observation(self) -> Values:
        found: Values = {key: self._state(key, taken) for key, taken in self._map.observations.items()}
        for key, values in found.items():
            if not np.isfinite(values).all():
                where = "the reset" if not self._begun else f"step {self._steps}"
                text = f"{values.tolist()} after {where} is not finite: the physics may have become unstable. Call reset."
                raise self._map.error(f"observations.{key}", text)
            wanted = self.spec.observations[key].shape
            if values.shape != wanted:
                raise self._map.error(f"observations.{key}", f"expected the shape {wanted} as at first, came {values.shape}")
        return found | {f"image.{camera}": self._image(camera) for camera in self._cameras if self.drawn}

    def _state(self, key: str, taken: Taken) -> Float32[np.ndarray, "numbers"]:
        place = f"observations.{key}"
        parts = [self._numbers(f"{place}.from", source) for source in taken.sources or (None,)]
        flat = np.concatenate(parts)
        if taken.slice is None:
            return flat
        first, last = taken.slice
        if last > len(flat):
            raise self._map.error(f"{place}.slice", f"[{first}, {last}] of {len(flat)} numbers: expected at most {len(flat)}")
        return flat[first:last]

    def _numbers(self, key: str, source: str | None) -> Float32[np.ndarray, "numbers"]:
        value = self._entry(key, source)
        if isinstance(value, Mapping | str) or np.asarray(value).dtype.kind not in "fiub":
            known = f"with the entries {', '.join(_entries(value))}: name one" if isinstance(value, Mapping) else ""
            raise self._map.error(key, f"expected an array of numbers, came a {type(value).__name__} {known}")
        return np.array(value, np.float32).ravel()

    def _image(self, camera: str) -> UInt8[np.ndarray, "size size 3"]:
        key, source = f"images.{camera}.from", self._map.images[camera]
        with self._calling("render()"):
            value = self._sim.render() if source == RENDER else self._entry(key, source)
        picture = _picture(self._map, key, value)
        height, width, _ = picture.shape
        if height != width or width % self._size:
            raise self._map.error(
                key,
                f"the picture is {height} x {width}, wanted are {self._size} x {self._size}: it has to be square and a "
                "multiple of that. Set its size in gymnasium.kwargs (often width and height), or take another size=.",
            )
        factor = width // self._size
        if factor == 1:
            return picture
        blocks = picture.reshape(self._size, factor, self._size, factor, 3)
        return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)

    def _entry(self, key: str, source: str | None) -> Any:
        value = self._raw
        if source is None:
            return value
        if not isinstance(value, Mapping):
            raise self._map.error(key, f"{self._map.id} observes no Dict but {self._sim.observation_space}: leave 'from' out")
        if source in value:
            return value[source]
        for part in source.split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise self._map.error(key, f"no entry '{source}'; there are {', '.join(_entries(self._raw))}")
            value = value[part]
        return value

    def _succeeded(self, reward: float, terminated: bool, info: Mapping[str, Any]) -> bool:
        rule = self._map.success
        if rule.info is None:
            return terminated if rule.reward is None else reward >= rule.reward
        if rule.info not in info:
            raise self._map.error(
                "success.info", f"no key '{rule.info}' in the step's info; it has {', '.join(map(str, info))}"
            )
        return bool(np.asarray(info[rule.info]).all())

    @contextmanager
    def _calling(self, what: str) -> Iterator[None]:
        """Says which environment raised, where, and in which of its calls."""
        try:
            yield
        except KinoiseError:
            raise
        except Exception as error:
            raise KinoiseError(f"{self._map.task}: {what} of {self._map.id} failed: {described(error)}") from error


class _Bounded:
    """A file's expert, held to the action's shape and bounds."""

    def __init__(self, env: MappedEnv, expert: Any) -> None:
        self._env, self._expert = env, expert

    def act(self, observation: Values) -> Float32[np.ndarray, "action"]:
        with self._env._calling("the expert"):
            return self._env.bounded(np.asarray(self._expert.act(observation)))


def _narrow(seed: int) -> int:
    """A seed below 2**32: itself, or what both halves of a longer one are mixed to, as an episode's is."""
    high, low = divmod(seed, SEEDS)
    return int(np.random.SeedSequence([low, high]).generate_state(1)[0]) if high else seed


def _many(mapping: EnvMap, key: str, given: tuple[Any, ...], count: int, stem: str = "") -> tuple[Any, ...]:
    """`count` values: those given, one for all, or numbered names."""
    if not given and stem:
        return tuple(f"{stem}.{index}" for index in range(count))
    if len(given) == 1:
        return given * count
    if len(given) != count:
        raise mapping.error(key, f"expected one for each of the {count} numbers, came {len(given)}")
    return given


def _entries(value: Any, prefix: str = "") -> list[str]:
    """The names that `from` could have."""
    if not isinstance(value, Mapping):
        return [prefix.removesuffix(".")]
    return [name for key, item in value.items() for name in _entries(item, f"{prefix}{key}.")]


def _picture(mapping: EnvMap, key: str, value: Any) -> UInt8[np.ndarray, "height width 3"]:
    picture = np.asarray(value)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        came = "nothing" if value is None else f"{picture.dtype} of shape {picture.shape}"
        raise mapping.error(key, f"expected a picture, uint8 [height, width, 3], came {came}")
    return picture.copy()
