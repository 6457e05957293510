"""What actions mean, guessed from how they and the states move together.

A place that is commanded is where the robot soon is; a motion that is commanded is how far it soon has moved. So for every
dimension of the action the state dimension is looked for whose later value (`absolute`), change (`delta`) or change since an
earlier observation (`relative`) correlates with it best; the square of that correlation, R2, is the evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from .sample import distinct

LAGS = (1, 2, 3, 5)
SUMS = (1, 5, 10)
AHEAD = (2, 3, 4, 5, 6, 8, 10, 12, 16)
SURE, MARGIN = 0.5, 0.2
SHIFTS, BEYOND_CHANCE = (0.25, 0.5, 0.75), 0.5
EXACT, SLOPE = 0.97, 0.05
FEWEST, FEW_VALUES, PARTS = 50, 3, 4


class Match(NamedTuple):
    """The state dimension that fits an action dimension best under one reading of it."""

    kind: str
    r2: float
    state: int
    slope: float
    """State units per unit of action."""
    text: str
    chance: float = 0.0
    """The greatest R2 of any state dimension once actions and states are shifted against each other."""


def action_kind(
    action: Float64[np.ndarray, "steps a"],
    states: Float64[np.ndarray, "steps s"],
    ends: Int64[np.ndarray, "episodes"],
    names: Sequence[str],
    state_names: Sequence[str],
    rate: float,
    skip: Sequence[int] = (),
) -> dict[str, Any]:
    """What the action is most likely to be, `absolute`, `relative`, `delta` or `undecided`, with each dimension's evidence.

    A dimension counts when one reading explains half of its variance, 0.2 more than the next, and leaves at most half as much
    unexplained as by chance (when actions are held against states a quarter, a half and three quarters of the data away). The
    whole is decided when half or more of the dimensions that were looked at count and all that do agree. `delta` and `relative`
    tell a motion for one step from one since an earlier observation: the same for a robot that is where it was told to be after
    one step. A velocity is a `delta` whose `slope` is 1 / rate. Of episodes that are the same one alone is looked at: the
    others would pass for chance.

    Args:
        ends: one past each episode's last step.
        rate: steps per second.
        skip: dimensions to leave out (the gripper's); those with three values or fewer always are.
    """
    action, states, ends = distinct(action, states, ends)
    looked = [dim for dim in range(action.shape[1]) if dim not in skip and len(np.unique(action[:2000, dim])) > FEW_VALUES]
    if not looked or not states.shape[1] or int(np.diff(ends, prepend=0).max()) <= max(SUMS) or len(action) < FEWEST:
        return {"kind": "undecided", "why": "too little data, no states, or an action with hardly any values", "dimensions": []}
    owner = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    # A state that is the command of the step before fits any reading. It is looked at when nothing else explains the action: it
    # may be the place as well, where the recorded action is the state that followed.
    others = np.flatnonzero(~_echoes(action, states, owner)).tolist()
    guess = {"kind": "undecided"}
    if len(others):
        guess = _guess(action, states[:, others], ends, owner, looked, names, [state_names[dim] for dim in others], rate)
    if guess["kind"] == "undecided" and len(others) < states.shape[1]:
        return _guess(action, states, ends, owner, looked, names, state_names, rate)
    return guess


def _guess(
    action: np.ndarray,
    states: np.ndarray,
    ends: np.ndarray,
    owner: np.ndarray,
    looked: Sequence[int],
    names: Sequence[str],
    state_names: Sequence[str],
    rate: float,
) -> dict[str, Any]:
    readings = {
        "absolute": _absolute(action, states, owner),
        "delta": _delta(action, states, owner),
        "relative": _relative(action, states, owner, ends),
    }
    dimensions = [_dimension(dim, readings, names, state_names, rate) for dim in looked]
    kinds = {item["kind"] for item in dimensions if item["kind"] != "undecided"}
    decided = [item for item in dimensions if item["kind"] != "undecided"]
    kind = kinds.pop() if len(kinds) == 1 and 2 * len(decided) >= len(looked) else "undecided"
    if kind != "undecided":
        strongest = max(decided, key=lambda item: item["r2"][kind])
        why = f"{len(decided)} of {len(looked)} dimensions say so, e.g. {strongest['evidence']}"
        if all(item["velocity"] for item in decided):
            why += "; per second it is a velocity"
    elif len({item["kind"] for item in decided}) > 1:
        why = "the dimensions disagree: " + "; ".join(f"{item['name']} {item['kind']}" for item in decided)
    else:
        best = max((item for item in dimensions if item["doubt"]), key=lambda item: max(item["r2"].values()))
        others = "of the others " if decided else ""
        why = (
            f"the evidence is weak: {len(decided)} of {len(looked)} dimensions count, {others}the best R2 is "
            f"{max(best['r2'].values()):.2f} ('{best['name']}'), {best['doubt']}"
        )
    return {"kind": kind, "why": why, "dimensions": dimensions}


def contradiction(guess: dict[str, Any], control: str) -> list[str]:
    """A problem when the guess and the spec's `control` clearly are of two kinds. Motions for one step and motions since an
    earlier observation only differ clearly where the guess is the latter."""
    kind = guess["kind"]
    same = kind in ("undecided", control) or (kind == "delta" and control == "relative")
    if same:
        return []
    return [
        f"the data say control={control}, the actions look {kind}: {guess['why']}. A policy would be carried out wrongly: "
        f"say control={kind} where the data are read if that is right"
    ]


def _dimension(
    dim: int, readings: dict[str, list[Match]], names: Sequence[str], state_names: Sequence[str], rate: float
) -> dict[str, Any]:
    found = {kind: matches[dim] for kind, matches in readings.items()}
    order = sorted(found.values(), key=lambda match: match.r2, reverse=True)
    best = order[0]
    absolute, motion = found["absolute"], max(found["delta"], found["relative"], key=lambda match: match.r2)
    if motion.r2 >= SURE and motion.state != absolute.state and motion.r2 > absolute.r2 - MARGIN:
        # The state holds velocities or the last command, which a commanded motion equals as a place would: the change of
        # another dimension explains it too, which it would not if this were a place.
        best, rest = motion, [0.0]
    elif best.kind == "absolute":
        rest = [motion.r2]
    else:
        rest = [absolute.r2]
    # Smooth curves of few episodes resemble each other whatever they are of.
    if best.r2 < SURE:
        doubt = f"less than {SURE}"
    elif best.r2 - max(rest) < MARGIN:
        doubt = f"but another reading explains as much ({_r2s(order)})"
    elif 1 - best.r2 > BEYOND_CHANCE * (1 - best.chance):
        doubt = f"but actions fit states far away nearly as well by chance (R2 {best.chance:.2f})"
    else:
        doubt = ""
    evidence = f"'{names[dim]}' against '{state_names[best.state]}', {best.text}: R2 {best.r2:.2f}"
    return {
        "name": names[dim],
        "kind": "undecided" if doubt else best.kind,
        "doubt": doubt,
        "state": state_names[best.state],
        "r2": {key: match.r2 for key, match in found.items()},
        "chance": best.chance,
        "slope": best.slope,
        "velocity": bool(best.kind == "delta" and abs(best.slope * rate - 1) < SLOPE and rate > 1.2),
        "evidence": f"{evidence} ({_r2s([match for match in order if match is not best])})",
    }


def _r2s(matches: Sequence[Match]) -> str:
    return ", ".join(f"{match.kind} {match.r2:.2f}" for match in matches)


def _echoes(action: np.ndarray, states: np.ndarray, owner: np.ndarray) -> Bool[np.ndarray, "s"]:
    """The state dimensions that are some action dimension of the step before."""
    now = _inside(owner, 1)
    result = np.zeros(states.shape[1], bool)
    for command in action[now].T:
        result |= (np.abs(states[now + 1] - command[:, None]) <= 1e-6 * np.abs(command).max()).all(0) & (np.ptp(command) > 0)
    return result


def _absolute(action: np.ndarray, states: np.ndarray, owner: np.ndarray) -> list[Match]:
    # At least four parts to compare, of one long episode too.
    lengths = np.bincount(owner)
    cut = -(-PARTS // len(lengths))
    place = np.arange(len(owner)) - (lengths.cumsum() - lengths)[owner]
    part = owner * cut + place * cut // lengths[owner]
    best = [_none("absolute")] * action.shape[1]
    for lag in LAGS:
        now = _inside(owner, lag)
        text = f"place {lag} step{'s' * (lag > 1)} later"
        best = _better(best, _matches("absolute", action[now], states[now + lag], text, part[now]))
    return best


def _delta(action: np.ndarray, states: np.ndarray, owner: np.ndarray) -> list[Match]:
    """Motions against the sum of the actions that made them: over several steps, a lag of the robot no longer matters."""
    total = np.concatenate([np.zeros((1, action.shape[1])), action.cumsum(0)])
    best = [_none("delta")] * action.shape[1]
    for span in SUMS:
        now = _inside(owner, span)
        text = "change in a step" if span == 1 else f"change in {span} steps against the actions' sum"
        best = _better(best, _matches("delta", total[now + span] - total[now], states[now + span] - states[now], text))
    return best


def _relative(action: np.ndarray, states: np.ndarray, owner: np.ndarray, ends: np.ndarray) -> list[Match]:
    """Places as seen from an earlier observation: the episode's first, the one now, or the last of several at one time."""
    first = np.concatenate([[0], ends[:-1]])[owner]
    now = _inside(owner, 1)
    best = _matches("relative", action[now], states[now + 1] - states[first[now]], "change since the episode's start")
    # In the robot's own units (slope 1), else any motion would do.
    best = [match if abs(match.slope - 1) < SLOPE and match.r2 > EXACT else _none("relative") for match in best]
    for steps in AHEAD:
        now = _inside(owner, steps)
        if len(now) < FEWEST:
            break
        found = _matches("relative", action[now], states[now + steps] - states[now], f"change in the next {steps} steps")
        exact = [match if abs(match.slope - 1) < SLOPE and match.r2 > EXACT else _none("relative") for match in found]
        best = _better(best, exact)
    return _better(best, _restarting(action, states, owner))


def _restarting(action: np.ndarray, states: np.ndarray, owner: np.ndarray) -> list[Match]:
    """Chunks of places as seen from each chunk's first observation: step by step the action changes as the place does, but
    where a chunk ends it starts anew, at the change of one step."""
    now = _inside(owner, 2)
    steps = action[now + 1] - action[now]
    moves = states[now + 2] - states[now + 1]
    best = []
    for dim in range(action.shape[1]):
        scale = np.abs(steps[:, dim]).max() or 1.0
        equal = np.abs(steps[:, dim, None] - moves) < 1e-3 * scale
        state = int(equal.mean(0).argmax())
        resets = ~equal[:, state]
        share = float(resets.mean())
        again = np.abs(action[now + 1, dim] - moves[:, state]) < 1e-3 * scale
        moved = float(np.abs(moves[:, state]).max()) > 0
        if 0.01 < share < SURE and moved and again[resets].mean() > EXACT:
            text = f"change since the observation at which a chunk of about {1 / share:.0f} steps starts"
            best.append(Match("relative", float(again[resets].mean()), state, 1.0, text))
        else:
            best.append(_none("relative"))
    return best


def _none(kind: str) -> Match:
    return Match(kind, 0.0, 0, 0.0, "nothing fits")


def _better(a: list[Match], b: list[Match]) -> list[Match]:
    return [max(pair, key=lambda match: match.r2) for pair in zip(a, b, strict=True)]


def _inside(owner: Int64[np.ndarray, "steps"], lag: int) -> Int64[np.ndarray, "some"]:
    """The steps whose episode goes on for `lag` steps more."""
    return np.flatnonzero(owner[lag:] == owner[:-lag])


def _matches(
    kind: str, action: np.ndarray, states: np.ndarray, text: str, part: Int64[np.ndarray, "steps"] | None = None
) -> list[Match]:
    """For each action dimension the state dimension of greatest R2; with `part`, of the smaller one of all steps together and
    of what is left when every part's own mean is taken away: places of few episodes line up easily, their ways don't."""
    if len(action) < FEWEST:
        return [_none(kind)] * action.shape[1]
    action, states = action - action.mean(0), states - states.mean(0)
    r2 = _correlation(action, states) ** 2
    slopes = action.T @ states / np.maximum((action**2).sum(0), np.finfo(float).tiny)[:, None]
    if part is not None:
        action, states = _centred(action, part), _centred(states, part)
        r2 = np.minimum(r2, _correlation(action, states) ** 2)
    best = r2.argmax(1)
    shifted = [_correlation(action, np.roll(states, int(share * len(states)), axis=0)) ** 2 for share in SHIFTS]
    chance = np.max(shifted, axis=(0, 2))
    return [
        Match(kind, float(r2[dim, state]), int(state), float(slopes[dim, state]), text, float(chance[dim]))
        for dim, state in enumerate(best)
    ]


def _centred(values: np.ndarray, part: Int64[np.ndarray, "steps"]) -> np.ndarray:
    _, first, lengths = np.unique(part, return_index=True, return_counts=True)
    return values - np.repeat(np.add.reduceat(values, first, axis=0) / lengths[:, None], lengths, axis=0)


def _correlation(action: np.ndarray, states: np.ndarray) -> Float64[np.ndarray, "a s"]:
    """Of every pair of columns, which have mean 0; 0 for a column that moves by rounding alone."""
    product = action.T @ states
    power = np.sqrt((action**2).sum(0)[:, None] * (states**2).sum(0))
    return np.divide(product, power, out=np.zeros_like(product), where=power > 1e-9)
