"""A folder as MoDE's release has them, small and with random weights, and its network and cameras by their description."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor

WIDTH, DEPTH, HEADS, EXPERTS, CHUNK, ACTIONS, GOAL, SEEN = 16, 2, 2, 3, 5, 7, 24, 512
SIZES, SHAPES = (40, 33), ((50, 64, 3), (40, 36, 3))
CAMERAS = ("rgb_static", "rgb_gripper")
MEAN, DEVIATION = (0.48, 0.45, 0.41), (0.27, 0.26, 0.28)
TEXTS = ("open it", "close it now", "open it now")
NET = "model.inner_model"
State = Mapping[str, Tensor]


def settings(changes: Mapping[str, Any] | None = None) -> Any:
    """The run's settings, which refer to each other; `changes` by dotted names, None takes one away."""
    inner = {"_target_": "mode.models.networks.modedit.MoDeDiT", "action_dim": "${datamodule.action_space}", "obs_dim": 2048}
    inner |= {"goal_dim": "${model.cond_dim}", "goal_conditioned": True, "embed_dim": "${model.latent_dim}", "n_layers": DEPTH}
    inner |= {"n_heads": HEADS, "goal_seq_len": 1, "obs_seq_len": 1, "action_seq_len": "${act_seq_len}", "embed_pdrob": 0}
    inner |= {"num_experts": EXPERTS, "top_k": 2, "device": "cuda", "state_dim": 9, "attn_pdrop": 0.3}
    agent = {"_target_": "mode.models.mode_agent.MoDEAgent", "act_window_size": "${act_seq_len}", "cond_dim": GOAL}
    agent |= {"latent_dim": WIDTH, "multistep": 3, "resnet_type": "18", "num_sampling_steps": 4, "sigma_max": 80}
    agent["language_goal"] = {"_target_": "mode.models.networks.clip_lang_encoder.LangClip", "model_name": "ViT-B/32"}
    denoiser = {"_target_": "mode.models.edm_diffusion.score_wrappers.GCDenoiser", "sigma_data": 0.5, "inner_model": inner}
    scale = {"_target_": "torchvision.transforms.Normalize", "mean": list(MEAN), "std": list(DEVIATION)}
    steps = {
        name: [
            {"_target_": "torchvision.transforms.Resize", "size": size, "antialias": True},
            {"_target_": "mode.utils.transforms.ScaleImageTensor"},
            scale,
        ]
        for name, size in zip(CAMERAS, SIZES, strict=True)
    }
    data = {"_target_": "mode.datasets.hulc_data_module.HulcDataModule", "action_space": ACTIONS, "transforms": {"val": steps}}
    data |= {"observation_space": {"rgb_obs": list(CAMERAS), "actions": ["rel_actions"]}, "root": "${root_data_dir}"}
    found = {"model": {**agent, "model": denoiser}, "datamodule": data, "act_seq_len": CHUNK, "root_data_dir": "???"}
    whole = OmegaConf.create(found)
    for name, value in (changes or {}).items():
        OmegaConf.update(whole, name, value, merge=False)
    return whole


def _shapes() -> dict[str, tuple[int, ...]]:
    hidden = 8 * WIDTH
    found: dict[str, tuple[int, ...]] = {f"{NET}.sigma_emb.weight": (WIDTH, 1), f"{NET}.sigma_emb.bias": (WIDTH,)}
    found |= {f"{NET}.{name}.weight": (WIDTH, SEEN) for name in ("tok_emb", "gripper_embed")}
    found |= {f"{NET}.goal_emb.weight": (WIDTH, GOAL), f"{NET}.action_emb.weight": (WIDTH, ACTIONS)}
    found |= {f"{NET}.sigma_linear.weight": (WIDTH, WIDTH), f"{NET}.pos_emb": (1, 1 + CHUNK, WIDTH), f"{NET}.ln.g": (WIDTH,)}
    found |= {f"{NET}.out.weight": (ACTIONS, WIDTH), f"{NET}.out.bias": (ACTIONS,)}
    for layer in range(DEPTH):
        block = f"{NET}.blocks.{layer}"
        found |= {f"{block}.ln_{place}.g": (WIDTH,) for place in (1, 2)}
        found |= {f"{block}.attn.{part}.g": (WIDTH // HEADS,) for part in ("q_norm", "k_norm")}
        for part in ("key", "query", "value"):
            found |= {f"{block}.attn.{part}.weight": (WIDTH, WIDTH), f"{block}.attn.{part}.bias": (WIDTH,)}
        found |= {f"{block}.attn.c_proj.weight": (WIDTH, WIDTH)}
        router = f"{block}.router.router.mlp"
        found |= {f"{router}.0.weight": (2 * WIDTH, WIDTH), f"{router}.0.bias": (2 * WIDTH,)}
        found |= {f"{router}.3.weight": (EXPERTS, 2 * WIDTH), f"{router}.3.bias": (EXPERTS,)}
        for expert in range(EXPERTS):
            own = f"{block}.experts.expert_{expert}.mlp"
            found |= {f"{own}.0.project.weight": (hidden, WIDTH), f"{own}.0.project.bias": (hidden,)}
            found |= {f"{own}.2.weight": (WIDTH, hidden // 2)}
    for camera in ("static_resnet", "gripper_resnet"):
        found |= {f"{camera}.conv1.weight": (64, 3, 7, 7), **_norm(f"{camera}.bn1", 64)}
        inputs = 64
        for stage, outputs in enumerate((64, 128, 256, 512), 1):
            for block in range(2):
                layer = f"{camera}.layer{stage}.{block}"
                found |= {f"{layer}.conv1.weight": (outputs, inputs, 3, 3), f"{layer}.conv2.weight": (outputs, outputs, 3, 3)}
                found |= {**_norm(f"{layer}.bn1", outputs), **_norm(f"{layer}.bn2", outputs)}
                if inputs != outputs:
                    found |= {
                        f"{layer}.downsample.0.weight": (outputs, inputs, 1, 1),
                        **_norm(f"{layer}.downsample.1", outputs),
                    }
                inputs = outputs
            film = f"{camera}.film_module{stage}.modulation.1"
            found |= {f"{film}.weight": (4 * outputs, GOAL), f"{film}.bias": (4 * outputs,)}
        found |= {f"{camera}.fc.weight": (SEEN, 512), f"{camera}.fc.bias": (SEEN,)}
    return found


def _norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{part}": (size,) for part in ("weight", "bias", "running_mean", "running_var")}


def weights() -> dict[str, Tensor]:
    gen, found = torch.Generator().manual_seed(0), {}
    for name, shape in _shapes().items():
        noise = torch.randn(shape, generator=gen)
        if name.endswith("running_var"):
            found[name] = 0.5 + noise.abs()
        elif name.endswith(".g") or ("bn" in name and name.endswith("weight")):
            found[name] = 1 + 0.2 * noise
        else:
            # A matrix keeps sizes as they are; vectors, and matrices of few inputs, are small beside what comes in.
            found[name] = noise * max(4, math.prod(shape[1:]) if len(shape) > 1 else 16) ** -0.5
    found["language_goal.clip_rn50.logit_scale"] = torch.ones(())
    found["static_resnet.bn1.num_batches_tracked"] = torch.tensor(7)
    return found


def write_clip(folder: Path, size: int = GOAL) -> None:
    """A whole CLIP that knows letters alone, as transformers writes it."""
    from transformers import CLIPConfig, CLIPModel

    letters = [chr(item) for item in range(33, 127)]
    names = [*letters, *(f"{item}</w>" for item in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: index for index, name in enumerate(names)}
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"projection_dim": size, "initializer_factor": 20.0}
    ends = {"bos_token_id": len(names) - 2, "eos_token_id": len(names) - 1, "pad_token_id": len(names) - 1}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        text, eyes = {"vocab_size": len(names), **shape, **ends}, {"image_size": 32, "patch_size": 16, **shape}
        config = CLIPConfig(text_config=text, vision_config=eyes, projection_dim=size, initializer_factor=20.0)
        CLIPModel(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def write(folder: Path, state: State | Path, changes: Mapping[str, Any] | None = None) -> Path:
    """The folder; a `state` on disk already is linked to."""
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(settings(changes), folder / ".hydra" / "config.yaml")
    if isinstance(state, Path):
        os.link(state, folder / "model_cleaned.safetensors")
    else:
        save_file(dict(state), folder / "model_cleaned.safetensors")
    return folder


def picture(image: Tensor, size: int) -> Tensor:
    """uint8 `[batch, height, width, 3]`, its shorter side brought to `size` pixels, and scaled."""
    height, across = image.shape[1:3]
    shape = [int(size * side / min(height, across)) for side in (height, across)]
    x = F.interpolate(image.permute(0, 3, 1, 2).float(), shape, mode="bilinear", antialias=True).round().clamp(0, 255) / 255
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]


def camera(state: State, name: str, x: Tensor, goal: Tensor) -> Tensor:
    """ResNet-18 whose blocks' branches are modulated."""

    def norm(x: Tensor, place: str) -> Tensor:
        parts = (state[f"{name}.{place}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts)

    def conv(x: Tensor, place: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.{place}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    x = F.max_pool2d(norm(conv(x, "conv1", 2), "bn1").relu(), 3, 2, 1)
    for stage in range(1, 5):
        film = f"{name}.film_module{stage}.modulation.1"
        parts = F.linear(F.silu(goal), state[f"{film}.weight"], state[f"{film}.bias"])[..., None, None].chunk(4, 1)
        for block in range(2):
            layer, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            branch = norm(
                conv(norm(conv(x, f"{layer}.conv1", stride), f"{layer}.bn1").relu(), f"{layer}.conv2"), f"{layer}.bn2"
            )
            if stride == 2:
                x = norm(conv(x, f"{layer}.downsample.0", 2), f"{layer}.downsample.1")
            x = (x + parts[2 * block] * branch + parts[2 * block + 1]).relu()
    return F.linear(x.mean((2, 3)), state[f"{name}.fc.weight"], state[f"{name}.fc.bias"])


def network(state: State, x: Tensor, sigma: float, goal: Tensor, seen: Tensor) -> Tensor:
    """F: `x` as EDM scales it, `goal` of a row each, `seen` of each camera."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{NET}.{name}.weight"], state.get(f"{NET}.{name}.bias"))

    def rms(x: Tensor, name: str) -> Tensor:
        return x / x.square().mean(-1, keepdim=True).sqrt() * state[f"{NET}.{name}.g"]

    phi = linear(linear(torch.full((len(x), 1, 1), sigma).log() / 4, "sigma_emb"), "sigma_linear")
    place = state[f"{NET}.pos_emb"]
    told = [linear(goal[:, None], "goal_emb") + place[:, :1], linear(seen, "tok_emb") + place[:, 1:2]]
    h = torch.cat([phi, *told, linear(x, "action_emb") + place[:, 1:]], 1)
    later = torch.ones(h.shape[1], h.shape[1]).triu(1).bool()
    for layer in range(DEPTH):
        block = f"blocks.{layer}"
        y = rms(h, f"{block}.ln_1") + phi
        q, k, v = (
            linear(y, f"{block}.attn.{part}").unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in ("query", "key", "value")
        )
        q, k = rms(q, f"{block}.attn.q_norm"), rms(k, f"{block}.attn.k_norm")
        scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(later, -torch.inf).softmax(-1)
        h = rms(h + linear((scores @ v).transpose(1, 2).flatten(2), f"{block}.attn.c_proj"), f"{block}.ln_2")
        router = f"{block}.router.router.mlp"
        chances = linear(F.gelu(linear(phi[0, 0], f"{router}.0")), f"{router}.3").softmax(-1)
        best, after = chances.topk(2), h
        for chance, expert in zip(best.values / best.values.sum(), best.indices.tolist(), strict=True):
            own = f"{block}.experts.expert_{expert}.mlp"
            value, gate = linear(h, f"{own}.0.project").chunk(2, -1)
            after = after + chance * linear(value * F.silu(gate), f"{own}.2")
        h = after
    return linear(rms(h, "ln")[:, -CHUNK:], "out")
