"""Simulated tasks behind Gymnasium's interface, with specs, instructions and scripted experts."""

from .base import (
    ENVS,
    Env,
    Expert,
    cameras,
    check_recorded,
    choices,
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
    "cameras",
    "check_recorded",
    "choices",
    "episode_seed",
    "family",
    "horizon",
    "instruction",
    "make",
    "perturbations",
    "showing",
    "tasks",
]
