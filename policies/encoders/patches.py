"""Camera images as one token for each patch, by a small stack of convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import ceil

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ...spec import KinoiseError
from ..core.random import Gen, uniform

PATCHES = (4, 8, 16, 32)


class PatchEncoder(nn.Module):
    """Patches of every camera and history step, cameras outermost, each with learned vectors for its row, column and view.

    Strided convolutions instead of one linear map of raw patches: trained from scratch they learn sooner, and they see across
    the patches' borders (Xiao et al. 2021, "Early Convolutions Help Transformers See Better", arXiv 2106.14881). No running
    statistics, which an EMA would spoil.

    Args:
        sizes: height and width of each camera's images, pixels.
        history: steps, the last of them now.
        width: of the tokens.
        patch: pixels a side that a token stands for, one of PATCHES.
        shift: pixels by which training moves a whole image at random, so that the policy does not learn single pixels by heart
            (DrQ, arXiv 2004.13649); 0 for none.

    Raises KinoiseError for another patch, and for images smaller than one.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], history: int, width: int, patch: int = 16, shift: int = 4) -> None:
        super().__init__()
        if patch not in PATCHES:
            raise KinoiseError(f"encoder.patch={patch}: expected one of {', '.join(map(str, PATCHES))}")
        for height, across in sizes:
            if min(height, across) < patch:
                raise KinoiseError(f"images of {height} x {across} pixels are smaller than encoder.patch={patch}")
        self.shift, stages = shift, PATCHES.index(patch) + 2
        channels = [3, *(min(width, max(16, width // 4) << index) for index in range(stages))]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(channels):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.GroupNorm(1, outputs), nn.ReLU()]
        self.stem = nn.Sequential(*layers, nn.Conv2d(channels[-1], width, 1))
        grids = [(ceil(height / patch), ceil(across / patch)) for height, across in sizes]
        self.rows = nn.ParameterList(torch.randn(rows, 1, width) for rows, _ in grids)
        self.columns = nn.ParameterList(torch.randn(columns, width) for _, columns in grids)
        self.view = nn.Parameter(torch.randn(len(sizes), history, width))

    def forward(
        self, images: Sequence[UInt8[Tensor, "batch history _ _ 3"]], gen: Gen | None = None
    ) -> Float[Tensor, "batch tokens width"]:
        """`images` holds one tensor per camera, RGB in [0, 255]. In training `gen` draws the shifts."""
        tokens = []
        for image, rows, columns, view in zip(images, self.rows, self.columns, self.view, strict=True):
            x = image.flatten(0, 1).permute(0, 3, 1, 2).to(self.view.dtype) / 127.5 - 1
            if self.training and self.shift and gen is not None:
                x = shifted(x, image.shape[:2], self.shift, gen)
            features = self.stem(x).permute(0, 2, 3, 1) + rows + columns
            tokens.append((features.flatten(1, 2).unflatten(0, image.shape[:2]) + view[:, None]).flatten(1, 2))
        return torch.cat(tokens, 1)


def shifted(
    images: Float[Tensor, "images 3 height across"], shape: Sequence[int], most: int, gen: Gen
) -> Float[Tensor, "images 3 height across"]:
    """Each row's images moved by up to `most` pixels both ways, the same for its history; the border is repeated.

    Args:
        shape: batch and history, whose product is the number of images.
    """
    batch, history = shape
    place = (uniform((batch, 2), gen, images.device) * (2 * most + 1)).floor().long().repeat_interleave(history, 0)
    padded = F.pad(images, (most,) * 4, mode="replicate")
    height, across = images.shape[2:]
    down = place[:, :1] + torch.arange(height, device=images.device)
    right = place[:, 1:] + torch.arange(across, device=images.device)
    index = torch.arange(len(images), device=images.device)
    return padded[index[:, None, None], :, down[:, :, None], right[:, None, :]].permute(0, 3, 1, 2)
