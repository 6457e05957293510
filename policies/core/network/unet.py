"""A U-Net along time: Diffusion Policy's other network (arXiv 2303.04137, section 3.2), the one of LeRobot's DiffusionPolicy.

Convolutions over the chunk at halving lengths; noise level and context modulate the channels of every block (FiLM,
arXiv 1709.07871). Here they meet in a sum: the modulation is linear in both, so that the context's part is computed once a
plan (`remember`) and the noise's once a level (`level`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ....spec import KinoiseError
from ..cache import FeatureCache, site
from ..process.base import Prediction
from ..random import Gen
from .config import OUT_GROUPS, NetworkConfig


class Films(NamedTuple):
    """One side's part of what modulates each block, `[1 or batch, channels]`: the noise level's or the context's."""

    blocks: tuple[Tensor, ...]


class StepEmbedding(nn.Module):
    """A noise label as DDPM's networks are told it: as a step, `label * positions - 1`, in sines and cosines, then an MLP.

    Periods are 2 pi to 2 pi 10,000 in geometric steps (arXiv 1706.03762, section 3.5). With `positions` the levels of a VP
    table that is the timestep of diffusers.
    """

    def __init__(self, width: int, positions: int) -> None:
        super().__init__()
        self.width, self.positions = width, positions
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))

    def forward(self, label: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch width"]:
        weight = cast(nn.Linear, self.layers[0]).weight
        return self.layers(sines((label * self.positions - 1).to(weight.device, torch.float32), self.width).to(weight.dtype))


def sines(steps: Float[Tensor, "*batch"], width: int) -> Float[Tensor, "*batch width"]:
    """The sines, then the cosines, of `steps` at width / 2 rates from 1 to 1 / 10,000."""
    rates = torch.exp(torch.arange(width // 2, device=steps.device) * -(math.log(10000) / (width // 2 - 1)))
    angles = steps[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)


class ConvBlock(nn.Module):
    """Two convolutions over time, each with group norm and Mish, the first one's output modulated; and a residual connection.

    Args:
        context: numbers that describe what is observed.
        embedding: numbers that describe the noise level.
    """

    def __init__(self, inputs: int, outputs: int, context: int, config: NetworkConfig) -> None:
        super().__init__()
        unet = config.unet
        self.scaled = unet.film_scale
        films = 2 * outputs if unet.film_scale else outputs
        self.first = _conv(inputs, outputs, unet.kernel, unet.groups)
        self.noise = nn.Linear(unet.embedding, films)
        self.context = nn.Linear(context, films, bias=False)
        self.second = _conv(outputs, outputs, unet.kernel, unet.groups)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv1d(inputs, outputs, 1)

    def forward(
        self, x: Float[Tensor, "batch inputs time"], film: Float[Tensor, "#batch films"]
    ) -> Float[Tensor, "batch outputs time"]:
        """What is added to `skip(x)`."""
        h, film = self.first(x), film[..., None]
        if not self.scaled:
            return self.second(h + film)
        scale, shift = film.chunk(2, 1)
        return self.second(torch.addcmul(shift, scale, h))


def _conv(inputs: int, outputs: int, kernel: int, groups: int) -> nn.Sequential:
    layer = nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2)
    return nn.Sequential(layer, nn.GroupNorm(groups, outputs), nn.Mish())


class UNet(nn.Module):
    """The network F of every process, as `Denoiser` is; it sees the context as one vector.

    Two blocks at each of `unet.widths`, each stage but the last at half the length of the one before; two at the bottom; and
    back up, where each stage sees what went down at its length. The output convolution starts at zero, so a fresh network
    returns zero.

    Args:
        action_dim: numbers in an action.
        chunk: actions that are denoised.
        steps, features: of the context, and numbers in each of them.

    Raises KinoiseError for a chunk that can't be halved so often.
    """

    def __init__(self, config: NetworkConfig, action_dim: int, chunk: int, steps: int, features: int) -> None:
        super().__init__()
        context = steps * features
        widths = list(config.unet.widths)
        factor = 2 ** (len(widths) - 1)
        if chunk % factor:
            raise KinoiseError(
                f"a U-Net of {len(widths)} stages halves its length {len(widths) - 1} times: {chunk} actions to denoise "
                f"(policy.chunk and policy.past) are no multiple of {factor}"
            )
        self.config, self.noise = config, StepEmbedding(config.unet.embedding, config.positions)
        shapes = [ends for below, above in pairwise([action_dim, *widths]) for ends in ((below, above), (above, above))]
        shapes += [(widths[-1], widths[-1])] * 2
        shapes += [ends for below, above in pairwise(widths[::-1]) for ends in ((2 * below, above), (above, above))]
        self.blocks = cast(
            Sequence[ConvBlock], nn.ModuleList(ConvBlock(below, above, context, config) for below, above in shapes)
        )
        self.down = nn.ModuleList(nn.Conv1d(width, width, 3, stride=2, padding=1) for width in widths[:-1])
        self.up = nn.ModuleList(nn.ConvTranspose1d(width, width, 4, stride=2, padding=1) for width in widths[-2::-1])
        self.out = _conv(widths[0], widths[0], config.unet.kernel, OUT_GROUPS)
        self.head = nn.Conv1d(widths[0], action_dim, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(cast(Tensor, self.head.bias))

    def forward(
        self,
        x: Float[Tensor, "batch chunk action"],
        noise: Float[Tensor, "*rows"] | Films,
        context: Float[Tensor, "batch steps features"] | Films,
        gen: Gen | None = None,
        given: None = None,
        cache: FeatureCache | None = None,
    ) -> Prediction:
        """The network's output, `[batch, chunk, action]`.

        Args:
            noise: the process's label, of each row (`[batch]`) or of all (0-d); or the `level` made of the latter.
            context: of each row; or what `remember` made of it.
            gen: not drawn from: nothing here is random.
            given: None: one vector modulates the whole chunk, so no action can be told apart.
            cache: of the plan that this evaluation is part of.
        """
        level = noise if isinstance(noise, Films) else self._level(noise.expand(len(x)))
        seen = context if isinstance(context, Films) else self.remember(context)
        films = [own + other for own, other in zip(level.blocks, seen.blocks, strict=True)]

        def block(index: int, x: Tensor) -> Tensor:
            own = self.blocks[index]
            compute = partial(own, x, films[index])
            return own.skip(x) + (compute() if cache is None else cache.residual(site(index, "convolution"), compute))

        h, index, aside = x.to(self.head.weight.dtype).transpose(1, 2), 0, []
        for stage in range(len(self.down) + 1):
            h = block(index + 1, block(index, h))
            index += 2
            if stage < len(self.down):
                aside.append(h)
                h = self.down[stage](h)
        bottom = h
        h = block(index + 1, block(index, h))
        index += 2
        for up, across in zip(self.up, [bottom, *aside[:0:-1]], strict=True):
            h = up(block(index + 1, block(index, torch.cat([h, across], 1))))
            index += 2
        return Prediction(self.head(self.out(h)).transpose(1, 2).to(x.dtype))

    def remember(self, context: Float[Tensor, "batch steps features"]) -> Films:
        """The context's part of every block's modulation, the same in all evaluations of a plan."""
        seen = F.mish(context.flatten(1))
        return Films(tuple(block.context(seen) for block in self.blocks))

    @torch.no_grad()
    def level(self, noise: Float[Tensor, ""], given: None = None) -> Films:
        """The noise level's part, the same for all rows. It goes stale when the weights change."""
        return self._level(noise[None])

    def expert_use(self, noise: Float[Tensor, "levels"]) -> Any:
        """None: there are no experts."""
        return None

    def _level(self, noise: Float[Tensor, "batch"]) -> Films:
        told = F.mish(self.noise(noise))
        return Films(tuple(block.noise(told) for block in self.blocks))
