"""LeRobot's models as policies of ours: what comes in, what is refused, and what goes back."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from kinoise import envs
from kinoise.config import UsageError
from kinoise.eval.evaluate import evaluate
from kinoise.policies.base import Policy
from kinoise.policies.checkpoint import load_policy
from kinoise.policies.core.network import NetworkConfig
from kinoise.policies.core.process import ProcessConfig
from kinoise.policies.decode import DecodeConfig
from kinoise.policies.example import example
from kinoise.policies.imports import Robot, export_lerobot, import_policy
from kinoise.spec import Feature, KinoiseError, SpecMismatch
from kinoise.train.import_policy import main as import_main
from lerobot_unets import LEVELS, change, small
from safetensors.torch import load_file, save_file


def plans(policy: Policy) -> torch.Tensor:
    return policy.plan(example(policy, rows=2), torch.Generator().manual_seed(0)).actions


@pytest.mark.parametrize("images", [False, True])
def test_what_goes_to_lerobot_comes_back_the_same(tmp_path, images):
    policy = small(images=images)
    export_lerobot(policy, tmp_path)
    found = import_policy("lerobot", tmp_path, Robot(10.0))
    assert found.policy.spec == policy.spec
    assert found.notes == []
    torch.testing.assert_close(plans(found.policy), plans(policy), rtol=1e-5, atol=1e-5)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert {"diffusion.unet.diffusion_step_encoder.1.weight", "diffusion.unet.final_conv.1.bias"} <= names
    assert ("diffusion.rgb_encoder.1.pool.pos_grid" in names) == images


def test_statistics_among_the_weights_are_those_beside_them(tmp_path):
    policy = small()
    export_lerobot(policy, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    beside = load_file(next(tmp_path.glob("policy_pre*.safetensors")))
    for item in tmp_path.glob("policy_*"):
        item.unlink()
    for part, name in (("normalize_inputs", "state"), ("normalize_targets", "action"), ("unnormalize_outputs", "action")):
        full = name if name == "action" else f"observation.{name}"
        for kind in ("min", "max"):
            weights[f"{part}.buffer_{full.replace('.', '_')}.{kind}"] = beside[f"{full}.{kind}"].clone()
    save_file(weights, tmp_path / "model.safetensors")
    found = import_policy("lerobot", tmp_path, Robot(10.0))
    assert found.notes == ["observation.environment_state: no statistics, so it isn't scaled"]
    mine = found.policy.plan(example(policy, rows=2), torch.Generator().manual_seed(0)).actions
    torch.testing.assert_close(mine, plans(policy), rtol=1e-5, atol=1e-5)
    save_file({name: item for name, item in weights.items() if "normalize" not in name}, tmp_path / "model.safetensors")
    with pytest.raises(KinoiseError, match=r"no statistics of observation\.state"):
        import_policy("lerobot", tmp_path, Robot(10.0))
    start = "normalize_inputs.buffer_observation_state"
    save_file({**weights, f"{start}.max": weights[f"{start}.min"].clone()}, tmp_path / "model.safetensors")
    constant = import_policy("lerobot", tmp_path, Robot(10.0)).policy.stats["state"]
    assert constant.min == constant.max
    save_file({name: item for name, item in weights.items() if name != f"{start}.max"}, tmp_path / "model.safetensors")
    with pytest.raises(KinoiseError, match=r"observation\.state is scaled by MIN_MAX.* lack max \(there are min\)"):
        import_policy("lerobot", tmp_path, Robot(10.0))


def test_observations_take_the_names_of_the_robot(tmp_path):
    policy = small(images=True)
    export_lerobot(policy, tmp_path / "theirs")
    names = {"state": "agent", "environment_state": "keypoints", "image.wrist": "image.hand"}
    arguments = [str(tmp_path / "theirs"), f"out={tmp_path / 'run'}", "rate=10"]
    said = ",".join(f"{old}: {new}" for old, new in names.items())
    assert import_main([*arguments, f"rename={{{said}}}"]) == 0
    found = load_policy(tmp_path / "run", device="cpu")
    assert list(found.spec.observations) == ["agent", "keypoints", "image.top", "image.hand"]
    assert found.config.vector.states == {"keypoints": "none"}
    obs, gen = example(policy, rows=2), torch.Generator().manual_seed(0)
    renamed = replace(obs, values={names.get(key, key): item for key, item in obs.values.items()})
    torch.testing.assert_close(found.plan(renamed, gen).actions, plans(policy), rtol=1e-5, atol=1e-5)
    with pytest.raises(KinoiseError, match=r"rename has \['hand'\], but the policy observes \['state', "):
        import_policy("lerobot", tmp_path / "theirs", Robot(10.0, rename={"hand": "agent"}))
    with pytest.raises(KinoiseError, match=r"several observations are called \['environment_state'\]"):
        import_policy("lerobot", tmp_path / "theirs", Robot(10.0, rename={"state": "environment_state"}))


def test_a_simulator_says_what_a_checkpoint_does_not(tmp_path):
    """A policy for Push-T's disc and corners, under LeRobot's names of them, plays there once it has the simulator's."""
    pytest.importorskip("gym_pusht")
    with closing(envs.make("pusht")) as env:
        spec = env.spec
    names = {"state": "agent", "environment_state": "keypoints"}
    sizes = {ours: spec.observations[theirs].shape[0] for ours, theirs in names.items()}
    policy = small(sizes=sizes, action=spec.action_dim)
    export_lerobot(policy, tmp_path / "theirs")
    arguments = [str(tmp_path / "theirs"), f"out={tmp_path / 'run'}", "env=pusht"]
    with pytest.raises(SpecMismatch, match=r"environment_state: only in the policy.*rename="):
        import_main(arguments)
    assert not (tmp_path / "run").exists()
    assert import_main([*arguments, "rename={state: agent, environment_state: keypoints}"]) == 0
    found = load_policy(tmp_path / "run", device="cpu")
    assert found.spec == spec.select(["agent", "keypoints"])
    assert found.texts == ("push the T-shaped block onto the T-shaped target",)
    result = evaluate(found, "pusht", episodes=1, horizon=8)
    assert result["success"]["n"] == 1
    for said, told in (
        ("data=somewhere", "data= beside env="),
        ("rate=10", "rate= beside env="),
    ):
        with pytest.raises(UsageError, match=told):
            import_main([*arguments, said])
    with pytest.raises(UsageError, match=r"cameras=.* without env="):
        import_main([*arguments[:2], "rate=10", "cameras=[top]"])


def test_an_imported_policy_is_a_run_that_starts_warm_and_caches(tmp_path, capsys):
    export_lerobot(small(), tmp_path / "theirs")
    assert import_main([str(tmp_path / "theirs"), f"out={tmp_path / 'run'}", "rate=10"]) == 0
    about = json.loads((tmp_path / "run/import.json").read_text())
    assert about["from"] == "lerobot"
    card = (tmp_path / "run/checkpoints/last/README.md").read_text()
    assert f"- Imported from `theirs` (from=lerobot), weights with SHA-256 `{about['sha256']}`." in card
    assert "hold the same weights" in card
    assert str(tmp_path) not in card
    policy = load_policy(tmp_path / "run", device="cpu", decode={"warm": 0.25})
    obs, gen = example(policy), torch.Generator().manual_seed(0)
    first = policy.plan(obs, gen)
    again = policy.plan(obs, gen, previous=first, elapsed=2)
    assert (first.nfe, again.nfe) == (LEVELS, LEVELS // 4)
    assert len(again.surprise) == 1
    kept = policy.plan(obs, gen, previous=again, elapsed=2, prefix=2)
    torch.testing.assert_close(kept.actions[:, :2], again.actions[:, 2:4])
    cached = load_policy(tmp_path / "run", device="cpu", decode={"cache": "every", "cache_every": 4})
    assert cached.plan(obs, gen).actions.isfinite().all()
    export_lerobot(load_policy(tmp_path / "run", device="cpu"), tmp_path / "back")
    mine, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("back", "theirs"))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"type": "act"}, "policy type 'act'"),
        ({"input_features": None}, "input_features and output_features are missing"),
        ({"vision_backbone": "resnet50"}, "resnet18 and resnet34 alone"),
        ({"beta_schedule": "linear"}, "beta_schedule=linear"),
        ({"prediction_type": "v_prediction"}, "epsilon and sample alone"),
        ({"down_dims": "wide"}, "down_dims='wide'"),
        ({"down_dims": [8, 24]}, r"down_modules\.1\.0\.conv1\.block\.0\.weight has shape \(16, 8, 3\)"),
        ({"horizon": -8}, "horizon=-8"),
        ({"num_inference_steps": LEVELS + 1}, "num_inference_steps=21: the 20 levels of num_train_timesteps at most"),
        ({"crop_ratio": "x"}, "crop_ratio='x'"),
        ({"crop_ratio": 1.5}, "crop_ratio=1.5: above 0"),
        ({"input_features": {"observation.state": 5}}, r"observation\.state is 5: expected a type and a shape"),
        ({"kernel_size": 5}, r"conv1\.block\.0\.weight has shape \(8, 2, 3\), expected \(8, 2, 5\)"),
    ],
)
def test_what_lerobot_could_not_mean_here_is_refused(tmp_path, settings, why):
    export_lerobot(small(), tmp_path)
    change(tmp_path, **settings)
    with pytest.raises(KinoiseError, match=why):
        import_policy("lerobot", tmp_path, Robot(10.0))


def test_linear_betas_come_and_go(tmp_path):
    process = ProcessConfig(kind="vp", parametrisation="eps", levels=1000, betas="linear", spacing="leading", clip=1.0)
    network = replace(small().config.network, positions=1000)
    policy = small(process=process, network=network, decode=DecodeConfig(sampler="ddpm", steps=10))
    export_lerobot(policy, tmp_path)
    value = json.loads((tmp_path / "config.json").read_text())
    assert [value[name] for name in ("beta_schedule", "beta_start", "beta_end")] == ["linear", 0.0001, 0.02]
    found = import_policy("lerobot", tmp_path, Robot(10.0)).policy
    torch.testing.assert_close(plans(found), plans(policy), rtol=1e-5, atol=1e-5)
    with pytest.raises(KinoiseError, match=r"process\.betas=linear with 20 levels"):
        export_lerobot(small(process=replace(process, levels=LEVELS)), tmp_path)


def test_missing_and_unexpected_weights_are_listed(tmp_path):
    export_lerobot(small(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["diffusion.unet.final_conv.1.bias"]
    weights["diffusion.unet.final_conv.1.weight"][0] = torch.nan
    save_file({**weights, "diffusion.unet.extra": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(KinoiseError) as caught:
        import_policy("lerobot", tmp_path, Robot(10.0))
    for said in (
        "final_conv.1.bias is missing",
        "final_conv.1.weight holds NaN or infinity",
        "diffusion.unet.extra is unknown",
    ):
        assert said in str(caught.value)


def test_two_tensors_that_become_one_are_refused(tmp_path):
    """torch.compile puts `_orig_mod` into names; a file with both has two tensors where the policy has one."""
    policy = small()
    export_lerobot(policy, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    compiled = {name.replace("diffusion.", "diffusion._orig_mod."): item for name, item in weights.items()}
    save_file(compiled, tmp_path / "model.safetensors")
    torch.testing.assert_close(
        plans(import_policy("lerobot", tmp_path, Robot(10.0)).policy), plans(policy), rtol=1e-5, atol=1e-5
    )
    again = {name: torch.full_like(item, 7.0) for name, item in compiled.items() if name.endswith("final_conv.1.bias")}
    save_file({**weights, **again}, tmp_path / "model.safetensors")
    with pytest.raises(KinoiseError, match=r"final_conv\.1\.bias is in it twice"):
        import_policy("lerobot", tmp_path, Robot(10.0))


def test_data_of_another_robot_is_refused_and_its_own_gives_the_spec(tmp_path):
    policy = small()
    export_lerobot(policy, tmp_path)
    told = replace(policy.spec, rate=50.0, language=True, action=replace(policy.spec.action, names=("a", "b")))
    found = import_policy("lerobot", tmp_path, Robot(10.0, like=(told, ("push",)))).policy
    assert found.spec == told
    assert found.plan(example(found), torch.Generator().manual_seed(0)).actions.isfinite().all()
    other = replace(told, action=Feature((7,)))
    with pytest.raises(SpecMismatch, match=r"action: \(7,\) there, \(2,\) in the policy"):
        import_policy("lerobot", tmp_path, Robot(10.0, like=(other, ())))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"past": 0, "chunk": 8}, "policy.past=0 with history=2"),
        ({"process": ProcessConfig(kind="flow", parametrisation="u")}, "process.kind=flow"),
        ({"decode": DecodeConfig(sampler="heun", steps=4)}, "decode.sampler=heun"),
        ({"network": NetworkConfig(kind="decoder", width=16, heads=2, positions=LEVELS)}, "it isn't a U-Net"),
    ],
)
def test_other_policies_are_for_the_plugin(tmp_path, options, why):
    with pytest.raises(KinoiseError, match=f"{why}.*lerobot_policy_kinoise"):
        export_lerobot(small(**options), tmp_path)


@pytest.mark.parametrize("said", ["rate=10", "gripper=[1]"])
def test_what_the_data_say_is_not_said_again(tmp_path, said):
    with pytest.raises(UsageError, match=rf"{said.partition('=')[0]}= beside data="):
        import_main([str(tmp_path), f"out={tmp_path / 'run'}", "data=DATA", said])


def test_what_actions_mean_is_said_by_the_data_alone(tmp_path):
    policy = small()
    export_lerobot(policy, tmp_path)
    with pytest.raises(UsageError, match="control= beside data= or env="):
        import_policy("lerobot", tmp_path, Robot(10.0, "delta", like=(policy.spec, ())))
    assert import_policy("lerobot", tmp_path, Robot(10.0)).policy.spec.control == "absolute"
    assert import_policy("lerobot", tmp_path, Robot(10.0, "delta")).policy.spec.control == "delta"
