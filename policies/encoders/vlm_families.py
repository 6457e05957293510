"""What is particular to each family of pretrained vision-language models: images, prompts and positions."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from ...spec import KinoiseError

# PIL's number of the bilinear filter. Other filters become bicubic: torch before 2.13 has no Lanczos, the nearest to it.
BILINEAR = 2


class Prompt(NamedTuple):
    """One instruction with its images' places, as tokens.

    Args:
        ids: of the tokenizer.
        images: which of them stand for a vector of an image.
        positions: for the rotary embedding, one row for each of the family's axes.
    """

    ids: Int[Tensor, "tokens"]
    images: Bool[Tensor, "tokens"]
    positions: Int[Tensor, "axes tokens"]


class Family(nn.Module, ABC):
    """A pretrained model without its output head, with what is needed to feed it.

    Args:
        model: the inner model: vision tower, connector, language model.
        tokenizer, processor: Hugging Face's; of the image processor only the settings are used, because its fast variant needs
            torchvision and the other one works image by image outside torch.
        shapes: height and width of every image of an observation, in the prompt's order.
    """

    names: tuple[str, ...] = ()
    """The language model's attribute, then those of the vision tower and the connector."""
    axes = 1
    first = 0
    """Position of the first token."""
    two_way = False
    """Whether the tokens of a prompt see each other both ways, or only what is before them."""

    def __init__(self, model: Any, tokenizer: Any, processor: Any, shapes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.model, self.tokenizer, self.processor = model, tokenizer, processor
        self.grids = [self.grid(*shape) for shape in shapes]
        self._prompts: dict[str, Prompt] = {}

    @property
    def language(self) -> Any:
        return getattr(self.model, self.names[0])

    @property
    def vision(self) -> list[Any]:
        return [getattr(self.model, name) for name in self.names[1:]]

    @abstractmethod
    def size(self, height: int, width: int) -> tuple[int, int]:
        """What an image of this height and width is resized to."""

    @abstractmethod
    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the vectors that an image of this height and width becomes."""

    @abstractmethod
    def write(self, images: Sequence[int], text: str) -> str:
        """The prompt in the form that the family was trained on, with `images[i]` placeholders for image i."""

    @abstractmethod
    def look(self, pixels: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images tokens hidden"]:
        """Vision tower and connector."""

    def positions(self, images: Bool[Tensor, "tokens"]) -> Int[Tensor, "axes tokens"]:
        return torch.arange(len(images))[None] + self.first

    def encode(self, images: UInt8[Tensor, "images height width 3"]) -> Float[Tensor, "images tokens hidden"]:
        """RGB in [0, 255] through the image processor's steps, then the vision tower."""
        pixels = images.permute(0, 3, 1, 2).float()
        target = self.size(*images.shape[1:3])
        if target != tuple(images.shape[1:3]):
            mode = "bilinear" if self.processor.resample == BILINEAR else "bicubic"
            # Rounded to whole levels, as PIL and torchvision leave them.
            pixels = F.interpolate(pixels, target, mode=mode, antialias=True).clamp(0, 255).round()
        mean, std = (
            torch.tensor(item, device=pixels.device)[:, None, None]
            for item in (self.processor.image_mean, self.processor.image_std)
        )
        return self.look((pixels / 255 - mean) / std)

    def prompt(self, text: str) -> Prompt:
        """Raises KinoiseError where the tokenizer does not know the family's image token."""
        if text not in self._prompts:
            counts = [rows * columns for rows, columns in self.grids]
            ids = torch.tensor(self.tokenizer(self.write(counts, text), add_special_tokens=False)["input_ids"])
            images = ids == self.model.config.image_token_id
            if int(images.sum()) != sum(counts):
                raise KinoiseError(
                    f"the prompt for '{text}' needs {sum(counts)} image tokens, the tokenizer made {int(images.sum())}: "
                    f"it lacks the token of {self.model.config.model_type}, or the instruction spells it. "
                    "Take the tokenizer that belongs to the model, or another instruction."
                )
            self._prompts[text] = Prompt(ids, images, self.positions(images))
        return self._prompts[text]


class SmolVlm(Family):
    """SmolVLM and Idefics3 (arXiv 2504.05299, 2408.12637).

    Images are not split into tiles, which would multiply their tokens by up to 17: a robot's cameras are small, and SmolVLA
    (arXiv 2506.01844) does without too.
    """

    names = ("text_model", "vision_model", "connector")

    def size(self, height: int, width: int) -> tuple[int, int]:
        edge = self.processor.max_image_size["longest_edge"]
        return edge, edge

    def grid(self, height: int, width: int) -> tuple[int, int]:
        config = self.model.config
        rows, columns = (edge // config.vision_config.patch_size // config.scale_factor for edge in self.size(height, width))
        return rows, columns

    def write(self, images: Sequence[int], text: str) -> str:
        shown = "".join(
            f"<fake_token_around_image><global-img>{'<image>' * count}<fake_token_around_image>" for count in images
        )
        return f"<|im_start|>User:{shown or ' '}{text}<end_of_utterance>\nAssistant:"

    def look(self, pixels: Tensor) -> Tensor:
        vision, connector = self.vision
        return connector(vision(pixel_values=pixels).last_hidden_state)


class PaliGemma(Family):
    """PaliGemma 1 and 2 (arXiv 2407.07726, 2412.03555). Its prompt is a prefix that sees itself both ways."""

    names = ("language_model", "vision_tower", "multi_modal_projector")
    first = 1
    two_way = True

    def size(self, height: int, width: int) -> tuple[int, int]:
        return self.processor.size["height"], self.processor.size["width"]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        rows, columns = (edge // self.model.config.vision_config.patch_size for edge in self.size(height, width))
        return rows, columns

    def write(self, images: Sequence[int], text: str) -> str:
        return f"{'<image>' * sum(images)}{self.tokenizer.bos_token}{text}\n"

    def look(self, pixels: Tensor) -> Tensor:
        vision, connector = self.vision
        return connector(vision(pixels).last_hidden_state)


class QwenVl(Family):
    """Qwen2.5-VL (arXiv 2502.13923): images of any size, and positions with the axes time, row and column."""

    names = ("language_model", "visual")
    axes = 3

    @property
    def cell(self) -> int:
        """Pixels along an edge of what becomes one vector."""
        config = self.model.config.vision_config
        return config.patch_size * config.spatial_merge_size

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Multiples of `cell` near the image's own size, scaled into the processor's bounds on the number of pixels."""
        cell, least, most = self.cell, self.processor.size["shortest_edge"], self.processor.size["longest_edge"]
        rows, columns = round(height / cell) * cell, round(width / cell) * cell
        if rows * columns > most:
            shrink = math.sqrt(height * width / most)
            rows, columns = (max(cell, math.floor(edge / shrink / cell) * cell) for edge in (height, width))
        elif rows * columns < least:
            grow = math.sqrt(least / (height * width))
            rows, columns = (math.ceil(edge * grow / cell) * cell for edge in (height, width))
        return rows, columns

    def grid(self, height: int, width: int) -> tuple[int, int]:
        rows, columns = self.size(height, width)
        return rows // self.cell, columns // self.cell

    def write(self, images: Sequence[int], text: str) -> str:
        shown = "".join(f"<|vision_start|>{'<|image_pad|>' * count}<|vision_end|>" for count in images)
        return (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            f"<|im_start|>user\n{shown}{text}<|im_end|>\n<|im_start|>assistant\n"
        )

    def look(self, pixels: Tensor) -> Tensor:
        """The tower takes a list of patches in which those that are merged into one vector stand together."""
        config = self.model.config.vision_config
        patch, merge = config.patch_size, config.spatial_merge_size
        count, (rows, columns) = len(pixels), (edge // patch for edge in pixels.shape[2:])
        patches = pixels.reshape(count, 3, rows // merge, merge, patch, columns // merge, merge, patch)
        patches = patches.permute(0, 2, 5, 3, 6, 1, 4, 7)
        # A still image is a film of the same frame over and over.
        patches = patches[:, :, :, :, :, :, None].expand(*[-1] * 6, config.temporal_patch_size, -1, -1)
        grid = torch.tensor([[1, rows, columns]] * count, device=pixels.device)
        seen = self.vision[0](patches.reshape(count * rows * columns, -1), grid_thw=grid).pooler_output
        return seen.unflatten(0, (count, -1))

    def positions(self, images: Bool[Tensor, "tokens"]) -> Int[Tensor, "3 tokens"]:
        """Text counts on along all axes; an image stands at one time, and the text after it goes on past its longer edge."""
        parts, grids, at, now = [], iter(self.grids), 0, 0
        while at < len(images):
            rows, columns = next(grids) if images[at] else (1, 1)
            zero = torch.zeros(1, dtype=torch.long)
            part = torch.cartesian_prod(zero, torch.arange(rows), torch.arange(columns)).T + now
            parts.append(part)
            at, now = at + part.shape[1], now + max(rows, columns)
        return torch.cat(parts, 1)


FAMILIES: dict[str, type[Family]] = {"smolvlm": SmolVlm, "idefics3": SmolVlm, "paligemma": PaliGemma, "qwen2_5_vl": QwenVl}
"""By Hugging Face's `model_type`."""


def load_family(path: str, shapes: Sequence[tuple[int, int]], dtype: torch.dtype) -> tuple[Family, Tensor, Tensor]:
    """The model in `dtype` and eval mode, and the tables of its input and output embeddings (one tensor where it ties them).

    Args:
        path: a local directory, or a name on the Hugging Face hub. Weights are read from safetensors, code never.

    Raises:
        KinoiseError: nothing there, another kind of model, or parts of it missing.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    if not Path(path).exists() and not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path):
        raise KinoiseError(
            f"{path}: no vision-language model there. Give the directory that holds it, or its name on the Hugging Face hub; "
            "a checkpoint does not contain it, so it has to be where the settings say."
        )
    with _part(path, "a model's config.json"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if config.model_type not in FAMILIES:
        raise KinoiseError(
            f"{path} is of type '{config.model_type}', which is not a vision-language model known here: {', '.join(FAMILIES)}"
        )
    text = config.get_text_config()
    # Randomness comes from explicit generators; Gemma 2 limits its attention scores, which fused kernels do not.
    text.attention_dropout = 0.0
    attention = "eager" if getattr(text, "attn_logit_softcapping", None) else "sdpa"
    with _part(path, "the model's weights as safetensors"):
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    whole, report = loaded
    lacking = [*report["missing_keys"], *report["mismatched_keys"]]
    if lacking:
        raise KinoiseError(f"{path}: {len(lacking)} weights are missing or of another shape, such as {lacking[0]}")
    with _part(path, "a tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    with _part(path, "an image processor's settings"):
        processor = AutoImageProcessor.from_pretrained(path, backend="pil", trust_remote_code=False)
    tables = whole.get_input_embeddings().weight, whole.get_output_embeddings().weight
    return FAMILIES[config.model_type](whole.eval().model, tokenizer, processor, shapes), *tables


@contextmanager
def _part(path: str, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # safetensors, Hugging Face's config classes and tokenizers each have errors of their own
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise KinoiseError(f"{path}: {what} could not be loaded ({why}). Give a local directory or a hub name.") from error
