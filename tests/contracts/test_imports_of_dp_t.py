"""Checkpoints of diffusion_policy's DP-T: their plans, their settings, and the pickle that they lie in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dp_workspace import ACTION, HORIZON, LEVELS, OBS, STEPS, workspace
from kinoise.policies.imports import Robot, import_policy
from kinoise.policies.imports.torch_zip import plain, read_torch
from kinoise.spec import Feature, KinoiseError, Spec


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
        ("policy.num_inference_steps", 21, "num_inference_steps is 21: expected a whole number from 1 to 20"),
        ("policy.noise_scheduler.thresholding", True, "thresholding is True; kinoise imports False alone"),
        ("policy.noise_scheduler.trained_betas", [0.1] * 20, "trained_betas is .*; kinoise imports None alone"),
        ("policy.noise_scheduler.rescale_betas_zero_snr", True, "rescale_betas_zero_snr is True"),
        ("policy.noise_scheduler.clip_sample", "no", "clip_sample is 'no': expected true or false"),
        ("policy.noise_scheduler.set_alpha_to_one", 1, "set_alpha_to_one is 1; kinoise imports True alone"),
        ("policy.noise_scheduler.thresholdin", True, r"noise_scheduler has \['thresholdin'\], which diffusion_policy hasn't"),
        ("policy.eta", 1.0, "eta is 1.0; kinoise imports"),
        ("policy.guidance", 1.0, r"cfg.policy has \['guidance'\]"),
        ("policy.model.causal_attn", "yes", "causal_attn is 'yes': expected true or false"),
        ("policy.model.obs_as_cond", 1, "obs_as_cond is 1; kinoise imports True alone"),
        ("policy.model.rotary", False, r"cfg.policy.model has \['rotary'\]"),
    ],
)
def test_damaged_and_foreign_settings_of_dp_t_end_in_one_line(tmp_path, name, value, why):
    workspace(tmp_path / "a.ckpt", {name: value})
    with pytest.raises(KinoiseError, match=why):
        import_policy("dp", tmp_path / "a.ckpt", Robot(20.0))


def test_settings_of_dp_t_that_change_nothing_are_taken(tmp_path):
    workspace(tmp_path / "a.ckpt")
    plain = import_policy("dp", tmp_path / "a.ckpt", Robot(20.0)).policy.config
    scheduler = {
        "thresholding": False,
        "trained_betas": None,
        "sample_max_value": 2.0,
        "beta_start": 0.5,
        "variance_type": "fixed_small",
    }
    changes = {f"policy.noise_scheduler.{name}": value for name, value in scheduler.items()}
    changes |= {"policy.model.p_drop_emb": 0.9, "policy.eta": 0.0, "policy.model.obs_as_cond": True, "policy.model.horizon": 6}
    workspace(tmp_path / "b.ckpt", changes)
    assert import_policy("dp", tmp_path / "b.ckpt", Robot(20.0)).policy.config == plain


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
