"""Simulated tasks behind Gymnasium's interface, with specs, instructions and scripted experts."""

from .base import (
    ENVS,
    Env,
    Expert,
    bare,
    cameras,
    check_recorded,
    choices,
    described,
    episode_seed,
    family,
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
    "check_recorded",
    "choices",
    "described",
    "episode_seed",
    "family",
    "horizon",
    "instruction",
    "make",
    "perturbations",
    "showing",
    "tasks",
]
