"""What a set of demonstrations holds and what is wrong with it, as plain values that JSON can hold."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from ...spec import Feature, Stats
from ..base import ACTION, EpisodeStore, features, starts
from ..mixture.store import Mixture
from ..stats import blocks, statistics
from .anomalies import anomaly_problems, scan, shortened
from .cameras import camera_findings, camera_problems
from .clock import clock_problems
from .evidence import action_kind, contradiction
from .examine import Examined, called
from .rotations import rotations
from .sample import Sample, sampled

IDLE_SHARE = 0.2
SHORT_SHARE = 0.25
CHANNELS = ("red", "green", "blue")
PASSES = 4
"""How often states and actions are read: examined, their statistics, what stands out, idle steps. Images are read once."""


def work(store: EpisodeStore) -> int:
    """How many rows, counted for each key, an inspection reads: the length of its progress bar."""
    times = [1 if feature.kind == "image" else PASSES for feature in features(store.spec).values()]
    return int(store.ends[-1]) * sum(times)


def survey(
    opened: EpisodeStore,
    examined: Examined,
    idle: float = 1e-3,
    problems: Sequence[str] = (),
    advance: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Everything that `kinoise inspect` says about a store of which each episode was examined; of the good ones alone.

    A step is idle when no dimension of any state or of the action moved by more than the share `idle` of its range since the
    step before (images are not compared). The rows of a list of objects are now of one thing and now of another or of none, so
    its numbers are not looked at for rotations, jumps, far values and such that don't change. Memory holds a sample of 20,000
    steps of the states, and 2 bytes a step.

    Args:
        problems: what was found before there was a store.
        advance: called with a number of rows, of one key, that are done.
    """
    about = {
        "path": str(opened.path),
        "format": opened.format,
        "rate": opened.spec.rate,
        "control": opened.spec.control,
        "language": opened.spec.language,
        "left_out": sorted(set(range(len(opened.ends))) - set(examined.numbers)),
        "lost": opened.lost,
        "datasets": _datasets(opened, examined.numbers),
        "dropped": list(opened.dropped),
        "extras": {key: {"dtype": extra.dtype.name, "shape": list(extra.shape)} for key, extra in opened.extras.items()},
    }
    store, numbers = examined.store, examined.numbers
    early = [*problems, *examined.problems]
    notes = opened.notes if isinstance(opened, Mixture) else []
    name = partial(called, opened)
    if store is None:
        nothing = {"episodes": 0, "steps": 0, "duration_s": 0.0, "lengths": [], "numbers": []}
        nothing |= {"called": [], "keys": {}, "instructions": []}
        return {**about, **nothing, "cameras": {}, "clock": None, "action": None, "notes": notes, "problems": early}
    states = [key for key, feature in features(store.spec).items() if feature.kind == "state"]
    stats = statistics(store, keys=states, advance=advance)
    stats |= {key: camera.counts.stats() for key, camera in examined.cameras.items()}
    sample = sampled(store, states)
    keys = {key: _feature(feature, stats[key]) for key, feature in features(store.spec).items()}
    listing = [key for key in states if features(store.spec)[key].categories]
    for key in states:
        names = keys[key]["names"]
        turns = [] if key in listing else rotations(names, sample.arrays[key], sample.within, key)
        keys[key] |= {"rotations": turns, **scan(store, key, stats[key], sample, numbers, names, turns, advance)}
        if key in listing:
            keys[key] |= {"outliers": [], "jumps": [], "nearly_constant": []}
    for key, camera in examined.cameras.items():
        # Four neighbouring values in a bar.
        keys[key]["histogram"] = camera.counts.counts.reshape(-1, 64, 4).sum(2).tolist()
    instructions = _instructions(store, _idle_steps(store, stats, idle, advance))
    cameras = camera_findings(examined.cameras, numbers, store.spec.rate)
    clock = None if examined.clock is None else examined.clock.summary()
    guess = _guess(store, keys, sample)
    steps = int(store.ends[-1])
    return {
        **about,
        "episodes": len(store.ends),
        "steps": steps,
        "duration_s": steps / store.spec.rate,
        "lengths": np.diff(store.ends, prepend=0).tolist(),
        "numbers": numbers,
        "called": [name(number) for number in numbers],
        "keys": keys,
        "cameras": cameras,
        "clock": clock,
        "action": guess,
        "instructions": instructions,
        "notes": [*notes, *_foreign(store), *map(_list_note, listing)],
        "problems": [
            *early,
            *contradiction(guess, store.spec.control),
            *_constant({key: item for key, item in keys.items() if key not in listing}),
            *anomaly_problems({key: keys[key] for key in states}, steps, name),
            *_idle(instructions),
            *_out_of_bounds(store, stats[ACTION]),
            *clock_problems(clock, name),
            *camera_problems(cameras, name),
            *_same_words(store),
            *_duplicates(store, examined, name),
            *_short(store, instructions, numbers, name),
            *_failed(store, numbers, name),
        ],
    }


def _datasets(opened: EpisodeStore, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """The data sets of a mixture, with their good episodes; none where there is but one."""
    if not isinstance(opened, Mixture):
        return []
    lengths = np.diff(opened.ends, prepend=0)
    good = np.zeros(len(lengths), bool)
    good[list(numbers)] = True
    weights = opened.weights or [None] * len(opened.members)
    return [
        {
            "name": name,
            "path": str(store.path),
            "format": store.format,
            "episodes": int(good[opened.member == index].sum()),
            "left_out": int((~good)[opened.member == index].sum()) + store.lost,
            "steps": int(lengths[good & (opened.member == index)].sum()),
            "weight": weight,
        }
        for index, (name, store, weight) in enumerate(zip(opened.names, opened.members, weights, strict=True))
    ]


def _feature(feature: Feature, stats: Stats) -> dict[str, Any]:
    names = feature.names or (CHANNELS if feature.kind == "image" else tuple(str(index) for index in range(len(stats.mean))))
    return {
        "kind": feature.kind,
        "shape": list(feature.shape),
        "dtype": str(feature.dtype),
        "unit": list(feature.unit),
        "names": list(names),
        "constant": [name for name, low, high in zip(names, stats.min, stats.max, strict=True) if low == high],
        **stats.to_json(),
    }


def _guess(store: EpisodeStore, keys: dict[str, dict[str, Any]], sample: Sample) -> dict[str, Any]:
    observed = [key for key in sample.arrays if key != ACTION]
    names = [f"{key}.{name}" for key in observed for name in keys[key]["names"]]
    action = sample.arrays[ACTION]
    states = np.concatenate([np.zeros((len(action), 0)), *(sample.arrays[key] for key in observed)], axis=1)
    skip = store.spec.gripper
    return action_kind(action, states, sample.ends, keys[ACTION]["names"], names, store.spec.rate, skip)


def _idle_steps(
    store: EpisodeStore, stats: dict[str, Stats], share: float, advance: Callable[[int], None] | None
) -> Bool[np.ndarray, "steps"]:
    idle = np.ones(int(store.ends[-1]), bool)
    for key, feature in features(store.spec).items():
        if feature.kind == "image":
            continue
        tolerance = share * (np.array(stats[key].max) - np.array(stats[key].min))
        before = store.read(key, 0, 1)
        for start, block in blocks(store, key, advance):
            moved = np.abs(np.diff(block, axis=0, prepend=before)).reshape(len(block), -1)
            idle[start : start + len(block)] &= (moved <= tolerance).all(1)
            before = block[-1:]
    idle[starts(store.ends)] = False
    return idle


def _instructions(store: EpisodeStore, idle: Bool[np.ndarray, "steps"]) -> list[dict[str, Any]]:
    lengths = np.diff(store.ends, prepend=0)
    # An episode's first step is never idle, so no run of idle steps crosses from one episode into the next.
    moving = np.flatnonzero(~idle)
    runs = np.diff(moving, append=len(idle)) - 1
    longest = np.zeros(len(lengths), np.int64)
    np.maximum.at(longest, store.ends.searchsorted(moving, side="right"), runs)
    idle_steps = np.add.reduceat(idle, starts(store.ends), dtype=np.int64)
    return [
        _instruction(store, text, np.flatnonzero(store.text == index), lengths, idle_steps, longest)
        for index, text in enumerate(store.texts)
    ]


def _instruction(
    store: EpisodeStore,
    text: str,
    episodes: Int64[np.ndarray, "chosen"],
    lengths: Int64[np.ndarray, "episodes"],
    idle_steps: Int64[np.ndarray, "episodes"],
    longest: Int64[np.ndarray, "episodes"],
) -> dict[str, Any]:
    chosen = lengths[episodes]
    failures = [store.info[index]["failures"] for index in episodes if "failures" in store.info[index]]
    return {
        "text": text,
        "episodes": len(episodes),
        "steps": int(chosen.sum()),
        "length": {"min": int(chosen.min()), "median": float(np.median(chosen)), "max": int(chosen.max())},
        "idle": {"fraction": float(idle_steps[episodes].sum() / chosen.sum()), "longest": int(longest[episodes].max())},
        "failures": sum(failures) if failures else None,
    }


def _constant(keys: dict[str, dict[str, Any]]) -> list[str]:
    return [
        f"'{key}': {len(value['constant'])} of {len(value['names'])} dimensions never change ({shortened(value['constant'])})"
        for key, value in keys.items()
        if value["constant"]
    ]


def _idle(instructions: list[dict[str, Any]]) -> list[str]:
    return [
        f"'{item['text']}': {item['idle']['fraction']:.0%} of its steps are idle, up to {item['idle']['longest']} in a row: "
        f"a policy can learn to stand still there"
        for item in instructions
        if item["idle"]["fraction"] > IDLE_SHARE
    ]


def _out_of_bounds(store: EpisodeStore, stats: Stats) -> list[str]:
    feature = store.spec.action
    # In the array's own precision: a bound such as 0.1 is not the same number in float32 as in float64.
    low = np.array(feature.low or -np.inf, feature.dtype)
    high = np.array(feature.high or np.inf, feature.dtype)
    if (np.array(stats.min, feature.dtype) >= low).all() and (np.array(stats.max, feature.dtype) <= high).all():
        return []
    outside = sum(int(((block < low) | (block > high)).any(1).sum()) for _, block in blocks(store, ACTION))
    return [f"'{ACTION}': steps outside the spec's bounds: {outside} (recorded: {min(stats.min):.4g} to {max(stats.max):.4g})"]


def _same_words(store: EpisodeStore) -> list[str]:
    """Instructions that differ in case, spaces, punctuation or the way that Unicode writes a letter, and in nothing else."""
    alike: dict[str, list[str]] = {}
    for text in store.texts:
        folded = unicodedata.normalize("NFKC", text).casefold()
        words = "".join(" " if unicodedata.category(letter)[0] in "PZC" else letter for letter in folded).split()
        alike.setdefault(" ".join(words), []).append(text)
    return [
        f"instructions that differ in case, spaces or punctuation alone: {', '.join(map(repr, texts))}; "
        f"a policy takes them for different tasks. Write them the same way"
        for texts in alike.values()
        if len(texts) > 1
    ]


def _foreign(store: EpisodeStore) -> list[str]:
    foreign = [text for text in store.texts if not text.isascii()]
    if not foreign:
        return []
    return [f"instructions with letters beyond ASCII: {len(foreign)} of {len(store.texts)}, e.g. {foreign[0]!r}"]


def _list_note(key: str) -> str:
    return f"'{key}' is a list of objects, whose rows change their meaning: not looked at for rotations, jumps and far values"


def _duplicates(store: EpisodeStore, examined: Examined, name: Callable[[int], str]) -> list[str]:
    seen: dict[tuple, int] = {}
    repeats: dict[int, list[tuple[int, int]]] = {}
    for index, (number, beginning) in enumerate(zip(examined.numbers, examined.beginnings, strict=True)):
        text = int(store.text[index])
        original = seen.setdefault((text, json.dumps(store.info[index].get("initial")), beginning), number)
        if original != number:
            repeats.setdefault(text, []).append((number, original))
    return [
        f"'{store.texts[text]}': episodes that start exactly like an earlier one: {len(pairs)} "
        f"({name(pairs[0][0])} like {name(pairs[0][1])}); they add fewer situations than their number says"
        for text, pairs in repeats.items()
    ]


def _short(
    store: EpisodeStore, instructions: list[dict[str, Any]], numbers: Sequence[int], name: Callable[[int], str]
) -> list[str]:
    medians = np.array([item["length"]["median"] for item in instructions])
    lengths = np.diff(store.ends, prepend=0)
    short = np.flatnonzero(lengths < SHORT_SHARE * medians[store.text])
    if not len(short):
        return []
    return [
        f"episodes shorter than a quarter of their instruction's median: {len(short)} "
        f"(the first is {name(numbers[short[0]])}, {lengths[short[0]]} steps); cut off, or recorded by mistake?"
    ]


def _failed(store: EpisodeStore, numbers: Sequence[int], name: Callable[[int], str]) -> list[str]:
    failed = [number for number, info in zip(numbers, store.info, strict=True) if info.get("success") is False]
    return [f"episodes marked as failed: {len(failed)} (the first is {name(failed[0])})"] if failed else []
