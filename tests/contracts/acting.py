"""Environments acted in: what is observed as one vector, a step by a known action, an expert's episode."""

from __future__ import annotations

import gymnasium
import numpy as np


def state(env, seed: int) -> np.ndarray:
    return joined(env, env.reset(seed=seed)[0])


def joined(env, observation: dict[str, np.ndarray]) -> np.ndarray:
    """All that is observed but for images."""
    return np.concatenate([observation[key] for key, item in env.spec.observations.items() if item.kind == "state"])


def moved(env) -> np.ndarray:
    """What is observed after one step, by an action halfway from the middle of its range to the upper bound."""
    low, high = np.array(env.spec.action.low), np.array(env.spec.action.high)
    return joined(env, env.step(low + 0.75 * (high - low))[0])


def play(env, seed: int, steps: int) -> tuple[np.ndarray, list[float], bool]:
    """The expert's states and rewards, and whether it succeeded."""
    observation, _ = env.reset(seed=seed)
    expert = env.expert()
    states, rewards, success = [joined(env, observation)], [], False
    for _ in range(steps):
        observation, reward, *_, info = env.step(expert.act(observation))
        states.append(joined(env, observation))
        rewards.append(reward)
        success |= info["success"]
    return np.stack(states), rewards, success


class WithoutSpec(gymnasium.Wrapper):
    """Gymnasium's checker takes `spec` for its own."""

    spec = None
