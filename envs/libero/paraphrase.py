"""LIBERO's instructions in other words, by rules: the meaning stays, the things keep their names."""

from __future__ import annotations

import re

import numpy as np

# What may be said in another way.
WORDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("pick up", ("grab", "take", "lift", "get hold of")),
    ("turn on", ("switch on", "light", "start")),
    ("turn off", ("switch off", "shut off", "stop")),
    ("place it", ("put it", "set it down", "lay it")),
    ("put it", ("place it", "set it down", "lay it")),
    ("place them", ("put them", "set them down")),
    ("put", ("place", "set", "lay")),
    ("push", ("slide", "shove")),
    ("open", ("pull open", "open up")),
    ("close", ("shut", "push shut")),
    ("stack", ("pile", "set")),
    ("in the basket", ("into the basket", "inside the basket")),
    ("in the tray", ("into the tray", "onto the tray")),
    ("on top of", ("onto", "on the top of")),
    ("next to", ("beside", "close to")),
    ("to the front of", ("in front of", "just before")),
)

FRAMES = (
    "please {}",
    "could you {}?",
    "your task is to {}",
    "I would like you to {}",
    "what I need you to do: {}",
    "{}, please",
)
"""Sentences around an instruction."""

PICK = re.compile(r"pick up (?P<what>.+?) and (?:place|put) it (?P<where>.+)")
PUT = re.compile(r"put (?P<what>(?!both).+?) (?P<where>(?:in|on|to|under) .+)")
TURNED = ("{where}, that is where {what} belongs", "{what} should end up {where}", "move {what} so that it is {where}")
"""Sentences for carrying one thing to one place; those where more is said keep their order."""


def paraphrase(instruction: str, seed: int, level: int) -> str:
    """One of several ways to say it, chosen by `seed`; never the instruction itself.

    Args:
        instruction: one of LIBERO's.
        seed: of the episode.
        level: 1: other words in the same sentence; 2: another sentence around it, or turned about.
    """
    rng = np.random.default_rng([seed, *instruction.encode()])
    if level >= 2 and " and close" not in instruction:
        found = PICK.fullmatch(instruction) or PUT.fullmatch(instruction)
        if found and " and put " not in instruction and rng.random() < 0.5:
            return TURNED[rng.integers(len(TURNED))].format(**found.groupdict())
    text = _reworded(instruction, rng)
    return FRAMES[rng.integers(len(FRAMES))].format(text) if level >= 2 else text


def _reworded(text: str, rng: np.random.Generator) -> str:
    """Every phrase of WORDS that it holds in other words, in one pass, so that nothing is reworded twice."""
    known = dict(WORDS)
    pattern = re.compile("|".join(rf"\b{re.escape(phrase)}\b" for phrase in sorted(known, key=len, reverse=True)))

    def other(match: re.Match[str]) -> str:
        choices = known[match[0]]
        return choices[rng.integers(len(choices))]

    return pattern.sub(other, text)
