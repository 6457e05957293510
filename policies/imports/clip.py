"""Instructions as CLIP's vectors (Radford et al. 2021, arXiv 2103.00020), by a model that lies on this disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...files import MALFORMED
from ...spec import KinoiseError

WEIGHTS = "model.safetensors"
LONGEST = 77
"""Tokens that CLIP reads, its marks for start and end among them."""


@torch.no_grad()
def clip_vectors(folder: Path, texts: Sequence[str], size: int) -> Float[Tensor, "texts size"]:
    """The text encoder's projected vectors, not normalised, in float32.

    Args:
        folder: a CLIP model as transformers writes it, with its tokenizer: config.json, model.safetensors, vocab.json and
            merges.txt, or tokenizer.json. Nothing is downloaded, and nothing else is read, pickles least of all.
        size: numbers in a vector, as the policy has them.

    Raises KinoiseError for a folder without such a model, one of another size, and texts that are too long for it.
    """
    missing = [name for name in ("config.json", WEIGHTS) if not (folder / name).is_file()]
    # Without its files transformers makes a tokenizer that knows no word, and says nothing.
    if not (folder / "tokenizer.json").is_file():
        missing += [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
    if missing:
        raise KinoiseError(
            f"clip={folder}: {' and '.join(missing)} are missing. Expected a CLIP model as transformers writes it, such as "
            "openai/clip-vit-base-patch32 with its weights as safetensors"
        )
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    said_before = logging.get_verbosity()
    logging.set_verbosity_error()  # a whole CLIP's eyes are not asked for, of which it would warn
    try:
        value = json.loads((folder / "config.json").read_text())
        if value.get("model_type") not in ("clip", "clip_text_model"):
            raise KinoiseError(f"clip={folder}: its model_type is {value.get('model_type')!r}, expected clip")
        tokenizer: Any = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        loaded: Any = CLIPTextModelWithProjection.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except KinoiseError:
        raise
    except (OSError, RuntimeError, *MALFORMED) as error:
        said = " ".join(str(error).split())[:200]
        raise KinoiseError(f"clip={folder}: no CLIP model can be read there ({type(error).__name__}: {said})") from error
    finally:
        logging.set_verbosity(said_before)
    model, loading = loaded
    # transformers draws what a file lacks at random.
    absent = sorted(name for name in loading["missing_keys"] if not name.endswith("position_ids"))
    if absent:
        raise KinoiseError(f"clip={folder}: its weights lack {', '.join(absent[:4])}: expected those of a whole text encoder")
    found, end = model.text_projection.out_features, model.config.eos_token_id
    if found != size:
        raise KinoiseError(
            f"clip={folder}: its vectors have {found} numbers, the policy's {size}: take the CLIP that it was trained with"
        )
    # A text's vector is looked up where its last token is; 2 is how older files say that this is the largest.
    if tokenizer.eos_token_id != model.config.vocab_size - 1 or end not in (2, tokenizer.eos_token_id):
        raise KinoiseError(
            f"clip={folder}: its tokenizer ends texts with {tokenizer.eos_token_id}, its model with {end} of "
            f"{model.config.vocab_size} tokens: they don't belong together"
        )
    model = model.float().eval()
    vectors = []
    for text in texts:
        tokens = tokenizer(text, return_tensors="pt")
        if tokens["input_ids"].shape[1] > LONGEST:
            raise KinoiseError(f"CLIP reads {LONGEST} tokens at most, and {text!r} has more: shorten the instruction")
        vectors.append(model(**tokens).text_embeds)
    return torch.cat(vectors)
