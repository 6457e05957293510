"""A whole observation as one vector a step: states and pictures' keypoints, what Diffusion Policy's networks are told.

The layout of Diffusion Policy (arXiv 2303.04137, section 3.2) as LeRobot's DiffusionPolicy has it: each step's states, then
each camera's keypoints, through a ResNet with spatial softmax, a linear map and ReLU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn

from ...spec import KinoiseError, Observation, Spec, Stats
from .image import NORMS, ResNet
from .language import Language
from .observation import check_observation

EPSILON = 1e-8
"""Added to standard deviations, as LeRobot does."""

BACKBONES = ("resnet18", "resnet34")
SCALINGS = ("minmax", "meanstd", "quantile", "none")
SMALLEST = 33
"""Pixels a side: ResNets divide sizes by 32, and a map of one place fires at that place whatever it sees."""


@dataclass
class VectorConfig:
    """How an observation becomes vectors. Raises KinoiseError for a name it does not know, or sizes that do not fit."""

    state: str = field(default="minmax", metadata={"help": f"scaling of states: {', '.join(SCALINGS)}"})
    states: dict[str, str] = field(default_factory=dict, metadata={"help": "scaling of single ones, by their key"})
    image: str = field(default="meanstd", metadata={"help": "scaling of images by channel, alike; none: to [0, 1]"})
    resize: list[int] | None = field(default=None, metadata={"help": "height and width that images are brought to first"})
    crop: list[int] | None = field(default=None, metadata={"help": "height and width of their middle that is looked at"})
    backbone: str = field(default="resnet18", metadata={"help": f"one of {', '.join(BACKBONES)}"})
    norm: str = field(default="group", metadata={"help": "of the backbone: group, or batch for weights that came with it"})
    shared_cameras: bool = field(default=False, metadata={"help": "one image network for all cameras"})
    language: bool = field(default=True, metadata={"help": "tell the network the instruction, if there is one"})
    keypoints: int = field(default=32, metadata={"help": "places that a camera's image is reduced to"})

    def __post_init__(self) -> None:
        for name, value in [("state", self.state), ("image", self.image), *self.states.items()]:
            if value not in SCALINGS:
                raise KinoiseError(f"vector: scaling {value} of {name}: expected one of {', '.join(SCALINGS)}")
        for name, known in (("backbone", BACKBONES), ("norm", NORMS)):
            if getattr(self, name) not in known:
                raise KinoiseError(f"vector.{name}={getattr(self, name)}: expected one of {', '.join(known)}")
        for name in ("resize", "crop"):
            size = getattr(self, name)
            if size is not None and (len(size) != 2 or min(size) < 1):
                raise KinoiseError(f"vector.{name}={size}: expected a height and a width in pixels, or null")
        if self.keypoints < 1:
            raise KinoiseError(f"vector.keypoints={self.keypoints}: expected at least 1")

    def seen(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that the backbone sees of images of this size. Raises KinoiseError where a crop is larger."""
        size = (height, width) if self.resize is None else (self.resize[0], self.resize[1])
        if self.crop is None:
            return size
        if self.crop[0] > size[0] or self.crop[1] > size[1]:
            raise KinoiseError(f"vector.crop={self.crop} is larger than the images of {size[0]} x {size[1]} pixels")
        return self.crop[0], self.crop[1]


class Scaling(nn.Module):
    """z = (x - low) factor + start in each dimension: to [-1, 1] by minmax and quantile, where what never changes is -1.

    As LeRobot scales, so that its weights see the numbers that they were trained on; but a constant stays -1 (or 0, by
    meanstd) whatever comes, where LeRobot would divide its deviation by 1e-8. The numbers are buffers outside the state
    dict, as a codec's are.
    """

    low: Tensor
    factor: Tensor

    def __init__(self, stats: Stats, mode: str, size: float = 1.0) -> None:
        """Args: `size`: that a number of one has in the units of `stats` (255 for images, which are scaled as in [0, 1])."""
        super().__init__()
        low, span = _span(stats, mode, size)
        factor = torch.where(span > 0, (1 if mode in ("meanstd", "none") else 2) / span, 0)
        self.start = 0.0 if mode in ("meanstd", "none") else -1.0
        self.register_buffer("low", low.float(), persistent=False)
        self.register_buffer("factor", factor.float(), persistent=False)

    def forward(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        return (x - self.low) * self.factor + self.start


def _span(stats: Stats, mode: str, size: float) -> tuple[Float64[Tensor, "d"], Float64[Tensor, "d"]]:
    """Where zero or -1 is, and how far it is to one or 1."""
    mean, std, low, high, q01, q99 = (
        torch.tensor(item, dtype=torch.float64) for item in (stats.mean, stats.std, stats.min, stats.max, stats.q01, stats.q99)
    )
    if mode == "meanstd":
        return mean, torch.where(std > 0, std + EPSILON * size, 0)
    if mode == "none":
        return torch.zeros_like(mean), torch.full_like(mean, size)
    return (q01, q99 - q01) if mode == "quantile" else (low, high - low)


class Camera(nn.Module):
    """One image network: crops, a ResNet with spatial softmax, a linear map and ReLU."""

    def __init__(self, config: VectorConfig) -> None:
        super().__init__()
        self.config = config
        points = config.keypoints
        self.network = ResNet(2 * points, None, "softmax", points, config.backbone, config.norm)

    def forward(self, images: Float[Tensor, "images 3 height columns"]) -> Float[Tensor, "images features"]:
        if self.config.resize is not None:
            images = F.interpolate(images, tuple(self.config.resize), mode="bilinear", antialias=True, align_corners=False)
        if self.config.crop is not None:
            (height, across), (rows, columns) = images.shape[2:], self.config.crop
            top, left = round((height - rows) / 2), round((across - columns) / 2)
            images = images[..., top : top + rows, left : left + columns]
        return F.relu(self.network.see(images, None))


class VectorEncoder(nn.Module):
    """A vector for each step: its states in their order, each camera's features, and the instruction, if there is one.

    Args:
        spec: with the observations to use.
        stats: of every one of them.
        texts: the training data's instructions.
        history: steps, the last of them now.
        width: of the instruction's vector.

    Attributes:
        features: numbers in a step's vector.

    Raises KinoiseError for images too small for the image network, and for a scaling of a state that isn't there.
    """

    def __init__(
        self,
        config: VectorConfig,
        spec: Spec,
        stats: Mapping[str, Stats],
        texts: tuple[str, ...],
        history: int,
        width: int,
    ) -> None:
        super().__init__()
        self.observed, self.history = spec.observations, history
        self.keys = [key for key, item in self.observed.items() if item.kind == "state"]
        self.cameras = [key for key, item in self.observed.items() if item.kind == "image"]
        unknown = sorted(config.states.keys() - set(self.keys))
        if unknown:
            raise KinoiseError(f"vector.states={unknown}: the policy's states are {self.keys}")
        for key in self.cameras:
            if min(config.seen(*self.observed[key].shape[:2])) < SMALLEST:
                raise KinoiseError(f"'{key}': a ResNet needs at least {SMALLEST} pixels a side; take larger images")
        self.language = Language(texts, width) if spec.language and config.language else None
        # Module names may hold no dots, which keys like "image.corner" do: these go by position.
        self.scalings = nn.ModuleList(Scaling(stats[key], config.states.get(key, config.state)) for key in self.keys)
        self.channels = nn.ModuleList(Scaling(stats[key], config.image, 255.0) for key in self.cameras)
        count = min(1, len(self.cameras)) if config.shared_cameras else len(self.cameras)
        self.images = nn.ModuleList(Camera(config) for _ in range(count))
        own = sum(self.observed[key].shape[0] for key in self.keys) + 2 * config.keypoints * len(self.cameras)
        self.features = own + (0 if self.language is None else width)

    def forward(
        self, obs: Observation, dropped: Bool[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch history features"]:
        """See `ObservationEncoder.forward`."""
        return self.tokens(*self.read(obs, dropped))

    def read(
        self, obs: Observation, dropped: Bool[Tensor, "batch"] | None = None
    ) -> tuple[list[Tensor], list[Tensor], Float[Tensor, "batch width"] | None]:
        """See `ObservationEncoder.read`."""
        check_observation(obs, self.observed, self.history, self.language is not None)
        condition = None
        if self.language is not None:
            assert obs.text is not None
            condition = self.language(obs.texts, obs.text, None if dropped is None else ~dropped)
        device = cast(Scaling, [*self.scalings, *self.channels][0]).low.device
        states, images = ([obs.values[key].to(device) for key in keys] for keys in (self.keys, self.cameras))
        return states, images, condition

    def tokens(
        self, states: list[Tensor], images: list[Tensor], condition: Float[Tensor, "batch width"] | None
    ) -> Float[Tensor, "batch history features"]:
        """The rest of it: tensors to vectors."""
        found = [scaling(state) for state, scaling in zip(states, self.scalings, strict=True)]
        networks = list(self.images) * (len(images) // max(1, len(self.images)))
        for image, scaling, network in zip(images, self.channels, networks, strict=True):
            pictures = scaling(image.flatten(0, 1).float()).permute(0, 3, 1, 2)
            found.append(network(pictures).unflatten(0, image.shape[:2]))
        if condition is not None:
            found.append(condition[:, None].expand(-1, self.history, -1))
        return torch.cat([item.float() for item in found], -1)
