"""What a set of demonstrations holds and what is wrong with it, as plain values that JSON can hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from ..spec import Feature, Stats
from .base import ACTION, EpisodeStore, features, starts
from .stats import blocks, statistics

IDLE_SHARE = 0.2
SHORT_SHARE = 0.25
CHANNELS = ("red", "green", "blue")


def survey(store: EpisodeStore, idle: float = 1e-3, advance: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Everything that `kinoise inspect` shows.

    A step is idle when no dimension of any state or of the action moved by more than the share `idle` of its range since the
    step before (images are not compared). Raises KinoiseError on NaN (see `statistics`).

    Args:
        advance: as in `statistics`.
    """
    stats = statistics(store, advance=advance)
    keys = {key: _feature(feature, stats[key]) for key, feature in features(store.spec).items()}
    instructions = _instructions(store, _idle_steps(store, stats, idle))
    steps = int(store.ends[-1])
    return {
        "path": str(store.path),
        "format": store.format,
        "episodes": len(store.ends),
        "steps": steps,
        "rate": store.spec.rate,
        "duration_s": steps / store.spec.rate,
        "control": store.spec.control,
        "keys": keys,
        "instructions": instructions,
        "problems": [
            *_constant(keys),
            *_idle(instructions),
            *_out_of_bounds(store, stats[ACTION]),
            *_duplicates(store),
            *_short(store, instructions),
            *_failed(store),
        ],
    }


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


def _idle_steps(store: EpisodeStore, stats: dict[str, Stats], share: float) -> Bool[np.ndarray, "steps"]:
    idle = np.ones(int(store.ends[-1]), bool)
    for key, feature in features(store.spec).items():
        if feature.kind == "image":
            continue
        tolerance = share * (np.array(stats[key].max) - np.array(stats[key].min))
        before = store.read(key, 0, 1)
        for start, block in blocks(store, key):
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
        f"'{key}': {len(value['constant'])} of {len(value['names'])} dimensions never change ({', '.join(value['constant'])})"
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


def _duplicates(store: EpisodeStore) -> list[str]:
    seen: dict[tuple, int] = {}
    repeats: dict[int, list[tuple[int, int]]] = {}
    for episode, start in enumerate(starts(store.ends).tolist()):
        text = int(store.text[episode])
        first = tuple(hash(store.read(key, start, start + 1).tobytes()) for key in store.spec.observations)
        original = seen.setdefault((text, json.dumps(store.info[episode].get("initial")), first), episode)
        if original != episode:
            repeats.setdefault(text, []).append((episode, original))
    return [
        f"'{store.texts[text]}': episodes that start exactly like an earlier one: {len(pairs)} "
        f"(episode {pairs[0][0]} like {pairs[0][1]}); they add fewer situations than their number says"
        for text, pairs in repeats.items()
    ]


def _short(store: EpisodeStore, instructions: list[dict[str, Any]]) -> list[str]:
    medians = np.array([item["length"]["median"] for item in instructions])
    lengths = np.diff(store.ends, prepend=0)
    short = np.flatnonzero(lengths < SHORT_SHARE * medians[store.text])
    if not len(short):
        return []
    return [
        f"episodes shorter than a quarter of their instruction's median: {len(short)} "
        f"(the first is episode {short[0]}, {lengths[short[0]]} steps); cut off, or recorded by mistake?"
    ]


def _failed(store: EpisodeStore) -> list[str]:
    failed = [index for index, info in enumerate(store.info) if info.get("success") is False]
    return [f"episodes marked as failed: {len(failed)} (the first is episode {failed[0]})"] if failed else []
