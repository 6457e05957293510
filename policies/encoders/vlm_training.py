"""Which weights of a pretrained model are trained, and therefore saved."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...spec import KinoiseError
from .vlm_families import Family


def choose_trained(family: Family, lora: tuple[int, float] | None, vision: bool, frozen: torch.dtype) -> None:
    """Freezes what is pretrained, but for what is asked for.

    Trained parameters are float32 afterwards, because small steps vanish in bfloat16; frozen ones are of dtype `frozen`.

    Args:
        lora: rank and alpha of adapters in the language model, which alone are trained in it; None trains all of it.
        vision: whether vision tower and connector are trained, all of them.

    Raises:
        KinoiseError: LoRA without peft.
    """
    family.requires_grad_(False)
    if lora is None:
        family.language.requires_grad_(True)
    else:
        _add_lora(family.language, *lora)
    for part in family.vision:
        part.requires_grad_(vision)
    for item in family.parameters():
        item.data = item.data.to(torch.float32 if item.requires_grad else frozen)


def checkpoint_activations(family: Family, vision: bool) -> None:
    """Has layers in training mode compute their activations a second time, when gradients need them.

    Such layers of Hugging Face's ignore the keys and values of an earlier pass.
    """
    for part in [family.language, *family.vision[: int(vision)]]:
        part.activation_checkpointing_enable({"use_reentrant": False})


def _add_lora(model: nn.Module, rank: int, alpha: float) -> None:
    """Puts low-rank adapters (LoRA, arXiv 2106.09685) beside every linear layer of `model`. They start as zero."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise KinoiseError("vlm.lora needs peft: pip install 'kinoise[vlm]', or take vlm.lora=0 to train everything") from error
    layers = sorted({name.rpartition(".")[2] for name, item in model.named_modules() if isinstance(item, nn.Linear)})
    # A dictionary, because peft annotates alpha as a whole number and only ever divides it by the rank.
    settings: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "lora_dropout": 0.0, "target_modules": layers}
    inject_adapter_in_model(LoraConfig(**settings), model)


def leave_out_frozen(module: nn.Module) -> None:
    """From now on `module.state_dict()` lacks the parameters that are frozen now, and loading does not ask for them."""
    frozen = frozenset(name for name, item in module.named_parameters() if not item.requires_grad)
    place = {"prefix": ""}

    def save(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
        for name in frozen:
            del state[prefix + name]

    def before(_: nn.Module, __: dict[str, Any], prefix: str, *___: Any) -> None:
        place["prefix"] = prefix

    def after(_: nn.Module, problems: Any) -> None:
        expected = {place["prefix"] + name for name in frozen}
        problems.missing_keys[:] = [name for name in problems.missing_keys if name not in expected]

    module.register_state_dict_post_hook(save)
    module.register_load_state_dict_pre_hook(before)
    module.register_load_state_dict_post_hook(after)
