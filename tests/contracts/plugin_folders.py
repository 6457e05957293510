"""Policies as the LeRobot plugin's folders hold them, and changes of its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kinoise.policies.base import Policy
from kinoise.policies.example import example
from small_policies import small

POLICIES = {
    "diffusion": {"decode": {"steps": 3, "warm": 0.5}},
    "mode": {"history": 2, "simulated_delay": 2},
    "discrete_vla": {"observations": ["state", "image.front"], "encoder": {"patch": 16}},
    "ddim": {"vector": {"states": {"state": "meanstd"}}},
}


def random(name: str, **over: object) -> Policy:
    """With weights that are nowhere zero."""
    policy, gen = small(name, **{**POLICIES.get(name, {}), **over}), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for item in policy.parameters():
            if item.requires_grad:  # a pretrained model's stay as its files have them
                item.add_(0.1 * torch.randn(item.shape, generator=gen))
    return policy.eval()


def plans(policy: Policy) -> torch.Tensor:
    return policy.plan(example(policy, rows=2), torch.Generator().manual_seed(0)).actions


def changed(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads((folder / "config.json").read_text())
    change(value)
    (folder / "config.json").write_text(json.dumps(value))


def piped(folder: Path, name: str, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    path = folder / f"policy_{name}processor.json"
    value = json.loads(path.read_text())
    change(value["steps"])
    path.write_text(json.dumps(value))
