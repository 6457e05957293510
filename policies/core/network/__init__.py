"""The denoiser networks and their settings."""

from .config import NetworkConfig
from .decoder import Decoder
from .mode import ModeTransformer
from .tokens import Prefix, TokenDenoiser
from .transformer import Denoiser, Given, Level, Memory
from .unet import Films, UNet

__all__ = [
    "Decoder",
    "Denoiser",
    "Films",
    "Given",
    "Level",
    "Memory",
    "ModeTransformer",
    "NetworkConfig",
    "Prefix",
    "TokenDenoiser",
    "UNet",
]
