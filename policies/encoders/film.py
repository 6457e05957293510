"""What MoDE's release observes: cameras through ResNets that the instruction modulates, and the instruction itself.

The layout of github.com/intuitive-robots/MoDE_Diffusion_Policy (arXiv 2412.12953, section 4): an instruction is the vector that
CLIP's text encoder makes of it, which is one token, and modulates (FiLM, arXiv 1709.07871) a ResNet for each camera, whose
averaged features are one token each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from ...spec import KinoiseError, Observation, Spec, Stats
from .image import CHANNELS, DEPTHS, STAGES, ResidualBlock, ResNet
from .observation import check_observation

BACKBONES = ("resnet18", "resnet34", "resnet50")
WIDE = 4
"""Times as many channels leave a stage of ResNet-50 as are inside it."""
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of a picture's channels in [0, 1]: CLIP's, which MoDE scales by."""


@dataclass
class FilmConfig:
    """How MoDE's release observes. Raises KinoiseError for a name it does not know, or numbers that do not fit."""

    backbone: str = field(default="resnet50", metadata={"help": f"one of {', '.join(BACKBONES)}"})
    condition: int = field(default=512, metadata={"help": "numbers in an instruction's vector, CLIP's"})
    sizes: list[int] = field(default_factory=lambda: [224, 224], metadata={"help": "each camera's shorter side, pixels"})
    mean: list[float] = field(default_factory=lambda: list(MEAN), metadata={"help": "of channels in [0, 1], subtracted"})
    deviation: list[float] = field(default_factory=lambda: list(DEVIATION), metadata={"help": "of them, divided by"})
    flip: bool = field(default=False, metadata={"help": "turn images upside down: it was trained on OpenGL's, as LIBERO's"})

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES:
            raise KinoiseError(f"film.backbone={self.backbone}: expected one of {', '.join(BACKBONES)}")
        if self.condition < 1 or not self.sizes or min(self.sizes) < 1:
            raise KinoiseError(f"film.condition={self.condition}, sizes={self.sizes}: expected positive numbers")
        if len(self.mean) != 3 or len(self.deviation) != 3 or not min(self.deviation) > 0:
            raise KinoiseError(f"film.mean={self.mean}, deviation={self.deviation}: expected three each, deviations above 0")


class Bottleneck(nn.Module):
    """ResNet-50's block (arXiv 1512.03385, figure 5), its stride in the 3x3 convolution; without a FiLM of its own."""

    def __init__(self, inputs: int, inside: int, stride: int) -> None:
        super().__init__()
        outputs, parts = WIDE * inside, []
        for (before, after), size, step in zip(
            pairwise((inputs, inside, inside, outputs)), (1, 3, 1), (1, stride, 1), strict=True
        ):
            parts += [nn.Conv2d(before, after, size, step, size // 2, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.branch = nn.Sequential(*parts[:-1])
        skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        self.skip = nn.Identity() if inputs == outputs and stride == 1 else nn.Sequential(*skip)

    def forward(self, x: Tensor, film: None = None) -> Tensor:
        return F.relu(self.skip(x) + self.branch(x))


class StagedResNet(nn.Module):
    """ResNet-34 or -50 with batch norm and a FiLM behind each of the four stages; the mean over places of what comes out."""

    def __init__(self, backbone: str, condition: int) -> None:
        super().__init__()
        wide = backbone == "resnet50"
        self.stem = nn.Sequential(
            nn.Conv2d(3, STAGES[0], 7, 2, 3, bias=False), nn.BatchNorm2d(STAGES[0]), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        self.stages, self.films = nn.ModuleList(), nn.ModuleList()
        before = STAGES[0]
        for inside, depth in zip(STAGES, DEPTHS["resnet34"], strict=True):  # ResNet-50 has as many blocks in each stage
            blocks = nn.ModuleList()
            for number in range(depth):
                stride = 2 if number == 0 and inside > STAGES[0] else 1
                blocks.append(Bottleneck(before, inside, stride) if wide else ResidualBlock(before, inside, stride, "batch"))
                before = WIDE * inside if wide else inside
            self.stages.append(blocks)
            self.films.append(nn.Linear(condition, 2 * before))
        self.features = before

    def see(
        self, x: Float[Tensor, "images 3 height columns"], condition: Float[Tensor, "images condition"]
    ) -> Float[Tensor, "images features"]:
        """Of images that are scaled already: (1 + scale) x + shift behind each stage."""
        x = self.stem(x)
        for blocks, film in zip(self.stages, self.films, strict=True):
            for block in cast(nn.ModuleList, blocks):
                x = block(x, None)
            scale, shift = film(condition)[..., None, None].chunk(2, dim=1)
            x = torch.addcmul(x + shift, x, scale)
        return x.mean((2, 3))


class FilmResNet18(nn.Module):
    """ResNet-18 with batch norm, a FiLM on every block's branch, and a linear map behind the mean over places."""

    def __init__(self, condition: int) -> None:
        super().__init__()
        self.network, self.features = ResNet(CHANNELS, condition, "average", norm="batch"), CHANNELS

    def see(
        self, x: Float[Tensor, "images 3 height columns"], condition: Float[Tensor, "images condition"]
    ) -> Float[Tensor, "images features"]:
        """Of images that are scaled already."""
        return self.network.see(x, F.silu(condition))


class Texts(nn.Module):
    """Instructions' vectors, a table that comes with the weights: what made them is not here.

    Args:
        texts: the instructions, all different.
        size: numbers in a vector.
    """

    table: Tensor

    def __init__(self, texts: tuple[str, ...], size: int) -> None:
        super().__init__()
        self._index = {text: index for index, text in enumerate(texts)}
        if not texts or len(self._index) < len(texts):
            raise KinoiseError(f"a language-conditioned policy needs instructions, all different; there are {list(texts)}")
        self.register_buffer("table", torch.zeros(len(texts), size))

    def forward(self, texts: tuple[str, ...], text: Int[Tensor, "batch"]) -> Float[Tensor, "batch size"]:
        """The vector of `texts[text[i]]` for each row i.

        Raises KinoiseError for a text without one, and where there are none yet.
        """
        unknown = [item for item in dict.fromkeys(texts) if item not in self._index]
        if unknown:
            raise KinoiseError(
                f"{unknown} have no vector: the policy knows {list(self._index)}, those of the data that it was imported "
                "with. Import it again with data that have them, data=, and CLIP, clip="
            )
        if not self.table.any():
            raise KinoiseError("no instruction has a vector yet: this network's weights come by kinoise import from=mode")
        places = torch.tensor([self._index[item] for item in texts], device=self.table.device)
        return self.table.index_select(0, places).index_select(0, text.to(self.table.device))


class FilmEncoder(nn.Module):
    """Tokens of `width`: the instruction's, then one for each camera.

    The instruction's token and those of the cameras have a learned place each, as in the release, where all cameras share one.
    With the instruction hidden the first token is its place alone; the cameras see as ever.

    Args:
        spec: with the observations to use, images alone.
        stats: not used; scaling is the settings'.
        texts: instructions.
        history: steps, one.
        width: of the tokens.

    Raises KinoiseError for states, another number of cameras than `sizes`, a history, and a spec without language.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, config: FilmConfig, spec: Spec, stats: Mapping[str, Stats], texts: tuple[str, ...], history: int, width: int
    ) -> None:
        super().__init__()
        self.config, self.observed = config, spec.observations
        self.cameras = list(spec.observations)
        states = [key for key, item in spec.observations.items() if item.kind != "image"]
        if states or len(self.cameras) != len(config.sizes):
            raise KinoiseError(f"film.sizes={config.sizes}: expected as many cameras and nothing else, got {self.cameras}")
        if history != 1 or not spec.language:
            raise KinoiseError(f"history={history}, language={spec.language}: MoDE's release sees one step and an instruction")
        self.texts = Texts(texts, config.condition)
        networks = (
            FilmResNet18(config.condition) if config.backbone == "resnet18" else StagedResNet(config.backbone, config.condition)
            for _ in self.cameras
        )
        self.images = nn.ModuleList(networks)
        features = cast(StagedResNet, self.images[0]).features
        self.goal, self.seen = nn.Linear(config.condition, width, bias=False), nn.Linear(features, width, bias=False)
        self.place = nn.Parameter(0.02 * torch.randn(2, width))
        for name in ("mean", "deviation"):
            self.register_buffer(name, torch.tensor(getattr(config, name))[:, None, None], persistent=False)

    def forward(self, obs: Observation, dropped: Bool[Tensor, "batch"] | None = None) -> Float[Tensor, "batch tokens width"]:
        """See `ObservationEncoder.forward`."""
        return self.tokens(*self.read(obs, dropped))

    def read(
        self, obs: Observation, dropped: Bool[Tensor, "batch"] | None = None
    ) -> tuple[list[UInt8[Tensor, "batch 1 _ _ 3"]], Float[Tensor, "batch condition"], Float[Tensor, "batch condition"]]:
        """What takes a look at an observation's content: images, the instruction's vector, and that as a token may know it."""
        check_observation(obs, self.observed, 1, True)
        assert obs.text is not None
        vector = self.texts(obs.texts, obs.text)
        told = vector if dropped is None else vector.masked_fill(dropped.to(vector.device)[:, None], 0.0)
        return [obs.values[key].to(vector.device) for key in self.cameras], vector, told

    def tokens(
        self,
        images: list[UInt8[Tensor, "batch 1 _ _ 3"]],
        vector: Float[Tensor, "batch condition"],
        told: Float[Tensor, "batch condition"],
    ) -> Float[Tensor, "batch tokens width"]:
        """The rest of it: tensors to tokens."""
        found = [self.goal(told) + self.place[0]]
        for image, size, network in zip(images, self.config.sizes, self.images, strict=True):
            pictures = self.pictures(image[:, 0], size)
            found.append(self.seen(cast(StagedResNet, network).see(pictures, vector)) + self.place[1])
        return torch.stack(found, 1)

    def pictures(self, images: UInt8[Tensor, "images height columns 3"], size: int) -> Float[Tensor, "images 3 _ _"]:
        """What the networks see: the shorter side `size` pixels long, in whole numbers of 255 as the release has it, scaled."""
        x = images.permute(0, 3, 1, 2).to(self.mean)
        if self.config.flip:
            x = x.flip(2)
        height, across = x.shape[2:]
        if min(height, across) != size:
            shape = (size, int(size * across / height)) if height <= across else (int(size * height / across), size)
            x = F.interpolate(x, shape, mode="bilinear", antialias=True, align_corners=False).round()
        return (x / 255 - self.mean) / self.deviation
