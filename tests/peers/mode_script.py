"""MoDE's own code, in a process of its own: makes a small agent, the folder of its release, and its answers to observations.

`python mode_script.py SOURCE FOLDER SETTINGS` with a checkout of MoDE_Diffusion_Policy; SETTINGS (JSON) says which of its
configurations is meant, what is changed in it, and which file holds images, instructions and noise. It writes FOLDER, as its
evaluation reads it, FOLDER/clip, the same CLIP as transformers reads it, and FOLDER/peer.npz.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

# torchvision's wheel expects operators that torch without CUDA lacks; nothing here calls them.
_library = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

SIGMAS = (80.0, 5.0, 0.7, 0.05, 0.001)


class Training(torch.nn.Module):
    """In place of Lightning's module, whose part is training."""

    device, dtype = torch.device("cpu"), torch.float32

    def save_hyperparameters(self) -> None:
        pass


def stand_in(name: str, **content: Any) -> None:
    """A module that is imported for training or for plots alone."""
    module = ModuleType(name)
    vars(module).update(content)
    sys.modules[name] = module


def configuration(source: Path, which: str, changes: dict[str, Any]) -> Any:
    """The run's settings as Hydra composes and keeps them, with references to each other."""
    from omegaconf import OmegaConf

    folder = source / "conf"
    whole, data, transforms = (
        OmegaConf.load(folder / name)
        for name in (f"config_{which}.yaml", f"datamodule/{which}.yaml", f"datamodule/transforms/{which}_transforms.yaml")
    )
    for item in (whole, data):
        item.pop("defaults")
    whole.pop("hydra")
    data["transforms"] = transforms
    whole["datamodule"], whole["model"] = data, OmegaConf.load(folder / "model" / "mode_agent.yaml")
    whole["device"] = "cpu"
    for name, value in changes.items():
        OmegaConf.update(whole, name, value)
    return whole


def tiny_clip() -> Any:
    from mode.models.networks import clip

    torch.manual_seed(1)
    model = clip.CLIP(48, 32, 1, 64, 16, 77, 49408, 64, 1, 2).eval()
    for item in model.parameters():  # as CLIP's weights were published, in half precision
        item.data = item.data.half().float()
    return model


def write_clip(model: Any, folder: Path) -> None:
    """Its text encoder and its tokenizer as transformers has them."""
    from mode.models.networks.clip import _tokenizer
    from safetensors.torch import save_file

    state, found = model.state_dict(), {}
    text = "text_model"
    found[f"{text}.embeddings.token_embedding.weight"] = state["token_embedding.weight"]
    found[f"{text}.embeddings.position_embedding.weight"] = state["positional_embedding"]
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    names["attn.out_proj"] = "self_attn.out_proj"
    for layer in range(2):
        theirs, ours = f"transformer.resblocks.{layer}", f"{text}.encoder.layers.{layer}"
        for kind in ("weight", "bias"):
            for name, own in names.items():
                found[f"{ours}.{own}.{kind}"] = state[f"{theirs}.{name}.{kind}"]
            for part, item in zip("qkv", state[f"{theirs}.attn.in_proj_{kind}"].chunk(3), strict=True):
                found[f"{ours}.self_attn.{part}_proj.{kind}"] = item
            found[f"{text}.final_layer_norm.{kind}"] = state[f"ln_final.{kind}"]
    found["text_projection.weight"] = state["text_projection"].T
    folder.mkdir()
    save_file({name: item.float().contiguous() for name, item in found.items()}, folder / "model.safetensors")
    config = {"model_type": "clip_text_model", "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 1, "projection_dim": 48, "vocab_size": 49408, "hidden_act": "quick_gelu"}
    config |= {"bos_token_id": 49406, "eos_token_id": 49407, "max_position_embeddings": 77}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.json").write_text(json.dumps(_tokenizer.encoder))
    merges = "\n".join(" ".join(pair) for pair in _tokenizer.bpe_ranks)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")


def shaken(agent: torch.nn.Module) -> None:
    """Weights that are nowhere zero or one, as they are initialised; statistics of batch norms likewise."""
    gen = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, item in agent.state_dict().items():
            if name.startswith("language_goal") or not item.is_floating_point():
                continue
            noise = torch.randn(item.shape, generator=gen)
            if name.endswith("running_var"):
                item.copy_(0.5 + noise.abs())
            elif item.ndim > 1:
                item.add_(noise * (0.3 if "router" in name else 0.5) * item[0].numel() ** -0.5)
            else:
                item.add_(0.1 * noise)


def main(source: Path, folder: Path, settings: dict[str, Any]) -> None:
    sys.path.insert(0, str(source))
    stand_in("pytorch_lightning", LightningModule=Training)
    nothing: Any = object
    stand_in("pytorch_lightning.utilities", rank_zero_info=nothing, rank_zero_only=lambda function: function)
    stand_in("mode.callbacks.ema", EMA=nothing)
    stand_in("torchmetrics", MeanMetric=nothing)
    stand_in("transformers", **dict.fromkeys(("AutoProcessor", "AutoModel", "SiglipProcessor", "SiglipModel"), nothing))
    for name in ("seaborn", "wandb", "clip"):
        stand_in(name)
    import timm

    made = timm.create_model
    timm.create_model = lambda name, pretrained, num_classes: made(name, pretrained=False, num_classes=num_classes)
    import hydra
    from mode.models.networks import clip_lang_encoder
    from omegaconf import OmegaConf
    from safetensors.torch import save_file

    text_model = tiny_clip()
    clip_lang_encoder.load_clip = lambda name, device: (text_model, None)
    config = configuration(source, settings["which"], settings["changes"])
    resolved = OmegaConf.to_container(config.model, resolve=True)
    first = hydra.utils.instantiate({**resolved, "ckpt_path": None})
    shaken(first)
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    save_file({name: item.contiguous() for name, item in first.state_dict().items()}, folder / "model_cleaned.safetensors")
    write_clip(text_model, folder / "clip")
    # Read back by its own loader.
    agent = hydra.utils.instantiate({**resolved, "ckpt_path": str(folder), "start_from_pretrained": True}).eval()
    agent.language_goal.float()  # as in its training; half precision rounds
    with np.load(settings["given"]) as given:
        arrays = {name: given[name] for name in given}
    texts = [str(item) for item in arrays["texts"]]
    transforms, seen = config.datamodule.transforms.val, {}
    for key in ("rgb_static", "rgb_gripper"):
        x = torch.from_numpy(arrays[key]).byte().permute(0, 3, 1, 2)
        for transform in transforms[key]:
            x = hydra.utils.instantiate(transform)(x)
        seen[key] = x[:, None]
    noise, found = torch.from_numpy(arrays["noise"]), {}
    draw = torch.randn
    with torch.no_grad():
        goal = agent.lang_buffer.get_goal_instruction_embeddings(texts).float()
        state = agent.embed_visual_obs(seen["rgb_static"], seen["rgb_gripper"], goal)
        levels = torch.tensor(SIGMAS)
        outputs = [agent.model.inner_model(state, noise, goal, sigma.expand(len(noise))) for sigma in levels]
        found["unconditional"] = agent.model.inner_model(state, noise, goal, levels[2].expand(len(noise)), uncond=True)
        torch.randn = lambda *_, **__: noise
        found["plan"] = agent({"rgb_obs": seen}, {"lang_text": texts})
        agent.need_precompute_experts_for_inference = True
        found["fused"] = agent({"rgb_obs": seen}, {"lang_text": texts})
        torch.randn = draw
    found |= {"texts": goal[:, 0], "outputs": torch.stack(outputs), "sigmas": levels}
    np.savez(folder / "peer.npz", **{name: item.numpy() for name, item in found.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
