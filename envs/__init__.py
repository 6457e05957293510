"""Simulated tasks behind Gymnasium's interface, with specs, instructions and scripted experts."""

from .base import Env, Expert
from .register import (
    ENVS,
    bare,
    cameras,
    check_made,
    check_recorded,
    choices,
    described,
    episode_seed,
    family,
    firsts,
    horizon,
    instruction,
    make,
    perturbations,
    showing,
    tasks,
)

__all__ = [
    "ENVS",
    "Env",
    "Expert",
    "bare",
    "cameras",
    "check_made",
    "check_recorded",
    "choices",
    "described",
    "episode_seed",
    "family",
    "firsts",
    "horizon",
    "instruction",
    "make",
    "perturbations",
    "showing",
    "tasks",
]
