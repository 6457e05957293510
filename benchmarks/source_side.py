"""Peers that are source trees and no packages, for `benchmarks.peers`: run by a Python of their own, without kinoise.

`python source_side.py SETTINGS` (JSON) prints what it is, as a line of JSON. For every line that it then reads it plans once
and prints the seconds that this took. `settings["what"]` is one of

- `diffusion_policy`: its DiffusionTransformerLowdimPolicy with DDIM, from observation to action, normalisers included;
- `mode`: MoDE's network, preconditioner and DDIM sampler, with the experts of every level fused beforehand, as its release can;
  normalisation and the encoders of images and language, which its agent adds, are not in its time.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def diffusion_policy(settings: dict[str, Any]) -> tuple[nn.Module, Callable[[], Tensor]]:
    from diffusers import DDIMScheduler
    from diffusion_policy.model.common.normalizer import LinearNormalizer
    from diffusion_policy.model.diffusion.transformer_for_diffusion import TransformerForDiffusion
    from diffusion_policy.policy.diffusion_transformer_lowdim_policy import DiffusionTransformerLowdimPolicy

    size, actions, chunk = sum(settings["observations"]), settings["actions"], settings["chunk"]
    network = TransformerForDiffusion(
        actions, actions, chunk, n_obs_steps=1, cond_dim=size, causal_attn=True, **settings["network"]
    )
    policy = DiffusionTransformerLowdimPolicy(
        network,
        DDIMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", clip_sample=True),
        horizon=chunk,
        obs_dim=size,
        action_dim=actions,
        n_action_steps=chunk,
        n_obs_steps=1,
        num_inference_steps=settings["steps"],
        obs_as_cond=True,
    )
    normalizer = LinearNormalizer()
    normalizer.fit({"obs": torch.rand(64, size) * 2 - 1, "action": torch.rand(64, actions) * 2 - 1})
    policy.set_normalizer(normalizer)
    policy.eval()
    seen = {"obs": torch.zeros(1, 1, size)}
    return network, torch.no_grad()(lambda: policy.predict_action(seen)["action_pred"])


def mode(settings: dict[str, Any]) -> tuple[nn.Module, Callable[[], Tensor]]:
    from mode.models.edm_diffusion.gc_sampling import get_sigmas_exponential, sample_ddim
    from mode.models.edm_diffusion.score_wrappers import GCDenoiser

    goal_size, size = settings["observations"]
    actions, chunk = settings["actions"], settings["chunk"]
    inner = {
        "_target_": "mode.models.networks.modedit.MoDeDiT",
        "obs_dim": size,
        "goal_dim": goal_size,
        "device": "cpu",
        "goal_conditioned": True,
        "action_dim": actions,
        "embed_pdrob": 0.0,
        "attn_pdrop": 0.3,
        "goal_seq_len": 1,
        "obs_seq_len": 1,
        "action_seq_len": chunk,
        "state_dim": 1,
        "init_style": "olmoe",
        **settings["network"],
    }
    model = GCDenoiser(inner, sigma_data=0.5).eval()
    sigmas = get_sigmas_exponential(settings["steps"], 0.001, 80.0, "cpu")
    with torch.no_grad():
        for sigma in sigmas[:-1]:
            model.inner_model.precompute_experts_for_inference(sigma)
    state, goal = {"state_images": torch.zeros(1, 1, size)}, torch.zeros(1, 1, goal_size)

    @torch.no_grad()
    def plan() -> Tensor:
        noise = torch.randn(1, chunk, actions) * 80.0
        return sample_ddim(model, state, noise, goal, sigmas, disable=True)

    return model, plan


def main(settings: dict[str, Any]) -> None:
    sys.path.insert(0, settings["source"])
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    network, plan = {"diffusion_policy": diffusion_policy, "mode": mode}[settings["what"]](settings)
    assert plan().shape == (1, settings["chunk"], settings["actions"])
    parameters = sum(item.numel() for item in network.parameters())
    print(json.dumps({"parameters": parameters, "versions": {"torch": torch.__version__}}), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        plan()
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
