"""Policies by name. A new one is a file with a config and a class, and a line in POLICIES."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..config import preset
from ..spec import KinoiseError, Spec, Stats
from .base import Policy, PolicyConfig
from .decode import DecodeConfig
from .diffusion import DiffusionConfig, DiffusionPolicy
from .discrete_vla import DiscreteVLAConfig, DiscreteVLAPolicy
from .mode import ModeConfig, ModePolicy


class Member(NamedTuple):
    config: type[PolicyConfig]
    policy: type[Policy]


POLICIES: dict[str, Member] = {
    "diffusion": Member(DiffusionConfig, DiffusionPolicy),
    "mode": Member(ModeConfig, ModePolicy),
    "discrete_vla": Member(DiscreteVLAConfig, DiscreteVLAPolicy),
}


def choices() -> dict[str, Any]:
    """What `policy=` may name: the registered policies and the presets, which are YAML over one of them."""
    members: dict[str, Any] = {name: member.config() for name, member in POLICIES.items()}
    files = sorted((Path(__file__).parent / "presets").glob("*.yaml"))
    return {**members, **{path.stem: preset(path, members) for path in files}}


def build_policy(config: PolicyConfig, spec: Spec, stats: Mapping[str, Stats], texts: tuple[str, ...], seed: int = 0) -> Policy:
    """A policy with fresh weights, which depend on `seed` alone.

    Raises KinoiseError when the policy can't be built for this data.
    """
    if config.name not in POLICIES:
        raise KinoiseError(f"policy '{config.name}': the policies are {', '.join(POLICIES)}")
    if type(config) is not POLICIES[config.name].config:
        raise KinoiseError(f"these are no settings of the policy '{config.name}': choose it with policy={config.name}")
    # torch's initialisers draw from the global generator: seed it here, and leave the caller's as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return POLICIES[config.name].policy(config, spec, stats, texts)


__all__ = ["POLICIES", "DecodeConfig", "Member", "Policy", "PolicyConfig", "build_policy", "choices"]
