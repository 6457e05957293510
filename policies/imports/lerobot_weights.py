"""The tensors of LeRobot's DiffusionPolicy under our names, and back.

Most are renamed. Two are rearranged: what modulates a U-Net's block is one matrix there, over [noise level, context], and two
here; its context and the columns behind the keypoints come in another order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..diffusion import DiffusionConfig
from ..encoders.image import DEPTHS
from .lerobot_config import ENVIRONMENT, STATE, Layout
from .tensors import Tensors

BLOCK = {"first.0": "conv1.block.0", "first.1": "conv1.block.1", "second.0": "conv2.block.0", "second.1": "conv2.block.1"}
BLOCK |= {"skip": "residual_conv", "noise": "cond_encoder.1", "context": "cond_encoder.1"}
RESIDUAL = {"branch.0": "conv1", "branch.1": "bn1", "branch.3": "conv2", "branch.4": "bn2"}
RESIDUAL |= {"skip.0": "downsample.0", "skip.1": "downsample.1"}
GRID = "pool.pos_grid"
"""A buffer of theirs that follows from the images' size."""


class Names:
    """Our modules' names and theirs, of one network."""

    def __init__(self, config: DiffusionConfig, found: Layout) -> None:
        self.unet, self.vector, self.found, self.history = config.network.unet, config.vector, found, config.history
        self.encoders = min(1, len(found.cameras)) if self.vector.shared_cameras else len(found.cameras)
        self.modules = {**dict(self._network()), **dict(self._cameras())}
        self.order, self.points = self._order(), torch.arange(2 * self.vector.keypoints).view(-1, 2).T.flatten()

    def _network(self) -> Iterator[tuple[str, str]]:
        theirs, stages = "diffusion.unet", len(self.unet.widths)
        yield "network.noise.layers.0", f"{theirs}.diffusion_step_encoder.1"
        yield "network.noise.layers.2", f"{theirs}.diffusion_step_encoder.3"
        blocks = [f"down_modules.{i}.{j}" for i in range(stages) for j in (0, 1)] + ["mid_modules.0", "mid_modules.1"]
        blocks += [f"up_modules.{i}.{j}" for i in range(stages - 1) for j in (0, 1)]
        for index, block in enumerate(blocks):
            for ours, their in BLOCK.items():
                yield f"network.blocks.{index}.{ours}", f"{theirs}.{block}.{their}"
        for i in range(stages - 1):
            yield f"network.down.{i}", f"{theirs}.down_modules.{i}.2"
            yield f"network.up.{i}", f"{theirs}.up_modules.{i}.2"
        for ours, their in (("out.0", "0.block.0"), ("out.1", "0.block.1"), ("head", "1")):
            yield f"network.{ours}", f"{theirs}.final_conv.{their}"

    def _cameras(self) -> Iterator[tuple[str, str]]:
        for index in range(self.encoders):
            ours, theirs = f"observe.images.{index}.network", self.encoder(index)
            yield f"{ours}.stem.0", f"{theirs}.backbone.0"
            yield f"{ours}.stem.1", f"{theirs}.backbone.1"
            places = [(stage, i) for stage, depth in enumerate(DEPTHS[self.vector.backbone]) for i in range(depth)]
            for block, (stage, i) in enumerate(places):
                for own, their in RESIDUAL.items():
                    yield f"{ours}.blocks.{block}.{own}", f"{theirs}.backbone.{4 + stage}.{i}.{their}"
            yield f"{ours}.pool.maps", f"{theirs}.pool.nets"
            yield f"{ours}.out", f"{theirs}.out"

    def encoder(self, index: int) -> str:
        """Their name of a camera's network."""
        return "diffusion.rgb_encoder" if self.vector.shared_cameras else f"diffusion.rgb_encoder.{index}"

    def _order(self) -> Tensor:
        """Their place of each number of our context: they have a step's environment after its cameras."""
        widths = {name: self.found.features[name][0] for name in self.found.states}
        widths |= dict.fromkeys(self.found.cameras, 2 * self.vector.keypoints)
        start, places = 0, {}
        for name in (STATE, *self.found.cameras, ENVIRONMENT):
            if name in widths:
                places[name] = torch.arange(start, start + widths[name])
                start += widths[name]
        step = torch.cat([places[name] for name in (*self.found.states, *self.found.cameras)])
        return torch.cat([step + start * index for index in range(self.history)])

    def theirs(self, name: str) -> str:
        """Their name of a tensor of ours."""
        module, _, tensor = name.rpartition(".")
        return f"{self.modules[module]}.{tensor}"


def ours(found: Tensors, expected: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Our tensors, `expected` by name and shape, out of theirs. `Tensors.finish` says what was wrong."""
    split, result = names.unet.embedding, {}
    for name, like in expected.items():
        kind, theirs = _kind(name), names.theirs(name)
        if kind in ("noise", "context"):
            films, width = like.shape[0], split + len(names.order)
            whole = found.get(theirs, like.new_empty(films, width))
            result[name] = whole[:, :split] if kind == "noise" else whole[:, split:][:, names.order]
        else:
            item = found.get(theirs, like)
            result[name] = item[:, names.points] if kind == "points" else item
    return {name: item.contiguous() for name, item in result.items()}


def theirs(weights: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Their tensors out of ours, without `GRID`, which the caller knows."""
    result = {}
    for name, item in weights.items():
        kind = _kind(name)
        if kind == "context":
            continue
        if kind == "noise":
            context = weights[name.replace(".noise.", ".context.")]
            item = torch.cat([item, torch.empty_like(context).index_copy_(1, names.order, context)], 1)
        elif kind == "points":
            item = torch.empty_like(item).index_copy_(1, names.points, item)
        result[names.theirs(name)] = item.contiguous()
    return result


def _kind(name: str) -> str:
    """What has to be done with a tensor besides renaming."""
    if name.startswith("network.blocks.") and name.endswith((".noise.weight", ".context.weight")):
        return name.rsplit(".", 2)[1]
    return "points" if name.startswith("observe.images.") and name.endswith(".network.out.weight") else ""


def grid(rows: int, columns: int) -> Tensor:
    """`GRID` of a feature map of this size."""
    down, across = torch.linspace(-1, 1, rows, dtype=torch.float64), torch.linspace(-1, 1, columns, dtype=torch.float64)
    return torch.stack([across.repeat(rows), down.repeat_interleave(columns)], 1).float()
