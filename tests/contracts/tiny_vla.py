"""The discrete-diffusion VLA at a size that learns and plans in milliseconds, and what it sees."""

from __future__ import annotations

import torch
from kinoise.policies import build_policy
from kinoise.policies.discrete_vla import DiscreteVLAConfig, DiscreteVLAPolicy
from kinoise.spec import Batch, Feature, Observation, Spec, Stats
from omegaconf import OmegaConf

TEXTS = ("open the drawer", "close the drawer", "put the small red block on the shelf")
KEYS = ("state", "image.front")
CHUNK, BINS = 6, 16
SPEC = Spec(
    observations={"state": Feature((5,)), "image.front": Feature((32, 48, 3), kind="image")},
    action=Feature((3,), low=(-1.0,) * 3, high=(1.0,) * 3),
    rate=20.0,
    gripper=(2,),
)
RAMP = tuple(torch.linspace(-1, 1, 257).tolist())
STATS = {
    key: Stats(mean=(0.1,) * n, std=(0.5,) * n, min=(-1.0,) * n, max=(1.0,) * n, q01=(-0.9,) * n, q99=(0.9,) * n, count=9)
    for key, n in (("state", 5), ("image.front", 3))
}
STATS["action"] = Stats(
    *((0.0,) * 3, (0.5,) * 3, (-1.0,) * 3, (1.0,) * 3, (-0.98, -0.98, -1.0), (0.98, 0.98, 1.0)),
    count=9,
    quantiles=(RAMP, RAMP, (-1.0,) * 128 + (1.0,) * 129),
)
SMALL = {
    "network": {"width": 32, "depth": 2},
    "chunk": CHUNK,
    "execute": 2,
    "bins": {"count": BINS},
    "encoder": {"patch": 16},
    "decode": {"steps": 5},
    "observations": ["state"],
}


def config(**over: object) -> DiscreteVLAConfig:
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DiscreteVLAConfig()), SMALL, over))


def small(**over: object) -> DiscreteVLAPolicy:
    return build_policy(config(**over), SPEC, STATS, TEXTS, seed=0)


def changed(policy: DiscreteVLAPolicy, **decode: object) -> DiscreteVLAPolicy:
    """The same weights, decoded otherwise."""
    merged = OmegaConf.merge(OmegaConf.structured(policy.config), {"decode": decode})
    other = build_policy(OmegaConf.to_object(merged), SPEC, STATS, TEXTS, seed=1)
    other.load_state_dict(policy.state_dict())
    return other.eval()


def observation(rows: int = 3, texts: tuple[str, ...] = TEXTS, seed: int = 0) -> Observation:
    gen = torch.Generator().manual_seed(seed)
    values = {
        "state": torch.randn(rows, 1, 5, generator=gen),
        "image.front": torch.randint(0, 256, (rows, 1, 32, 48, 3), generator=gen, dtype=torch.uint8),
    }
    return Observation(values, texts, torch.arange(rows) % len(texts))


def row(obs: Observation, index: int) -> Observation:
    values = {key: item[index : index + 1] for key, item in obs.values.items()}
    return Observation(values, obs.texts, obs.text[index : index + 1])


def generators(rows: int = 3) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(index) for index in range(rows)]


def trained(policy: DiscreteVLAPolicy, steps: int = 8) -> DiscreteVLAPolicy:
    gen = torch.Generator().manual_seed(0)
    actions = torch.randn(9, CHUNK, 3, generator=gen).clamp(-0.9, 0.9)
    actions[..., 2] = actions[..., 2].sign()
    batch = Batch(observation(9), actions, torch.ones(9, CHUNK, dtype=torch.bool))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    for step in range(steps):
        loss = policy.train().loss(batch, torch.Generator().manual_seed(step)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy.eval()
