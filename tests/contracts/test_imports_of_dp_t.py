"""Checkpoints of diffusion_policy's DP-T: their plans, their settings, and the pickle that they lie in."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from kinoise.policies.imports import Robot, import_policy
from kinoise.policies.imports.torch_zip import plain, read_torch
from kinoise.spec import Feature, KinoiseError, Spec
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


def test_dp_t_plans_as_its_own_network_under_diffusers_scheduler(tmp_path, monkeypatch):
    from diffusers import DDPMScheduler
    from kinoise.policies.core.random import normal
    from kinoise.spec import Observation

    net, state = workspace(tmp_path / "a.ckpt")
    policy = import_policy("dp", tmp_path / "a.ckpt", Robot(20.0)).policy
    obs = torch.randn(2, STEPS, OBS, generator=torch.Generator().manual_seed(1))
    gen = torch.Generator().manual_seed(2)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda shape, **_: normal(shape, gen))
    scheduler = DDPMScheduler(num_train_timesteps=LEVELS, beta_schedule="squaredcos_cap_v2", clip_sample=True)
    scheduler.set_timesteps(LEVELS)
    start = "normalizer.params_dict"
    cond = obs * state[f"{start}.obs.scale"] + state[f"{start}.obs.offset"]
    x = normal((2, HORIZON, ACTION), gen)
    with torch.no_grad():
        for step in scheduler.timesteps:
            x = scheduler.step(net(x, step, cond), step, x).prev_sample
    theirs = (x - state[f"{start}.action.offset"]) / state[f"{start}.action.scale"]
    mine = policy.plan(Observation({"obs": obs}), torch.Generator().manual_seed(2))
    torch.testing.assert_close(mine.actions, theirs[:, STEPS - 1 :], rtol=0, atol=2e-5)
    assert policy.config.execute == 3


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("policy.noise_scheduler.clip_sample_range", None, "clip_sample_range is None: expected a number from 0"),
        ("policy.model.p_drop_attn", "x", "p_drop_attn is 'x': expected a number from 0"),
        ("policy.model.n_cond_layers", None, "n_cond_layers is None: expected a whole number from 0"),
        ("policy.num_inference_steps", "x", "num_inference_steps is 'x': expected a whole number from 1"),
    ],
)
def test_damaged_settings_of_dp_t_end_in_one_line(tmp_path, name, value, why):
    workspace(tmp_path / "a.ckpt", {name: value})
    with pytest.raises(KinoiseError, match=why):
        import_policy("dp", tmp_path / "a.ckpt", Robot(20.0))


def test_dp_t_observes_the_datas_states_in_the_order_of_its_keys(tmp_path):
    seen = {"arm": Feature((3,)), "object": Feature((2,))}
    like = Spec(seen, Feature((ACTION,)), rate=20.0, control="absolute"), ()
    workspace(tmp_path / "a.ckpt", {"task.obs_keys": ["object", "arm"]})
    assert list(import_policy("dp", tmp_path / "a.ckpt", Robot(20.0, like=like)).policy.spec.observations) == ["object", "arm"]
    workspace(tmp_path / "a.ckpt", {"task.obs_keys": ["block", "arm"]})
    robot = Robot(20.0, like=like, rename={"block": "object"})
    assert list(import_policy("dp", tmp_path / "a.ckpt", robot).policy.spec.observations) == ["object", "arm"]
    workspace(tmp_path / "a.ckpt")
    found = import_policy("dp", tmp_path / "a.ckpt", Robot(20.0, like=like))
    assert "it names no task.obs_keys: the states are taken in the data's order, arm, object" in found.notes
    for keys in (["object", "robot0_eef"], [["object"], "arm"]):
        workspace(tmp_path / "a.ckpt", {"task.obs_keys": keys})
        with pytest.raises(KinoiseError, match=r"obs_keys=\[.*object.*\], the data's states are \['arm', 'object'\]"):
            import_policy("dp", tmp_path / "a.ckpt", Robot(20.0, like=like))


def test_settings_and_tensors_come_out_of_the_pickle_and_nothing_else(tmp_path):
    _, state = workspace(tmp_path / "a.ckpt")
    value = read_torch(tmp_path / "a.ckpt")
    assert plain(value["cfg"])["policy"]["model"]["n_emb"] == 16
    assert value["pickles"] == {"epoch": b"\x80\x04K\x01."}
    assert all(torch.equal(value["state_dicts"]["model"][name], item) for name, item in state.items())


class Runs:
    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> tuple[object, ...]:
        return self.call[0], self.call[1:]  # type: ignore[return-value]


def touched(path: Path) -> list[object]:
    """Ways in which a pickle could make a file at `path`."""
    from functools import partial

    return [Runs(open, str(path), "w"), Runs(eval, f"open({str(path)!r}, 'w')"), partial(open, str(path), "w"), Runs(exec, "1")]


@pytest.mark.parametrize("way", range(4))
def test_a_hostile_pickle_is_refused_before_it_does_anything(tmp_path, way):
    workspace(tmp_path / "a.ckpt", evil=touched(tmp_path / "done")[way])
    with pytest.raises(KinoiseError, match="could run anything"):
        import_policy("dp", tmp_path / "a.ckpt", Robot(20.0))
    assert not (tmp_path / "done").exists()
