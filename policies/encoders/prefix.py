"""A whole observation as the tokens that come before the actions': vision, language, state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ...spec import KinoiseError, Observation, Spec, Stats
from ..core.codec import CODECS, Affine
from ..core.random import Gen
from .observation import check_observation
from .patches import PATCHES, PatchEncoder
from .state import state_encoder, state_scaling
from .words import LONGEST, Words


@dataclass
class PrefixConfig:
    """How observations become tokens. Raises KinoiseError for what it does not know."""

    state: str = field(default="meanstd", metadata={"help": "scaling of state: meanstd, minmax or quantile"})
    patch: int = field(default=16, metadata={"help": "pixels a side of an image that become a token: 4, 8, 16 or 32"})
    shift: int = field(default=4, metadata={"help": "pixels by which training moves images at random; 0 for none"})
    words: int = field(default=48, metadata={"help": "tokens that an instruction may have"})

    def __post_init__(self) -> None:
        if self.state not in CODECS:
            raise KinoiseError(f"encoder.state={self.state}: expected one of {', '.join(CODECS)}")
        if self.patch not in PATCHES:
            raise KinoiseError(f"encoder.patch={self.patch}: expected one of {', '.join(map(str, PATCHES))}")
        if self.shift < 0 or not 1 <= self.words <= LONGEST:
            raise KinoiseError(f"encoder.shift={self.shift}, words={self.words}: expected at least 0, and from 1 to {LONGEST}")


class PrefixEncoder(nn.Module):
    """Tokens of `width`: one for each patch of each camera and step, for each word, for each state key and step (for each
    object, where it is a list of them).

    Trained from scratch but for the sentence encoder, which is frozen.

    Args:
        spec: with the observations to use.
        stats: of every state in it.
        texts: the training data's instructions.
        history: steps, the last of them now.
    """

    def __init__(
        self, config: PrefixConfig, spec: Spec, stats: Mapping[str, Stats], texts: tuple[str, ...], history: int, width: int
    ) -> None:
        super().__init__()
        states = {key: item for key, item in spec.observations.items() if item.kind == "state"}
        images = {key: item for key, item in spec.observations.items() if item.kind == "image"}
        self.keys, self.cameras, self.history, self.features = list(states), list(images), history, spec.observations
        sizes = [(item.shape[0], item.shape[1]) for item in images.values()]
        self.patches = PatchEncoder(sizes, history, width, config.patch, config.shift) if images else None
        self.words = Words(texts, width, config.words) if spec.language else None
        self.codecs = nn.ModuleList(state_scaling(item, stats[key], config.state) for key, item in states.items())
        self.states = nn.ModuleList(state_encoder(item, history, width) for item in states.values())

    def forward(
        self, obs: Observation, dropped: Bool[Tensor, "batch"] | None = None, gen: Gen | None = None
    ) -> tuple[Float[Tensor, "batch tokens width"], Bool[Tensor, "batch tokens"] | None]:
        """The tokens, and which of them are there; None for all of them.

        Args:
            dropped: rows whose instruction is hidden (goal dropout, the unconditional half of guidance).
            gen: draws the images' shifts in training.

        Raises:
            KinoiseError: a missing key, a history of another length, or no instruction where one is needed.
        """
        check_observation(obs, self.features, self.history, self.words is not None)
        tokens: list[Tensor] = []
        there: list[Tensor | None] = []
        if self.patches is not None:
            device = self.patches.view.device
            tokens.append(self.patches([obs.values[key].to(device) for key in self.cameras], gen))
            there.append(None)
        if self.words is not None:
            assert obs.text is not None
            words, known = self.words(obs.texts, obs.text, None if dropped is None else ~dropped)
            tokens.append(words)
            there.append(None if len(obs.texts) == 1 and dropped is None else known)  # one text is as long as itself
        for key, codec, encoder in zip(self.keys, self.codecs, self.states, strict=True):
            codec = cast(Affine, codec)
            tokens.append(encoder(codec.encode(obs.values[key].to(codec.centre.device))))
            there.append(None)
        return torch.cat(tokens, 1), _mask(tokens, there)


def _mask(tokens: list[Tensor], there: list[Tensor | None]) -> Bool[Tensor, "batch tokens"] | None:
    if all(item is None for item in there):
        return None
    full = [
        torch.ones(part.shape[:2], dtype=torch.bool, device=part.device) if item is None else item
        for part, item in zip(tokens, there, strict=True)
    ]
    return torch.cat(full, 1)
