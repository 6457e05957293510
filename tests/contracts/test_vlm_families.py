"""How pretrained vision-language models are loaded and fed: as Hugging Face does, or not at all."""

from pathlib import Path

import pytest
import torch
from kinoise.policies.encoders.vlm import VlmBackbone, VlmConfig
from kinoise.policies.encoders.vlm_families import FAMILIES, SmolVlm, load_family
from kinoise.spec import KinoiseError
from safetensors.torch import load_file, save_file
from tiny_vlm import BUILD, CHUNK, HISTORY, SIZES, SPEC, STATS, TEXT, TEXTS, observe, write_model
from transformers import AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM


@pytest.fixture(scope="module")
def models_at(tmp_path_factory) -> dict[str, Path]:
    return {name: write_model(name, tmp_path_factory.mktemp(name)) for name in BUILD}


@pytest.fixture(params=BUILD)
def path(request, models_at) -> Path:
    return models_at[request.param]


def test_images_arrive_as_the_image_processor_makes_them(path, monkeypatch):
    (family, *_), seen = load_family(str(path), [(24, 12)], torch.float32), []
    square = isinstance(family, SmolVlm)
    # Torch's bicubic filter is PIL's; the Lanczos filter of the SmolVLM processor has no counterpart in older versions.
    monkeypatch.setattr(family.processor, "resample", 3)
    camera = torch.randint(
        0, 256, (2, 24, 24 if square else 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    hook = family.vision[0].register_forward_pre_hook(
        lambda _, args, named: seen.append(args[0] if args else named["pixel_values"]), with_kwargs=True
    )
    family.encode(camera)
    hook.remove()
    settings = {"do_image_splitting": False, "size": {"longest_edge": 16}} if square else {}
    theirs = family.processor(list(camera.numpy()), return_tensors="pt", **settings)["pixel_values"]
    # A level of 255 is 0.008 to 0.015 here; PIL rounds twice, after rows and after columns.
    difference = (seen[0] - theirs.view_as(seen[0])).abs()
    assert difference.mean() < 0.01
    assert difference.max() < 0.08


def test_a_prompt_is_what_the_pretrained_model_makes_of_it(path):
    """Without state tokens, and before LoRA has learned anything: keys and values of the untouched model, given all at once."""
    spec = SPEC.select(["image.front", "image.wrist"])
    backbone = VlmBackbone(VlmConfig(path=str(path), lora=4), spec, STATS, TEXTS, HISTORY, CHUNK, SIZES)
    obs, pixels = observe(1), []
    family = backbone.family
    hook = family.vision[0].register_forward_pre_hook(
        lambda _, args, named: pixels.append(args[0] if args else named["pixel_values"]), with_kwargs=True
    )
    with torch.no_grad():
        prefix = backbone.prefix(obs, None)
    hook.remove()
    prompt = family.prompt(TEXTS[0])
    inputs = {
        "input_ids": prompt.ids[None],
        "attention_mask": torch.ones(1, len(prompt.ids)),
        "pixel_values": torch.cat(pixels),
    }
    if "qwen" in str(path):
        inputs |= {"image_grid_thw": torch.tensor([[1, 4, 4]] * HISTORY + [[1, 6, 4]] * HISTORY)}
        inputs |= {"mm_token_type_ids": prompt.images[None].int()}
    elif "paligemma" in str(path):
        inputs |= {"token_type_ids": torch.zeros_like(inputs["input_ids"])}
    else:
        inputs["pixel_values"] = inputs["pixel_values"][None]
    whole = AutoModelForImageTextToText.from_pretrained(path, attn_implementation="eager").eval()
    with torch.no_grad():
        cache = whole(**inputs, use_cache=True).past_key_values
    for (keys, values), layer in zip(prefix.past, cache.layers, strict=True):
        torch.testing.assert_close(keys, layer.keys, atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(values, layer.values, atol=2e-4, rtol=2e-4)


def test_positions_of_images_follow_the_family(models_at):
    shapes = [(16, 16), (12, 24), (24, 12)]
    family, *_ = load_family(str(models_at["qwen2_5_vl"]), shapes, torch.float32)
    prompt = family.prompt(TEXTS[0])
    grid = torch.tensor([[1, 4, 4], [1, 4, 6], [1, 6, 4]])
    expected, _ = family.model.get_rope_index(prompt.ids[None], prompt.images[None].int(), image_grid_thw=grid)
    assert torch.equal(prompt.positions, expected[:, 0])


def refused(path: Path, match: str) -> None:
    with pytest.raises(KinoiseError, match=match):
        load_family(str(path), [(16, 16)], torch.float32)


def test_what_is_no_vision_language_model_is_refused(tmp_path):
    refused(tmp_path / "absent", "no vision-language model there")
    refused(tmp_path, r"config\.json")
    LlamaForCausalLM(LlamaConfig(**TEXT)).save_pretrained(tmp_path)
    refused(tmp_path, f"'llama'.*{', '.join(FAMILIES)}")


@pytest.mark.parametrize(
    ("lost", "match"), [("model.safetensors", "weights"), ("tokenizer", "tokenizer"), ("processor", "image")]
)
def test_an_incomplete_directory_is_refused(lost, match, tmp_path, models_at):
    for file in models_at["smolvlm"].iterdir():
        if lost not in file.name or (lost == "tokenizer" and "processor" in file.name):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    refused(tmp_path, match)


def test_missing_weights_are_not_made_up(tmp_path, models_at):
    for file in models_at["smolvlm"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop(next(key for key in weights if key.endswith("q_proj.weight")))
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    refused(tmp_path, "weights are missing")
