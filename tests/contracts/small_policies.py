"""Every policy and preset at a size that plans in a millisecond, and what it sees."""

from __future__ import annotations

import torch
from kinoise import envs
from kinoise.policies import build_policy, choices
from kinoise.policies.base import Policy
from kinoise.policies.core.network import NetworkConfig
from kinoise.policies.diffusion import DiffusionConfig
from kinoise.spec import Batch, Feature, Observation, Spec, Stats
from omegaconf import OmegaConf

TEXTS = ("open the drawer", "close the drawer")
SPEC = Spec(
    observations={"state": Feature((5,)), "image.front": Feature((48, 48, 3), kind="image")},
    action=Feature((3,), low=(-1.0,) * 3, high=(1.0,) * 3),
    rate=20.0,
)
STATS = {
    key: Stats(mean=(0.1,) * n, std=(0.5,) * n, min=(-1.0,) * n, max=(1.0,) * n, q01=(-0.9,) * n, q99=(0.9,) * n, count=9)
    for key, n in (("state", 5), ("image.front", 3), ("action", 3))
}
SMALL = {"network": {"width": 32, "depth": 2}, "chunk": 4, "execute": 2}
CHOICES = choices()
IMAGES = {"discrete_vla": {"patch": 8}}
"""Settings of each policy's encoder when it sees images; of most this:"""
SHARED = {"shared_cameras": True}
OTHER = {"discrete_vla": ("autoregressive", lambda steps: 4 * 3)}
"""Each policy's second sampler and the evaluations it takes for so many steps; of most this:"""
HEUN = ("heun", lambda steps: 2 * steps - 1)


def small(name: str, **over: object) -> Policy:
    config = OmegaConf.merge(OmegaConf.structured(CHOICES[name]), SMALL, {"observations": ["state"]}, over)
    return build_policy(OmegaConf.to_object(config), SPEC, STATS, TEXTS, seed=0)


def fitting(world: str) -> Policy:
    """One for a mapping file's world that is observed by states alone: it plans at every step, in one evaluation."""
    env = envs.make(world)
    spec, text = env.spec, env.instruction
    env.close()
    stats = {key: Stats((0.0,), (1.0,), (-1.0,), (1.0,), (-1.0,), (1.0,), 10) for key in (*spec.observations, "action")}
    config = DiffusionConfig(network=NetworkConfig(width=16, depth=1, heads=2), chunk=2, execute=1)
    config.decode.steps = 1
    return build_policy(config, spec, stats, (text,)).eval()


def observation(policy: Policy, rows: int = 3, seed: int = 0) -> Observation:
    gen = torch.Generator().manual_seed(seed)
    shape = (rows, policy.config.history)
    values = {"state": torch.randn(*shape, 5, generator=gen)}
    if "image.front" in policy.spec.observations:
        values["image.front"] = torch.randint(0, 256, (*shape, 48, 48, 3), generator=gen, dtype=torch.uint8)
    return Observation(values, TEXTS, torch.arange(rows) % 2)


def batch(policy: Policy, rows: int = 8) -> Batch:
    gen = torch.Generator().manual_seed(1)
    chunk = policy.config.chunk
    actions = torch.randn(rows, chunk, 3, generator=gen).clamp(-1, 1)
    return Batch(observation(policy, rows), actions, torch.arange(chunk)[None] < torch.arange(1, rows + 1)[:, None])


def train(policy: Policy, steps: int = 2, lr: float = 1e-2) -> list[float]:
    optimizer, data, losses = torch.optim.AdamW(policy.parameters(), lr=lr), batch(policy), []
    for step in range(steps):
        loss = policy.loss(data, torch.Generator().manual_seed(step)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def generators(rows: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in range(rows)]


def load_changed(policy: Policy, **decode: object) -> Policy:
    config = OmegaConf.merge(OmegaConf.structured(policy.config), {"decode": decode})
    other = build_policy(OmegaConf.to_object(config), SPEC, STATS, TEXTS, seed=1)
    other.load_state_dict(policy.state_dict())
    return other.eval()
