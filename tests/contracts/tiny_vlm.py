"""Vision-language models of every family that is known, tiny and random, in directories as a hub hands them out."""

from pathlib import Path

import torch
from kinoise.spec import Feature, Observation, Spec, Stats
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    GemmaConfig,
    Idefics3Config,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3 import Idefics3ForConditionalGeneration
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

HISTORY, CHUNK, SIZES = 2, 3, (5, 7, 2)
TEXTS = ("open the drawer", "push", "close the window slowly please")
WORDS = (
    *["open", "the", "drawer", "push", "close", "window", "slowly", "please"],
    "User",
    ":",
    "Assistant",
    "system",
    "user",
    "assistant",
    "You",
    "are",
    "a",
    "helpful",
    ".",
)
SPECIAL = (
    *("<unk>", "<pad>", "<bos>", "<|im_start|>", "<|im_end|>", "<end_of_utterance>", "<fake_token_around_image>"),
    *("<global-img>", "<|vision_start|>", "<|vision_end|>", "<image>", "<|image_pad|>", "<|video_pad|>"),
)
TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 1,
    "initializer_range": 0.2,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 4,
    "initializer_range": 0.2,
}


SPEC = Spec(
    observations={
        "image.front": Feature((16, 16, 3), "image"),
        "joints": Feature((4,)),
        "image.wrist": Feature((24, 12, 3), "image"),
        "gripper": Feature((1,)),
    },
    action=Feature((3,)),
    rate=10.0,
)


def stats(dim: int) -> Stats:
    return Stats((0.1,) * dim, (0.5,) * dim, (-1.0,) * dim, (1.0,) * dim, (-0.9,) * dim, (0.9,) * dim, 100)


STATS = {"joints": stats(4), "gripper": stats(1), "action": stats(3)}


def write_tokenizer(path: Path) -> dict[str, int]:
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys((*SPECIAL, *WORDS)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<bos>",
        additional_special_tokens=list(SPECIAL[3:]),
    ).save_pretrained(path)
    return vocabulary


def smol(ids):
    config = SmolVLMConfig(
        text_config={**TEXT, "model_type": "llama"},
        vision_config={**VISION, "image_size": 16},
        image_token_id=ids["<image>"],
    )
    return SmolVLMForConditionalGeneration(config), SmolVLMImageProcessorPil(
        size={"longest_edge": 16}, max_image_size={"longest_edge": 16}, do_image_splitting=False
    )


def idefics(ids):
    config = Idefics3Config(
        text_config={**TEXT, "model_type": "llama"},
        vision_config={**VISION, "image_size": 16},
        image_token_id=ids["<image>"],
        tie_word_embeddings=True,
    )
    return Idefics3ForConditionalGeneration(config), Idefics3ImageProcessorPil(max_image_size={"longest_edge": 16})


def pali(ids, text=None):
    config = PaliGemmaConfig(
        text_config=text or GemmaConfig(**TEXT, head_dim=8),
        vision_config=SiglipVisionConfig(**VISION, image_size=16, vision_use_head=False),
        image_token_index=ids["<image>"],
        projection_dim=32,
        hidden_size=32,
        vocab_size=64,
    )
    return PaliGemmaForConditionalGeneration(config), SiglipImageProcessorPil(
        size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def pali2(ids):
    return pali(ids, Gemma2Config(**TEXT, head_dim=8, query_pre_attn_scalar=8, sliding_window=4096))


def qwen(ids):
    vision = {key: item for key, item in VISION.items() if key not in ("num_hidden_layers", "num_attention_heads")}
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}},
        vision_config={**vision, "depth": 2, "num_heads": 2, "window_size": 16, "out_hidden_size": 32}
        | {"fullatt_block_indexes": [1]},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    return Qwen2_5_VLForConditionalGeneration(config), Qwen2VLImageProcessorPil(
        size={"shortest_edge": 64, "longest_edge": 512}, patch_size=4, merge_size=2
    )


BUILD = {"smolvlm": smol, "idefics3": idefics, "paligemma": pali, "paligemma2": pali2, "qwen2_5_vl": qwen}


def write_model(name: str, path: Path) -> Path:
    """One of BUILD: weights, tokenizer and the image processor's settings."""
    torch.manual_seed(0)
    model, processor = BUILD[name](write_tokenizer(path))
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def observe(rows: int = 3, seed: int = 0) -> Observation:
    gen = torch.Generator().manual_seed(seed)
    values = {
        key: torch.randint(0, 256, (rows, HISTORY, *item.shape), dtype=torch.uint8, generator=gen)
        if item.kind == "image"
        else torch.randn(rows, HISTORY, *item.shape, generator=gen)
        for key, item in SPEC.observations.items()
    }
    return Observation(values, TEXTS, torch.arange(rows) % 3)
