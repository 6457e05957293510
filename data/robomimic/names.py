"""Which array of a robomimic file is which observation or extra, and what every demonstration of a file must have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ...files import MALFORMED
from ...spec import Feature, KinoiseError, Spec
from ..base import ACTION, DONE, REWARD, SIM_STATE, Extra, features
from ..check import check_spec, nameable
from .layout import ACTIONS, OBS, Array, Demo, unreadable

FORMAT = 1
SPELLED = {REWARD: "rewards", DONE: "dones", SIM_STATE: "states"}
"""robomimic's names of extras; the others keep their own."""
RESERVED = {ACTIONS, OBS, "next_obs", *SPELLED.values()}
IMAGE = "image."
SUFFIXES = ("_image", "_rgb")
"""What robosuite and LIBERO put behind a camera's name."""


class Plan(NamedTuple):
    """How a file is read: the spec, for each key and extra the path of its array in a demonstration, and what is lost."""

    spec: Spec
    extras: dict[str, Extra]
    paths: dict[str, str]
    meta: dict[str, Any] | None
    lines: list[str]


def array_path(key: str, feature: Feature, taken: Mapping[str, Any]) -> str:
    """Where an observation is written; `taken` are all keys of the spec."""
    camera = f"{key.removeprefix(IMAGE)}_image"
    named = feature.kind == "image" and key.startswith(IMAGE) and len(key) > len(IMAGE) and camera not in taken
    return f"{OBS}/{camera if named else key}"


def common(demos: Sequence[Demo]) -> tuple[dict[str, Array], list[str]]:
    """The actions and observations that at least half of the demonstrations have, as most have them, one step's; and a line for
    each of the others."""
    seen: dict[str, Counter[Array]] = {}
    for item in demos:
        for path, array in item.arrays.items():
            if path == ACTIONS or path.startswith(f"{OBS}/"):
                seen.setdefault(path, Counter())[Array(array.shape[1:] if array.shape else None, array.dtype)] += 1
    whole = sum(1 for item in demos if item.arrays)
    few = [path for path, counter in seen.items() if 2 * counter.total() < whole and path != ACTIONS]
    lines = [f"{path}: only {seen[path].total()} of {whole} episodes have it" for path in few]
    return {path: counter.most_common(1)[0][0] for path, counter in seen.items() if path not in few}, lines


@lru_cache(1000)
def observed(path: str, array: Array) -> Feature | None:
    """One step of an observation as a feature; None for what can't be one: depth images, text, nothing."""
    if array.shape is None or not array.numeric or not all(array.shape):
        return None
    if array.dtype == np.uint8 and len(array.shape) == 3 and array.shape[2] == 3:
        return Feature(array.shape, "image")
    floats, depth = array.dtype is not None and array.dtype.kind == "f", path.endswith("_depth")
    if len(array.shape) < 2 or (len(array.shape) == 2 and floats and not depth):
        return Feature((int(np.prod(array.shape)),))
    return None


def wrong(demo: Demo, expected: Mapping[str, Array]) -> Iterator[str]:
    """Everything about a demonstration for which it can't be read."""
    yield from demo.problems
    if demo.problems and not demo.arrays:
        return
    actions = demo.arrays.get(ACTIONS)
    if actions is None:
        yield "actions is missing: expected numbers [steps, dimensions]. Repair or remove the episode."
        return
    if actions.shape is None or len(actions.shape) != 2 or not actions.numeric or not actions.shape[1]:
        yield f"actions is {actions}, expected numbers [steps, dimensions]. Convert it."
        return
    steps, samples = actions.shape[0], demo.attributes.get("num_samples")
    if not steps:
        yield "actions has no steps. Remove the episode."
    if "num_samples" in demo.attributes and samples != steps:
        yield f"num_samples is {samples}, but actions has {steps} steps: the episode was cut short or edited. Write it again."
    for path, array in expected.items():
        feature, found = observed(path, array), demo.arrays.get(path)
        if feature is None:
            continue
        if found is None:
            yield f"{path} is missing, which most episodes have. Repair or remove the episode."
        elif (
            not found.shape or found.shape[1:] != array.shape or observed(path, Array(found.shape[1:], found.dtype)) != feature
        ):
            yield f"{path} is {found}, expected {array.dtype}{[steps, *(array.shape or ())]} as in most episodes. Convert it."
        elif found.shape[0] != steps:
            yield f"{path} has {found.shape[0]} steps, actions has {steps}. Repair or remove the episode."


def derived(expected: Mapping[str, Array], demos: Sequence[Demo]) -> Plan:
    """The plan from the arrays alone; the spec has only shapes and no rate."""
    lines: list[str] = []
    keys: dict[str, str] = {}
    observations: dict[str, Feature] = {}
    rounded: dict[str, list[str]] = {}
    for path, array in expected.items():
        feature = observed(path, array)
        if feature is None:
            lines.append(f"{path}: {array} a step fits neither a state nor an image")
            continue
        key = ACTION if path == ACTIONS else _key(path, feature, expected)
        if key in keys or not nameable(key):
            lines.append(f"{path}: {'it and another' if key in keys else 'no observation'} can be called '{key}'")
            continue
        keys[key] = path
        if key != ACTION:
            observations[key] = feature
        if feature.kind == "state" and array.dtype != np.float32:
            rounded.setdefault(str(array.dtype), []).append(path)
        if feature.kind == "state" and array.shape != feature.shape:
            lines.append(f"{path}: {list(array.shape or ())} a step, laid out as {list(feature.shape)}")
    lines += [f"{', '.join(paths)}: {dtype}, made float32" for dtype, paths in rounded.items()]
    beside, others = extras(demos)
    named = {_extra_key(path): path for path in beside if _extra_key(path) not in keys and nameable(_extra_key(path))}
    lines += [*others, *(f"{path}: no extra can have this name" for path in beside if path not in named.values())]
    spec = Spec(observations, observed(ACTIONS, expected[ACTIONS]) or Feature((0,)), 0.0)
    return Plan(spec, {key: beside[path] for key, path in named.items()}, {**keys, **named}, None, lines)


def stored(header: Mapping[str, Any], expected: Mapping[str, Array], demos: Sequence[Demo]) -> Plan:
    """The plan that kinoise left in the file. Raises KinoiseError where that is damaged or at odds with the arrays."""
    try:
        if header["format"] != FORMAT:
            raise KinoiseError(f"format {header['format']!r}, expected {FORMAT}")
        spec = Spec.from_json(header["spec"])
        check_spec(spec)
        paths, named, meta = dict(header["paths"]), dict(header["extras"]), dict(header["meta"])
        made = set(header["made"])
        if not all(isinstance(path, str) for path in (*paths.values(), *named.values())):
            raise TypeError("a path is no text")
    except MALFORMED as error:
        raise KinoiseError(f"its content is damaged ({unreadable(error)})") from error
    known = {path for path, array in expected.items() if observed(path, array) is not None}
    if paths.keys() != features(spec).keys() or set(paths.values()) != known:
        raise KinoiseError(f"it names {sorted(map(str, paths.values()))}, the file has {sorted(known)}")
    for key, feature in features(spec).items():
        found = observed(paths[key], expected[paths[key]])
        if found is None or (found.shape, found.kind) != (feature.shape, feature.kind):
            raise KinoiseError(f"'{key}' is {list(feature.shape)}, but {paths[key]} is {expected[paths[key]]}")
    beside, lines = extras(demos)
    if not set(named.values()) <= beside.keys():
        raise KinoiseError(f"it names {sorted(named.values())}, the file has {sorted(beside)} in every episode")
    others = [path for path in beside if path not in named.values() and path not in made]
    named |= {_extra_key(path): path for path in others if _extra_key(path) not in {*paths, *named}}
    return Plan(spec, {key: beside[path] for key, path in named.items()}, {**paths, **named}, meta, lines)


def extras(demos: Sequence[Demo]) -> tuple[dict[str, Extra], list[str]]:
    """By path: arrays beside actions and observations that are alike in every demonstration; a line for each of the others."""
    found: dict[str, Extra] = {}
    lines: list[str] = []
    for path in dict.fromkeys(path for item in demos for path in item.arrays):
        if path == ACTIONS or path.startswith(f"{OBS}/"):
            continue
        first = next(item.arrays[path] for item in demos if path in item.arrays)
        unlike = next((f"{item.name}: {problem}" for item in demos if (problem := _unlike(item, path, first))), None)
        if unlike is not None or first.dtype is None or first.dtype.itemsize > 8 or not first.shape or 0 in first.shape[1:]:
            lines.append(f"{path}: not an array of numbers alike in every episode ({unlike or first})")
        else:
            found[path] = Extra(first.dtype.newbyteorder("="), first.shape[1:])
    return found, lines


def _unlike(demo: Demo, path: str, first: Array) -> str | None:
    array, actions = demo.arrays.get(path), demo.arrays[ACTIONS]
    if array is None:
        return "it lacks it"
    if (
        not array.numeric
        or not array.shape
        or not first.shape
        or array.shape[1:] != first.shape[1:]
        or array.dtype != first.dtype
    ):
        return f"{array}"
    return None if actions.shape and array.shape[0] == actions.shape[0] else f"{array.shape[0]} steps"


def _key(path: str, feature: Feature, taken: Mapping[str, Any]) -> str:
    name = path.removeprefix(f"{OBS}/").replace("/", ".")
    for index, suffix in enumerate(SUFFIXES):
        stem = name.removesuffix(suffix)
        clash = any(f"{OBS}/{stem}{other}" in taken for other in SUFFIXES[:index])
        if feature.kind == "image" and stem and stem != name and not clash:
            return f"{IMAGE}{stem}"
    return f"{OBS}.{name}" if name == ACTION else name


def _extra_key(path: str) -> str:
    return {theirs: ours for ours, theirs in SPELLED.items()}.get(path, path)
