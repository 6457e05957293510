"""What a denoiser is made of, as settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ....spec import KinoiseError

NAMES = {
    "kind": ("transformer", "unet", "decoder", "mode"),
    "context": ("prefix", "cross"),
    "noise_embedding": ("linear", "sinusoidal"),
    "activation": ("swiglu", "gelu"),
    "routing": ("noise", "token", "dense"),
    "moe_residual": ("input", "normalised"),
}


OUT_GROUPS = 8
"""Of the group norm before a U-Net's output."""


def _option(default: Any, about: str) -> Any:
    return field(default=default, metadata={"help": about})


@dataclass
class UNetConfig:
    """The U-Net's shape. Raises KinoiseError for numbers that do not fit together."""

    widths: list[int] = field(default_factory=lambda: [128, 256, 512], metadata={"help": "channels of each stage, two or more"})
    kernel: int = _option(5, "actions that a convolution sees; odd")
    groups: int = _option(8, "of the group norms; every width is a multiple")
    embedding: int = _option(128, "numbers that the noise level becomes; even")
    film_scale: bool = _option(True, "noise level and context scale the channels, and do not only shift them")

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or min(self.groups, *self.widths) < 1 or any(width % self.groups for width in self.widths):
            raise KinoiseError(
                f"network.unet.widths={self.widths}, groups={self.groups}: expected two widths at least, multiples of groups"
            )
        if self.widths[0] % OUT_GROUPS:
            raise KinoiseError(f"network.unet.widths={self.widths}: expected the first to be a multiple of {OUT_GROUPS}")
        if self.kernel < 1 or self.kernel % 2 == 0 or self.embedding < 4 or self.embedding % 2:
            raise KinoiseError(
                f"network.unet.kernel={self.kernel}, embedding={self.embedding}: "
                "expected an odd kernel, and an even embedding of at least 4"
            )


@dataclass
class NetworkConfig:
    """The network's shape, how the noise level enters it, and its experts. Settings of other kinds are ignored.

    Raises KinoiseError for a name it does not know, or numbers that do not fit together.
    """

    kind: str = _option(
        "transformer", "transformer; unet: convolutions over time; decoder: DP-T's transformer; mode: MoDE's, as released"
    )
    width: int = _option(128, "numbers in a token; a multiple of 2 * heads")
    depth: int = _option(4, "blocks")
    heads: int = _option(4, "attention heads")
    ff: float = _option(4.0, "hidden size of a feed-forward, or of one expert, in widths")
    context: str = _option("prefix", "prefix: context tokens before the actions; cross: cross-attention to them")
    noise_token: bool = _option(False, "the noise level as a token of the context")
    noise_attention: bool = _option(False, "MoDE: the noise level added to what self-attention sees")
    adaptive_norm: bool = _option(True, "DiT: scales, shifts and gates from the noise level")
    noise_embedding: str = _option("sinusoidal", "linear (MoDE) or sinusoidal")
    causal: bool = _option(False, "no token attends to a later one")
    qk_norm: bool = _option(True, "RMS norm of queries and keys")
    dropout: float = _option(0.0, "share of each residual branch that training drops")
    activation: str = _option("swiglu", "swiglu or gelu")
    experts: int = _option(1, "feed-forwards in a block; 1 is no mixture")
    top_k: int = _option(1, "experts that a row goes to")
    routing: str = _option("noise", "noise: by noise level; token: by each token; dense: all experts, weighted by noise level")
    balance: float = _option(0.01, "weight of the load-balancing loss")
    moe_residual: str = _option("input", "what the feed-forward is added to: the block's input, or normalised (MoDE's release)")
    positions: int = _option(100, "unet, decoder: steps that the noise level is told in, a VP table's levels")
    encoder_depth: int = _option(0, "decoder: layers of self-attention that the context goes through; 0 is an MLP instead")
    unet: UNetConfig = field(default_factory=UNetConfig)

    def __post_init__(self) -> None:
        for name, known in NAMES.items():
            if getattr(self, name) not in known:
                raise KinoiseError(f"network.{name}={getattr(self, name)}: expected one of {', '.join(known)}")
        if min(self.width, self.depth, self.heads) < 1 or self.width % (2 * self.heads):
            raise KinoiseError(
                f"network.width={self.width}, depth={self.depth}, heads={self.heads}: "
                "expected positive numbers, and a width that is a multiple of 2 * heads"
            )
        if not 1 <= self.top_k <= self.experts:
            raise KinoiseError(f"network.top_k={self.top_k}: expected between 1 and network.experts={self.experts}")
        if not 1 <= self.ff * self.width < math.inf:
            raise KinoiseError(f"network.ff={self.ff}: expected at least {1 / self.width}, one hidden number")
        if self.positions < 1 or self.encoder_depth < 0:
            raise KinoiseError(
                f"network.positions={self.positions}, encoder_depth={self.encoder_depth}: expected at least 1, and at least 0"
            )
        if not 0 <= self.dropout < 1:
            raise KinoiseError(f"network.dropout={self.dropout}: expected at least 0 and less than 1")
        if not 0 <= self.balance < math.inf:
            raise KinoiseError(f"network.balance={self.balance}: expected at least 0")

    @property
    def hidden(self) -> int:
        return int(self.ff * self.width)

    @property
    def branches(self) -> int:
        """Residual branches in a block: self-attention, cross-attention if any, feed-forward."""
        return 3 if self.context == "cross" else 2

    @property
    def routed(self) -> bool:
        """Whether the noise level alone decides about experts."""
        return self.experts > 1 and self.routing != "token"

    @property
    def chosen(self) -> int:
        """Experts that a row goes to."""
        return self.experts if self.routing == "dense" else self.top_k
