"""Checkpoints of MoDE's release: their plans, their tensors, their settings, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import mode_release as release
import numpy as np
import pytest
import torch
from kinoise.config import UsageError
from kinoise.data import FORMATS
from kinoise.data.base import Episode
from kinoise.policies.base import Policy
from kinoise.policies.checkpoint import load_policy, save_policy
from kinoise.policies.imports import Robot, import_policy
from kinoise.policies.imports.clip import clip_vectors
from kinoise.spec import Batch, Feature, KinoiseError, Observation, Spec, SpecMismatch
from kinoise.train.import_policy import main as import_main
from safetensors.torch import load_file, save_file

IMAGES = {name: Feature(shape, "image") for name, shape in zip(release.CAMERAS, release.SHAPES, strict=True)}
SPEC = Spec({"state": Feature((3,)), **IMAGES}, Feature((release.ACTIONS,)), rate=10.0, control="delta", gripper=(6,))
ROWS = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = release.write(tmp_path_factory.mktemp("mode") / "release", release.weights())
    release.write_clip(folder / "clip")
    return folder


@pytest.fixture(scope="module")
def policy(made) -> Policy:
    return import_policy("mode", made, robot(made)).policy


def robot(made: Path, **changes: Any) -> Robot:
    return replace(Robot(10.0, like=(SPEC, release.TEXTS), clip=made / "clip"), **changes)


def changed(made: Path, folder: Path, changes: dict[str, Any]) -> Path:
    return release.write(folder, made / "model_cleaned.safetensors", changes)


def observation() -> Observation:
    gen = torch.Generator().manual_seed(1)
    values = {
        name: torch.randint(0, 256, (ROWS, 1, *shape), generator=gen, dtype=torch.uint8)
        for name, shape in zip(release.CAMERAS, release.SHAPES, strict=True)
    }
    return Observation(values, release.TEXTS, torch.tensor([0, 2, 1]))


def test_a_plan_is_the_releases_by_its_description(made, policy, monkeypatch):
    state, obs = load_file(made / "model_cleaned.safetensors"), observation()
    noise = torch.randn(ROWS, release.CHUNK, release.ACTIONS, generator=torch.Generator().manual_seed(2))
    goal = clip_vectors(made / "clip", [release.TEXTS[index] for index in (0, 2, 1)], release.GOAL)
    assert torch.pdist(goal).min() > 0.1
    with torch.no_grad():
        seen = [
            release.camera(state, name, release.picture(obs.values[key][:, 0], size), goal)
            for name, key, size in zip(("static_resnet", "gripper_resnet"), release.CAMERAS, release.SIZES, strict=True)
        ]
        sigmas = [*torch.linspace(math.log(80), math.log(0.001), 4, dtype=torch.float64).exp().tolist(), 0.0]
        x = 80 * noise
        for now, then in pairwise(sigmas):
            root = (now**2 + 0.25) ** 0.5
            told = release.network(state, x / root, now, goal, torch.stack(seen, 1))
            belief = x * 0.25 / root**2 + told * 0.5 * now / root
            x = belief + then / now * (x - belief)
    monkeypatch.setattr(policy.process, "prior", lambda *_: 80 * noise)
    found = policy.plan(obs, torch.Generator())
    torch.testing.assert_close(found.actions, x, rtol=0, atol=1e-5)
    assert x.std() > 0.1
    assert (policy.config.chunk, policy.config.execute, found.nfe) == (release.CHUNK, 3, 4)
    assert policy.spec == SPEC.select(release.CAMERAS)


def test_every_number_of_the_file_is_in_the_policy_once(made, policy):
    theirs = load_file(made / "model_cleaned.safetensors")
    own = {key: item for key, item in policy.state_dict().items() if key != "observe.texts.table" and "tracked" not in key}
    unused = ("language_goal.", f"{release.NET}.gripper_embed.")
    held = [item.numel() for key, item in theirs.items() if not key.startswith(unused) and "tracked" not in key]
    # One table of places is two: the cameras' is the first action's.
    assert sum(item.numel() for item in own.values()) == sum(held) + release.WIDTH
    assert policy.state_dict()["observe.images.0.network.stem.1.num_batches_tracked"] == 7


def test_a_saved_policy_plans_alike_and_needs_no_clip(policy, tmp_path):
    save_policy(tmp_path, policy, {})
    again, obs = load_policy(tmp_path, device="cpu"), observation()
    plans = (item.plan(obs, torch.Generator().manual_seed(0)).actions for item in (policy, again))
    torch.testing.assert_close(*plans, rtol=0, atol=0)
    with pytest.raises(KinoiseError, match=r"\['dance'\] have no vector: the policy knows \['open it', .*Import it again"):
        again.plan(replace(obs, texts=("dance",), text=torch.zeros(ROWS, dtype=torch.long)), torch.Generator())


def test_tensors_that_do_not_fit_are_listed_and_nothing_is_loaded(made, tmp_path):
    state = load_file(made / "model_cleaned.safetensors")
    del state[f"{release.NET}.blocks.1.attn.key.bias"]
    state[f"{release.NET}.state_embed.weight"] = torch.ones(2)
    state[f"{release.NET}.out.bias"] = torch.ones(2)
    state["static_resnet.film_module2.modulation.1.weight"][0, 0] = torch.nan
    with pytest.raises(KinoiseError) as error:
        import_policy("mode", release.write(tmp_path / "a", state), robot(made))
    for said in (
        "blocks.1.attn.key.bias is missing, expected (16,)",
        "state_embed.weight is unknown",
        "out.bias has shape (2,), expected (7,)",
        "film_module2.modulation.1.weight holds NaN",
        "loads nothing in part",
    ):
        assert said in str(error.value)


def test_names_of_pretraining_are_read_unless_two_mean_the_same(made, policy, tmp_path):
    state = load_file(made / "model_cleaned.safetensors")
    renamed = {name.replace("static_resnet.", "img_encoder_image_primary."): item for name, item in state.items()}
    found = import_policy("mode", release.write(tmp_path / "a", renamed), robot(made)).policy
    assert all(torch.equal(item, policy.state_dict()[name]) for name, item in found.state_dict().items())
    renamed["img_encoder_image_secondary.fc.bias"] = torch.zeros(release.SEEN)
    with pytest.raises(KinoiseError, match=r"static_resnet.fc.bias is in it twice"):
        import_policy("mode", release.write(tmp_path / "b", renamed), robot(made))


INNER = "model.model.inner_model"
RESIZE = "datamodule.transforms.val.rgb_gripper"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model._target_": "mdt.models.MDTAgent"}, "_target_ is 'MDTAgent'; kinoise imports MoDEAgent alone"),
        ({"model.language_goal": None}, "language_goal._target_"),
        ({"model.use_proprio": True}, "use_proprio is True; kinoise imports False alone"),
        ({"model.use_text_not_embedding": False}, "use_text_not_embedding is False"),
        ({"model.resnet_type": "101"}, "resnet_type is '101'; kinoise imports 18 and 34 and 50 alone"),
        ({"model.sampler_type": "lms"}, "sampler_type is 'lms'"),
        ({"model.noise_scheduler": "vp"}, "noise_scheduler is 'vp'"),
        ({"model.sigma_min": "x"}, "sigma_min is 'x': expected a number"),
        ({"model.sigma_min": 0}, "0 < sigma_min < sigma_max"),
        ({"model.num_sampling_steps": 0}, "num_sampling_steps is 0: expected a whole number from 1"),
        ({"model.act_window_size": 4}, "action_seq_len is 5; kinoise imports 4 alone"),
        ({"model.cond_dim": 12, f"{INNER}.goal_dim": 24}, "goal_dim is 24; kinoise imports 12 alone"),
        ({"model.multistep": 6}, "execute=6: expected between 1 and the plan's 5"),
        ({f"{INNER}.obs_seq_len": 2}, "obs_seq_len is 2"),
        ({f"{INNER}.goal_seq_len": 2}, "goal_seq_len is 2"),
        ({f"{INNER}.goal_conditioned": False}, "goal_conditioned is False"),
        ({f"{INNER}.linear_output": False}, "linear_output is False"),
        ({f"{INNER}.cond_router": False}, "cond_router is False"),
        ({f"{INNER}.router_normalize": False}, "router_normalize is False"),
        ({f"{INNER}.use_goal_in_routing": True}, "use_goal_in_routing is True"),
        ({f"{INNER}.use_shared_expert": True}, "use_shared_expert is True"),
        ({f"{INNER}.use_custom_attn_mask": True}, "use_custom_attn_mask is True"),
        ({f"{INNER}.rotary": True}, r"has \['rotary'\], which MoDE's release hasn't"),
        ({f"{INNER}.top_k": 4}, "top_k=4: expected between 1 and network.experts=3"),
        ({f"{INNER}.n_layers": 1.5}, "n_layers is 1.5: expected a whole number"),
        ({f"{INNER}.embed_dim": 17}, "expected positive numbers, and a width that is a multiple"),
        ({"datamodule.transforms": None}, "val.rgb_static is None; kinoise imports Resize"),
        ({f"{RESIZE}[0].antialias": False}, "val.rgb_gripper is .*; kinoise imports Resize"),
        ({f"{RESIZE}[0].size": [40, 40]}, "val.rgb_gripper is .*; kinoise imports Resize"),
        ({f"{RESIZE}[1]._target_": "mode.utils.transforms.Crop"}, "val.rgb_gripper is .*; kinoise imports Resize"),
        ({f"{RESIZE}[2].std": [1, 1, 2]}, "scaled differently"),
        ({"datamodule.observation_space.rgb_obs": ["a"]}, r"rgb_obs is \['a'\]: expected two cameras"),
    ],
)
def test_settings_that_kinoise_has_not_are_refused_by_name(made, tmp_path, changes, why):
    with pytest.raises(KinoiseError, match=why):
        import_policy("mode", changed(made, tmp_path / "a", changes), robot(made))


def test_settings_that_show_in_the_policy(made, tmp_path):
    # CLIP's size and the weights stay: these change what is done with them.
    changes = {"model.noise_scheduler": "karras", "model.sampler_type": "dpmpp_2m", "model.sigma_max": 5.0}
    changes |= {"datamodule._target_": "mode.datasets.libero_data_module.LiberoDataModule", f"{INNER}.top_k": 1}
    changes |= {f"{INNER}.use_noise_token_as_input": False, "model.entropy_gamma": 0.25}
    found = import_policy("mode", changed(made, tmp_path / "a", changes), robot(made))
    config = found.policy.config
    assert (config.process.grid, config.process.sigma_max, config.decode.sampler) == ("karras", 5.0, "dpmpp_2m")
    assert (config.film.flip, config.network.top_k, config.network.noise_token, config.network.balance) == (
        True,
        1,
        False,
        0.25,
    )
    assert any("upside down" in note for note in found.notes)
    image = observation().values["rgb_static"][:, 0]
    plain = import_policy("mode", made, robot(made)).policy.observe
    torch.testing.assert_close(found.policy.observe.pictures(image, 40), plain.pictures(image.flip(1), 40))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "no .hydra/config.yaml"),
        ("a: [", "not Hydra's settings"),
        ("- 1", "not Hydra's settings"),
        ("model: 3", "_target_"),
        ("model: {a: '${b}'}", "not Hydra's settings"),
        (b"\xff\xfe", "not Hydra's settings"),
    ],
)
def test_files_that_are_no_settings(made, tmp_path, text, why):
    folder = changed(made, tmp_path / "a", {})
    file = folder / ".hydra" / "config.yaml"
    file.unlink()
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(KinoiseError, match=why):
        import_policy("mode", folder, robot(made))


def test_weights_that_are_missing_or_cut_short(made, tmp_path):
    folder = changed(made, tmp_path / "a", {})
    (folder / "model_cleaned.safetensors").unlink()
    with pytest.raises(KinoiseError, match=r"model_cleaned.safetensors is missing"):
        import_policy("mode", folder, robot(made))
    (folder / "model_cleaned.safetensors").write_bytes((made / "model_cleaned.safetensors").read_bytes()[:-100])
    with pytest.raises(KinoiseError, match="can't be read as safetensors"):
        import_policy("mode", folder, robot(made))


def test_what_the_robot_has_to_say(made):
    for changes, why in (
        ({"clip": None}, r"give clip=.*ViT-B/32"),
        ({"like": None}, "give data= or env="),
        ({"like": (SPEC, ())}, "give data= or env="),
        ({"like": (replace(SPEC, language=False), release.TEXTS)}, "give data= or env="),
    ):
        with pytest.raises(KinoiseError, match=why):
            import_policy("mode", made, robot(made, **changes))
    for spec, why in (
        (replace(SPEC, control="absolute"), "rel_actions"),
        (replace(SPEC, action=Feature((4,))), r"action: \(4,\) there"),
        (SPEC.select(["state", "rgb_static"]), "rgb_gripper: only in the policy"),
    ):
        with pytest.raises(SpecMismatch, match=why):
            import_policy("mode", made, robot(made, like=(spec, release.TEXTS)))
    seen = {"image.hand": IMAGES["rgb_gripper"], "image.top": IMAGES["rgb_static"]}
    names = {"rgb_static": "image.top", "rgb_gripper": "image.hand"}
    found = import_policy("mode", made, robot(made, like=(replace(SPEC, observations=seen), release.TEXTS), rename=names))
    assert list(found.policy.spec.observations) == ["image.top", "image.hand"]


def test_folders_that_hold_no_such_clip(made, tmp_path):
    with pytest.raises(KinoiseError, match=r"config.json and model.safetensors and vocab.json and merges.txt are missing"):
        clip_vectors(tmp_path, ["a"], release.GOAL)
    with pytest.raises(KinoiseError, match="vectors have 24 numbers, the policy's 12"):
        clip_vectors(made / "clip", ["a"], 12)
    with pytest.raises(KinoiseError, match="CLIP reads 77 tokens at most"):
        clip_vectors(made / "clip", ["a" * 80], release.GOAL)
    release.write_clip(tmp_path / "clip")
    config, weights = tmp_path / "clip" / "config.json", tmp_path / "clip" / "model.safetensors"
    value, tensors = json.loads(config.read_text()), load_file(weights)
    save_file({name: item for name, item in tensors.items() if name != "text_projection.weight"}, weights)
    with pytest.raises(KinoiseError, match=r"its weights lack text_projection\.weight"):
        clip_vectors(tmp_path / "clip", ["a"], release.GOAL)
    save_file(tensors, weights)
    for changes, why in (
        ({"text_config": {**value["text_config"], "eos_token_id": 3}}, "don't belong together"),
        ({"model_type": "bert"}, "model_type is 'bert'"),
    ):
        config.write_text(json.dumps({**value, **changes}))
        with pytest.raises(KinoiseError, match=why):
            clip_vectors(tmp_path / "clip", ["a"], release.GOAL)


def test_guidance_hides_the_instruction_from_its_token_alone(policy, tmp_path):
    obs, hidden = observation(), torch.ones(ROWS, dtype=torch.bool)
    with torch.inference_mode():
        told, untold = policy.observe(obs), policy.observe(obs, hidden)
    torch.testing.assert_close(untold[:, 1:], told[:, 1:], rtol=0, atol=0)
    torch.testing.assert_close(untold[:, 0], policy.observe.place[0].expand(ROWS, -1))
    save_policy(tmp_path, policy, {})
    plain, guided = (
        load_policy(tmp_path, device="cpu", decode={"guidance": scale}).plan(obs, torch.Generator().manual_seed(0))
        for scale in (1.0, 2.0)
    )
    assert guided.nfe == 2 * plain.nfe
    assert not torch.allclose(guided.actions, plain.actions, atol=1e-3)


def test_it_starts_warm_caches_routes_and_learns(policy, tmp_path):
    save_policy(tmp_path, policy, {})
    obs = observation()
    whole = policy.plan(obs, torch.Generator().manual_seed(0))
    warm = load_policy(tmp_path, device="cpu", decode={"warm": 0.25})
    again = warm.plan(obs, torch.Generator().manual_seed(1), previous=whole, elapsed=1)
    assert (again.nfe, len(again.surprise)) == (1, ROWS)
    kept = warm.plan(obs, torch.Generator().manual_seed(1), previous=whole, elapsed=1, prefix=2)
    torch.testing.assert_close(kept.actions[:, :2], whole.actions[:, 1:3])
    exact, reused = (
        load_policy(tmp_path, device="cpu", decode={"cache": "every", "cache_every": every}).plan(
            obs, torch.Generator().manual_seed(0)
        )
        for every in (1, 2)
    )
    torch.testing.assert_close(exact.actions, whole.actions, rtol=0, atol=0)
    assert not torch.allclose(reused.actions, whole.actions, atol=1e-3)
    use = policy.expert_use()
    assert use is not None
    assert use["measure"] == "sigma"
    torch.testing.assert_close(torch.tensor(use["use"]).sum(-1), torch.ones(32, release.DEPTH))
    labels = policy.process.label(torch.tensor([0.2, 0.9], dtype=torch.float64))
    with torch.inference_mode():
        context, x = policy.observe(obs.rows([0, 1])), whole.actions[:2]
        together = policy.network(x, labels.float(), context).value
        single = [policy.network(x, policy._level(label, 0), context).value[row] for row, label in enumerate(labels)]
    torch.testing.assert_close(together, torch.stack(single), rtol=1e-5, atol=1e-5)
    learner = load_policy(tmp_path, device="cpu").train()
    batch = Batch(obs, torch.zeros(ROWS, release.CHUNK, release.ACTIONS), torch.ones(ROWS, release.CHUNK, dtype=torch.bool))
    losses = learner.loss(batch, torch.Generator().manual_seed(0))
    losses.total.backward()
    assert losses.total.isfinite()
    assert all(item.grad is not None and item.grad.isfinite().all() for item in learner.parameters())


def test_the_command_takes_instructions_from_data(made, policy, tmp_path):
    rng, steps = np.random.default_rng(0), 4
    arrays = {"state": rng.normal(size=(steps, 3)).astype(np.float32), "action": np.zeros((steps, 7), np.float32)}
    arrays |= {name: rng.integers(0, 256, (steps, *item.shape), np.uint8) for name, item in IMAGES.items()}
    FORMATS["kinoise"].write(tmp_path / "data", SPEC, [Episode(arrays, text) for text in release.TEXTS])
    said = [str(made), "from=mode", f"out={tmp_path / 'run'}", f"data={tmp_path / 'data'}"]
    assert import_main([*said, f"clip={made / 'clip'}"]) == 0
    found = load_policy(tmp_path / "run", device="cpu")
    assert (found.spec, found.texts) == (policy.spec, release.TEXTS)
    assert json.loads((tmp_path / "run" / "import.json").read_text())["from"] == "mode"
    with pytest.raises(UsageError, match=r"clip=.*only from=mode"):
        import_main([str(made), "from=dp", f"out={tmp_path / 'other'}", "rate=10", "clip=x"])
