"""A .ckpt of diffusion_policy's DP-T, small and with random weights, and its network by its description."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from omegaconf import OmegaConf

LEVELS = 20


class TransformerForDiffusion(torch.nn.Module):
    """The tensors of diffusion_policy's, by their names; `forward` as its description has it."""

    def __init__(self, width: int, layers: int, obs: int, action: int, horizon: int, steps: int) -> None:
        super().__init__()
        how = {"dim_feedforward": 4 * width, "dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.input_emb, self.cond_obs_emb = torch.nn.Linear(action, width), torch.nn.Linear(obs, width)
        self.pos_emb = torch.nn.Parameter(torch.randn(1, horizon, width))
        self.cond_pos_emb = torch.nn.Parameter(torch.randn(1, steps + 1, width))
        parts = torch.nn.Linear(width, 4 * width), torch.nn.Mish(), torch.nn.Linear(4 * width, width)
        self.encoder = torch.nn.Sequential(*parts)
        self.decoder = torch.nn.TransformerDecoder(torch.nn.TransformerDecoderLayer(width, 2, **how), layers)
        self.ln_f, self.head = torch.nn.LayerNorm(width), torch.nn.Linear(width, action)
        self._dummy_variable = torch.nn.Parameter(torch.empty(0))
        place = torch.arange(horizon)[:, None]
        self.register_buffer("mask", torch.zeros(horizon, horizon).masked_fill(place < torch.arange(horizon), -torch.inf))
        later = place < torch.arange(steps + 1) - 1
        self.register_buffer("memory_mask", torch.zeros(horizon, steps + 1).masked_fill(later, -torch.inf))

    def forward(self, sample: torch.Tensor, step: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        half = self.pos_emb.shape[-1] // 2
        rates = torch.exp(torch.arange(half) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
        told = torch.cat([(step * rates).sin(), (step * rates).cos()]).expand(len(sample), 1, -1)
        memory = self.encoder(torch.cat([told, self.cond_obs_emb(cond)], 1) + self.cond_pos_emb)
        h = self.decoder(self.input_emb(sample) + self.pos_emb, memory, tgt_mask=self.mask, memory_mask=self.memory_mask)
        return self.head(self.ln_f(h))


HORIZON, STEPS, OBS, ACTION = 6, 2, 5, 3


def workspace(
    path: Path, changes: dict[str, object] | None = None, **extra: object
) -> tuple[TransformerForDiffusion, dict[str, torch.Tensor]]:
    """A .ckpt as diffusion_policy's training writes it, by torch's own pickler; settings are an OmegaConf object there too.

    Args:
        changes: of the settings, by dotted names.
        extra: beside settings and weights.
    """
    torch.manual_seed(0)
    net = TransformerForDiffusion(16, 2, OBS, ACTION, HORIZON, STEPS).eval()
    scheduler = {"_target_": "diffusers.schedulers.scheduling_ddpm.DDPMScheduler", "num_train_timesteps": LEVELS}
    scheduler |= {"beta_schedule": "squaredcos_cap_v2", "clip_sample": True, "prediction_type": "epsilon"}
    model = {"n_layer": 2, "n_head": 2, "n_emb": 16, "causal_attn": True, "time_as_cond": True, "n_cond_layers": 0}
    policy = {"_target_": "diffusion_policy.policy.diffusion_transformer_lowdim_policy.DiffusionTransformerLowdimPolicy"}
    policy |= {"model": model, "noise_scheduler": scheduler, "horizon": HORIZON, "obs_dim": OBS, "action_dim": ACTION}
    policy |= {"n_action_steps": 3, "n_obs_steps": STEPS, "num_inference_steps": LEVELS, "obs_as_cond": True}
    state = OrderedDict((f"model.{name}", item.detach()) for name, item in net.state_dict().items())
    state["_dummy_variable"] = torch.empty(0)
    for name, size in (("obs", OBS), ("action", ACTION)):
        state[f"normalizer.params_dict.{name}.scale"] = torch.linspace(0.5, 2, size)
        state[f"normalizer.params_dict.{name}.offset"] = torch.linspace(-0.3, 0.2, size)
        state[f"normalizer.params_dict.{name}.input_stats.mean"] = torch.zeros(size)
    settings = OmegaConf.create({"policy": policy, "task": {"name": "lift"}, "rate": "${task.name}"})
    for name, value in (changes or {}).items():
        OmegaConf.update(settings, name, value)
    payload = {"cfg": settings, "state_dicts": {"model": state, "ema_model": state}, "pickles": {"epoch": b"\x80\x04K\x01."}}
    torch.save({**payload, **extra}, path)
    return net, state
