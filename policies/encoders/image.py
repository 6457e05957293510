"""Camera images as tokens: a ResNet that the instruction modulates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ...spec import KinoiseError

STAGES, CHANNELS, POINTS = (64, 128, 256, 512), 512, 64
GROUP = 16
"""Channels that are normalised together."""
DEPTHS = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
"""Blocks of each stage."""
POOLS = ("softmax", "average")


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def _group(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // GROUP, channels)


NORMS: dict[str, Callable[[int], nn.Module]] = {"group": _group, "batch": nn.BatchNorm2d}


def block_shapes(backbone: str, channels: int = STAGES[0]) -> list[tuple[int, int, int]]:
    """Inputs, outputs and stride of each residual block, the first stage of which has so many channels."""
    found, inputs = [], channels
    for stage, depth in zip(STAGES, DEPTHS[backbone], strict=True):
        outputs = stage * channels // STAGES[0]
        for index in range(depth):
            found.append((inputs, outputs, 2 if index == 0 and outputs > channels else 1))
            inputs = outputs
    return found


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a FiLM (arXiv 1709.07871) on the branch before it is added.

    The last norm's scale starts at zero, so a fresh block passes its input on (arXiv 1706.02677, section 5.1).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str = "group") -> None:
        super().__init__()
        last = NORMS[norm](outputs)
        nn.init.zeros_(cast(Tensor, last.weight))
        first = (_conv(inputs, outputs, 3, stride), NORMS[norm](outputs), nn.ReLU())
        self.branch = nn.Sequential(*first, _conv(outputs, outputs, 3), last)
        same = inputs == outputs and stride == 1
        self.skip = nn.Identity() if same else nn.Sequential(_conv(inputs, outputs, 1, stride), NORMS[norm](outputs))

    def forward(self, x: Tensor, film: Tensor | None) -> Tensor:
        branch = self.branch(x)
        if film is not None:
            scale, shift = film[..., None, None].chunk(2, dim=1)
            branch = torch.addcmul(branch + shift, branch, scale)
        return F.relu(self.skip(x) + branch)


class SpatialSoftmax(nn.Module):
    """Feature maps to the places they fire at (arXiv 1504.00702): `2 * points` coordinates in [-1, 1], x then y."""

    def __init__(self, channels: int, points: int) -> None:
        super().__init__()
        self.maps = nn.Conv2d(channels, points, 1)

    def forward(self, x: Float[Tensor, "images channels rows columns"]) -> Float[Tensor, "images coordinates"]:
        weights = self.maps(x).flatten(2).softmax(-1).unflatten(-1, x.shape[2:])
        across, down = (torch.linspace(-1, 1, size, device=x.device, dtype=weights.dtype) for size in (x.shape[3], x.shape[2]))
        return torch.cat([weights.sum(2) @ across, weights.sum(3) @ down], -1)


class ResNet(nn.Module):
    """A ResNet (arXiv 1512.03385) with group norm instead of batch norm, whose running statistics an EMA would spoil.

    With the paper's 64 `channels` in the first stage or others, and twice as many in each further one. As in diffusion_policy
    (arXiv 2303.04137) there is a spatial softmax at its end, which keeps the places of things; `average` is the classifier's
    global mean, which drops them. MoDE's FiLM on every block carries the instruction; it starts as the identity.
    """

    def __init__(
        self,
        width: int,
        condition: int | None,
        pool: str,
        points: int = POINTS,
        backbone: str = "resnet18",
        norm: str = "group",
        channels: int = STAGES[0],
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, channels, 7, 2), NORMS[norm](channels), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        shapes = block_shapes(backbone, channels)
        self.blocks = nn.ModuleList(ResidualBlock(*shape, norm) for shape in shapes)
        self.sizes = [2 * outputs for _, outputs, _ in shapes]
        self.film = None if condition is None else nn.Linear(condition, sum(self.sizes))
        if self.film is not None:
            nn.init.zeros_(self.film.weight)
            nn.init.zeros_(self.film.bias)
        last = shapes[-1][1]
        if pool == "softmax":
            self.pool, features = SpatialSoftmax(last, points), 2 * points
        else:
            self.pool, features = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), last
        self.out = nn.Linear(features, width)

    def forward(
        self, images: UInt8[Tensor, "images height columns 3"], condition: Float[Tensor, "images condition"] | None
    ) -> Float[Tensor, "images width"]:
        # Height, width, channels in memory is torch's channels_last, the faster layout for convolutions.
        return self.see(images.permute(0, 3, 1, 2).to(self.out.weight.dtype) / 127.5 - 1, condition)

    def see(
        self, x: Float[Tensor, "images 3 height columns"], condition: Float[Tensor, "images condition"] | None
    ) -> Float[Tensor, "images width"]:
        """Of images that are scaled already."""
        x = self.stem(x)
        films = [None] * len(self.blocks) if self.film is None else self.film(condition).split(self.sizes, dim=-1)
        for block, film in zip(self.blocks, films, strict=True):
            x = block(x, film)
        return self.out(self.pool(x))


class ImageEncoder(nn.Module):
    """One token for each camera and history step, cameras outermost, with a learned vector for each place.

    Args:
        cameras: how many; they may differ in size.
        history: steps, the last of them now.
        width: of the tokens.
        condition: size of the vector that modulates the features (the instruction's); None for none.
        shared: one network for all cameras instead of one each.
        pool: `softmax` keeps where things are (the default), `average` does not.
        backbone: one of DEPTHS.
        channels: of its first stage, a multiple of GROUP.

    Raises KinoiseError for an unknown pool.
    """

    def __init__(
        self,
        cameras: int,
        history: int,
        width: int,
        condition: int | None = None,
        shared: bool = False,
        pool: str = "softmax",
        backbone: str = "resnet18",
        channels: int = STAGES[0],
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            raise KinoiseError(f"pool={pool}: expected one of {', '.join(POOLS)}")
        self.networks = nn.ModuleList(
            ResNet(width, condition, pool, backbone=backbone, channels=channels) for _ in range(1 if shared else cameras)
        )
        self.place = nn.Parameter(torch.randn(cameras, history, width))

    def forward(
        self,
        images: Sequence[UInt8[Tensor, "batch history _ _ 3"]],
        condition: Float[Tensor, "batch condition"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """`images` holds one tensor per camera, RGB in [0, 255]."""
        cameras, history, _ = self.place.shape
        condition = None if condition is None else condition.repeat_interleave(history, 0)
        networks = list(self.networks) * (cameras // len(self.networks))
        tokens = [network(image.flatten(0, 1), condition) for network, image in zip(networks, images, strict=True)]
        return torch.cat([token.unflatten(0, (-1, history)) for token in tokens], 1) + self.place.flatten(0, 1)
