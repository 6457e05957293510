"""Pictures changed at random in training, whole batches at once, so that a policy does not learn pixels and light by heart."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from ..config import UsageError
from ..policies.core.random import Gen, move, uniform
from ..spec import Batch, Spec

LUMA = (0.299, 0.587, 0.114)
"""Of red, green and blue in what the eye takes for grey: ITU-R BT.601."""
YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
"""RGB to luma and two axes of colour, in whose plane a hue is an angle: NTSC 1953."""


@dataclass
class AugmentConfig:
    """What each picture is changed by. 0 everywhere is no change at all."""

    shift: int = field(default=0, metadata={"help": "pixels a picture moves by at most, both ways; its border is repeated"})
    brightness: float = field(default=0.0, metadata={"help": "share by which it gets lighter or darker at most"})
    contrast: float = field(default=0.0, metadata={"help": "share by which contrast grows or falls at most"})
    saturation: float = field(default=0.0, metadata={"help": "share by which colours grow stronger or paler at most"})
    hue: float = field(default=0.0, metadata={"help": "turns of the colour circle at most, 0.5 is any colour"})

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise UsageError(f"train.augment.shift={self.shift}: expected pixels, at least 0")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"train.augment.{name}={getattr(self, name)}: expected from 0 to 1")
        if not 0 <= self.hue <= 0.5:
            raise UsageError(f"train.augment.hue={self.hue}: expected from 0 to 0.5 turns")

    @property
    def colour(self) -> bool:
        return any((self.brightness, self.contrast, self.saturation, self.hue))


def check_augment(config: AugmentConfig, spec: Spec) -> None:
    """Raises UsageError where the data have no pictures to change, or one that `shift` would push out of view."""
    if not config.shift and not config.colour:
        return
    sizes = {key: item.shape[:2] for key, item in spec.observations.items() if item.kind == "image"}
    if not sizes:
        raise UsageError(f"train.augment changes pictures, the data have only {', '.join(spec.observations)}: leave it out")
    small = [f"'{key}' {height} x {across}" for key, (height, across) in sizes.items() if config.shift >= min(height, across)]
    if small:
        raise UsageError(
            f"train.augment.shift={config.shift}: expected less pixels than pictures have on a side, and {', '.join(small)}"
        )


def augment(batch: Batch, config: AugmentConfig, gen: Gen) -> Batch:
    """`batch` with its pictures changed: each row and camera by numbers of its own, its history alike. All else is untouched.

    Args:
        gen: draws as much whatever the pictures' size; nothing where `config` changes nothing.
    """
    if not config.shift and not config.colour:
        return batch
    values = dict(batch.observation.values)
    for key, item in values.items():
        if item.dtype != torch.uint8:
            continue
        if config.shift:
            offset = (uniform((len(item), 2), gen) * (2 * config.shift + 1)).long() - config.shift
            item = shifted(item, move(offset, item.device))
        if config.colour:
            item = coloured(item, uniform((len(item), 4), gen) * 2 - 1, config)
        values[key] = item
    return replace(batch, observation=replace(batch.observation, values=values))


def shifted(
    images: UInt8[Tensor, "batch history height across 3"], offset: Int64[Tensor, "batch 2"]
) -> UInt8[Tensor, "batch history height across 3"]:
    """Pixel (y, x) of row i becomes what was at (y, x) + offset[i], or on the border nearest to it (DrQ, arXiv 2004.13649)."""
    batch, history, height, across, _ = images.shape
    index = torch.arange(batch * history, device=images.device)[:, None]
    offset = offset.repeat_interleave(history, 0)
    rows = (torch.arange(height, device=images.device) + offset[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(across, device=images.device) + offset[:, 1:]).clamp(0, across - 1)
    pixels = ((index * height + rows)[:, :, None] * across + columns[:, None, :]).flatten()
    return images.reshape(-1, 3).index_select(0, pixels).view_as(images)


def coloured(
    images: UInt8[Tensor, "batch history height across 3"], draws: Float[Tensor, "batch 4"], config: AugmentConfig
) -> UInt8[Tensor, "batch history height across 3"]:
    """Brightness, contrast, saturation and hue changed by `draws`, in [-1, 1], of what `config` allows, in this order.

    Each is linear in the colours, so that all four are one matrix a row, and nothing is cut off at black or white but in the
    end. Contrast is about the mean grey of the row's pictures; a hue turns in the plane of equal luma.

    Args:
        draws: on the CPU, where the few numbers of a row are reckoned.
    """
    strength = torch.tensor([config.brightness, config.contrast, config.saturation, config.hue])
    light, contrast, saturation, hue = (draws * strength)[:, :, None, None].unbind(1)
    luma = torch.tensor(LUMA)[:, None]
    saturated = torch.eye(3) * (1 + saturation) - luma * saturation
    matrix = saturated @ _turn(hue * (2 * torch.pi)) * ((1 + light) * (1 + contrast))
    towards = -contrast * (1 + light) * luma
    pixels = images.flatten(1, 3).float()
    grey = pixels.mean(1, keepdim=True) @ move(towards, images.device)
    return torch.baddbmm(grey, pixels, move(matrix, images.device)).round_().clamp_(0, 255).to(torch.uint8).view_as(images)


def _turn(angle: Float[Tensor, "batch 1 1"]) -> Float[Tensor, "batch 3 3"]:
    """What a pixel, a row of RGB, is multiplied by for its hue to turn by `angle` and for grey to stay."""
    to = torch.tensor(YIQ)
    to[1:] -= to[1:].mean(1, keepdim=True)  # the table is rounded: without this grey would get a colour
    plane = torch.diag(torch.tensor([0.0, 1.0, 1.0]))
    quarter = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    turn = torch.eye(3) - plane + plane * angle.cos() + quarter * angle.sin()
    return (torch.linalg.inv(to) @ turn @ to).transpose(1, 2)
