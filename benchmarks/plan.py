"""What a plan costs beside its network evaluations: `python -m benchmarks.plan RUN` (batch 1, alternating, one process).

One side is `Policy.plan`: encoding, sampler, codec. The other is the same number of bare network evaluations on tensors
in memory, with the noise level's share computed beforehand. Target: a median ratio of at most 1.3.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from kinoise.policies.checkpoint import load_policy, resolve
from kinoise.policies.diffusion import DiffusionPolicy
from kinoise.policies.example import example

from .record import ratio, write

ROUNDS = 300


@torch.inference_mode()
def measure(policy: DiffusionPolicy) -> dict:
    """Seconds of both sides, round by round."""
    obs, gen = example(policy), torch.Generator().manual_seed(0)
    nfe = policy.plan(obs, gen).nfe
    x = torch.randn(1, policy.config.chunk, policy.spec.action_dim, generator=gen)
    context = policy.observe(obs)
    levels = [policy.network.level(policy.process.label(t)) for t in policy.process.grid(nfe)[:-1]]

    def bare() -> None:
        for level in levels:
            policy.network(x, level, context)

    def plan() -> None:
        policy.plan(obs, gen)

    for _ in range(30):
        bare(), plan()
    times: dict[str, list[float]] = {"plan": [], "bare": []}
    for _ in range(ROUNDS):
        for name, side in (("plan", plan), ("bare", bare)):
            started = time.perf_counter()
            side()
            times[name].append(time.perf_counter() - started)
    return {"nfe": nfe, "parameters": policy.parameter_count, **ratio(times["plan"], times["bare"])}


def main(runs: list[str]) -> None:
    if not runs:
        sys.exit("usage: python -m benchmarks.plan RUN [RUN ...]")
    results = {}
    for run in runs:
        policy = load_policy(Path(run))
        assert isinstance(policy, DiffusionPolicy)
        results[policy.config.name] = {**measure(policy), "checkpoint": resolve(run).name, "threads": torch.get_num_threads()}
    write("plan", {"target": 1.3, "policies": results})


if __name__ == "__main__":
    main(sys.argv[1:])
