"""Which weights of a pretrained model are trained, and therefore saved."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...spec import KinoiseError
from .vlm_families import Family

FROZEN = "frozen_weights"
"""Key of their fingerprint in a state dict."""


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
        raise KinoiseError("vlm.lora needs peft: pip install -c constraints.txt -e '.[vlm]', or take vlm.lora=0") from error
    layers = sorted({name.rpartition(".")[2] for name, item in model.named_modules() if isinstance(item, nn.Linear)})
    # A dictionary, because peft annotates alpha as a whole number and only ever divides it by the rank.
    settings: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "lora_dropout": 0.0, "target_modules": layers}
    inject_adapter_in_model(LoraConfig(**settings), model)


def leave_out_frozen(module: nn.Module) -> None:
    """From now on `module.state_dict()` lacks the parameters that are frozen now, and loading does not ask for them.

    In their place stands a fingerprint. Loading raises KinoiseError where it is another: the trained weights would be laid over
    another model.
    """
    frozen = frozenset(name for name, item in module.named_parameters() if not item.requires_grad)
    place = {"prefix": ""}
    own = _fingerprint([item for _, item in sorted(module.named_parameters()) if not item.requires_grad])

    def save(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
        for name in frozen:
            del state[prefix + name]
        if frozen:
            state[prefix + FROZEN] = own

    def before(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
        place["prefix"] = prefix
        found = state.pop(prefix + FROZEN, None)
        # A model in bf16 and the same in float32 differ by rounding.
        if frozen and (found is None or found.shape != own.shape or not torch.allclose(found.cpu().float(), own, rtol=0.02)):
            raise KinoiseError(
                "these weights were trained on another vision-language model than the one at vlm.path: put that one there"
            )

    def after(_: nn.Module, problems: Any) -> None:
        expected = {place["prefix"] + name for name in frozen}
        problems.missing_keys[:] = [name for name in problems.missing_keys if name not in expected]

    module.register_state_dict_post_hook(save)
    module.register_load_state_dict_pre_hook(before)
    module.register_load_state_dict_post_hook(after)


def _fingerprint(weights: list[nn.Parameter]) -> Tensor:
    """A number for each tensor, from some 256 of its places: enough to tell two models apart, and read in no time."""
    sums = [item.detach().flatten()[:: max(1, item.numel() // 256)].float().abs().sum() for item in weights]
    return torch.stack(sums).cpu() if sums else torch.zeros(0)
