"""Simulated tasks behind Gymnasium's interface, with specs, instructions and scripted experts."""

from .base import ENVS, Env, Expert, cameras, choices, episode_seed, make, showing, tasks

__all__ = ["ENVS", "Env", "Expert", "cameras", "choices", "episode_seed", "make", "showing", "tasks"]
