"""The denoiser networks and their settings."""

from .config import NetworkConfig
from .tokens import Prefix, TokenDenoiser
from .transformer import Denoiser, Given, Level

__all__ = ["Denoiser", "Given", "Level", "NetworkConfig", "Prefix", "TokenDenoiser"]
