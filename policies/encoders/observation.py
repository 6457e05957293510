"""A whole observation as context tokens: the instruction, then state, then images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ...spec import Feature, KinoiseError, Observation, Spec, Stats
from ..core.codec import CODECS, Affine
from .image import DEPTHS, GROUP, POOLS, STAGES, ImageEncoder
from .language import Language
from .state import state_encoder, state_scaling


@dataclass
class EncoderConfig:
    """How observations become tokens. Raises KinoiseError for a name it does not know."""

    state: str = field(default="meanstd", metadata={"help": "scaling of state: meanstd, minmax or quantile"})
    shared_cameras: bool = field(default=False, metadata={"help": "one image network for all cameras"})
    pool: str = field(default="softmax", metadata={"help": "end of the image network: softmax or average"})
    backbone: str = field(default="resnet18", metadata={"help": f"the image network: {', '.join(DEPTHS)}"})
    channels: int = field(default=STAGES[0], metadata={"help": f"of its first stage, a multiple of {GROUP}: fewer are faster"})

    def __post_init__(self) -> None:
        for name, known in {"state": CODECS, "pool": POOLS, "backbone": DEPTHS}.items():
            if getattr(self, name) not in known:
                raise KinoiseError(f"encoder.{name}={getattr(self, name)}: expected one of {', '.join(known)}")
        if self.channels < GROUP or self.channels % GROUP:
            raise KinoiseError(f"encoder.channels={self.channels}: expected a multiple of {GROUP}, at least {GROUP}")


class ObservationEncoder(nn.Module):
    """Tokens of `width`: one for the instruction, one per state key (per object of a list) and step, one per camera and step.

    Args:
        spec: with the observations to use.
        stats: of every state in it.
        texts: the training data's instructions.
        history: steps, the last of them now.

    Raises KinoiseError for images too small for the image network.
    """

    def __init__(
        self, config: EncoderConfig, spec: Spec, stats: Mapping[str, Stats], texts: tuple[str, ...], history: int, width: int
    ) -> None:
        super().__init__()
        states = {key: item for key, item in spec.observations.items() if item.kind == "state"}
        self.cameras = [key for key, item in spec.observations.items() if item.kind == "image"]
        self.history, self.features = history, spec.observations
        self.language = Language(texts, width) if spec.language else None
        # Module names may hold no dots, which keys like "image.corner" do: these two go by position.
        self.keys = list(states)
        self.codecs = nn.ModuleList(state_scaling(item, stats[key], config.state) for key, item in states.items())
        self.states = nn.ModuleList(state_encoder(item, history, width) for item in states.values())
        self.images = None
        small = [key for key in self.cameras if min(spec.observations[key].shape[:2]) <= 32]
        if small and config.pool == "softmax":
            # A ResNet divides sizes by 32: a map of one place fires at that place whatever it sees.
            raise KinoiseError(
                f"{small}: images of at most 32 pixels leave nothing to see; take larger ones, or encoder.pool=average"
            )
        if self.cameras:
            condition = width if spec.language else None
            network = config.shared_cameras, config.pool, config.backbone, config.channels
            self.images = ImageEncoder(len(self.cameras), history, width, condition, *network)

    def forward(self, obs: Observation, dropped: Bool[Tensor, "batch"] | None = None) -> Float[Tensor, "batch tokens width"]:
        """Args:
            dropped: rows whose instruction is hidden (goal dropout, the unconditional half of guidance).

        Raises:
            KinoiseError: a missing key, a history of another length, or no instruction where one is needed.
        """
        return self.tokens(*self.read(obs, dropped))

    def read(
        self, obs: Observation, dropped: Bool[Tensor, "batch"] | None = None
    ) -> tuple[list[Tensor], list[Tensor], Float[Tensor, "batch width"] | None]:
        """What takes a look at an observation's content: states and images on their device, the instruction's vector."""
        check_observation(obs, self.features, self.history, self.language is not None)
        condition = None
        if self.language is not None:
            assert obs.text is not None
            condition = self.language(obs.texts, obs.text, None if dropped is None else ~dropped)
        states = [obs.values[key].to(codec.centre.device) for key, codec in zip(self.keys, self._codecs(), strict=True)]
        images = [] if self.images is None else [obs.values[key].to(self.images.place.device) for key in self.cameras]
        return states, images, condition

    def tokens(
        self, states: list[Tensor], images: list[Tensor], condition: Float[Tensor, "batch width"] | None
    ) -> Float[Tensor, "batch tokens width"]:
        """The rest of it: tensors to tokens."""
        found = [] if condition is None else [condition[:, None]]
        for state, codec, encoder in zip(states, self._codecs(), self.states, strict=True):
            found.append(encoder(codec.encode(state)))
        if self.images is not None:
            found.append(self.images(images, condition))
        return torch.cat(found, 1)

    def _codecs(self) -> list[Affine]:
        return [cast(Affine, codec) for codec in self.codecs]


def check_observation(obs: Observation, features: Mapping[str, Feature], history: int, language: bool) -> None:
    """Raises KinoiseError for what is missing or of another shape or type, NaN, and no instruction where one is needed."""
    for key, feature in features.items():
        if key not in obs.values:
            raise KinoiseError(f"the observation lacks '{key}'; it has {sorted(obs.values)}")
        value = obs.values[key]
        if value.ndim < 2 or value.shape[1] != history:
            found = value.shape[1] if value.ndim > 1 else "no"
            raise KinoiseError(f"'{key}' has {found} steps of history; the policy needs {history}")
        if tuple(value.shape[2:]) != feature.shape or (value.dtype == torch.uint8) != (feature.kind == "image"):
            raise KinoiseError(
                f"'{key}' is {value.dtype} of {tuple(value.shape[2:])}; the policy needs {feature.dtype} of {feature.shape}"
            )
        if value.is_floating_point() and value.device.type == "cpu" and not _traced() and not value.isfinite().all():
            raise KinoiseError(f"'{key}' holds NaN or infinity: a policy can't plan on it")
    if language and (obs.text is None or not obs.texts):
        raise KinoiseError("the policy needs an instruction with every observation: give Observation.texts and .text")


def _traced() -> bool:
    """Whether torch.export is looking at the code, when tensors have no values."""
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
