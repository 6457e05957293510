"""A BDDL goal as an ordered list of what has to be made true."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Predicate = tuple[str, ...]

# Drawers and doors are opened before things go in and closed after it; a knob is turned while nothing is in the way.
RANKS = {"open": 0, "turnoff": 1, "turnon": 1, "on": 2, "in": 2, "close": 3}


def ordered(goal: Sequence[Sequence[str]], owner: Callable[[str], str]) -> list[Predicate]:
    """The goal's predicates (lower case first word) in the order to make them true.

    Things that others are to be put on or in go first. A door that is to be closed though nothing goes behind it is closed
    before other things are put on top of it.

    Args:
        goal: a conjunction, as LIBERO parses it: [["on", "bowl_1", "plate_1"], ...].
        owner: the thing that a region belongs to, or the name itself.

    Raises KeyError for a predicate that LIBERO's tasks do not have.
    """
    predicates = [tuple(item) for item in goal]
    filled = {item[2] for item in predicates if item[0] == "in"} | {owner(item[2]) for item in predicates if item[0] == "in"}

    def rank(item: Predicate) -> tuple[int, int]:
        if item[0] == "close" and item[1] not in filled:
            return 0, 0
        return RANKS[item[0]], _depth(item, predicates, owner)

    return sorted(predicates, key=rank)


def missing(
    goal: Sequence[Predicate], holds: Callable[[Predicate], bool], before: Callable[[Predicate], Predicate | None]
) -> Predicate | None:
    """What to make true next: the first of `goal` that isn't, or what has to hold `before` it; None when all is done."""
    for item in goal:
        if not holds(item):
            needed = before(item)
            return needed if needed is not None and not holds(needed) else item
    return None


def _depth(item: Predicate, predicates: Sequence[Predicate], owner: Callable[[str], str], steps: int = 4) -> int:
    """How many placements have to come before this one, since its target is itself to be placed."""
    if len(item) < 3 or not steps:
        return 0
    below = [other for other in predicates if len(other) == 3 and other[1] == owner(item[2]) and other is not item]
    return max((1 + _depth(other, predicates, owner, steps - 1) for other in below), default=0)
