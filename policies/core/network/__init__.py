"""The denoiser networks and their settings."""

from .config import NetworkConfig
from .tokens import Prefix, TokenDenoiser
from .transformer import Denoiser, Level

__all__ = ["Denoiser", "Level", "NetworkConfig", "Prefix", "TokenDenoiser"]
