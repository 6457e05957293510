"""The denoiser networks and their settings."""

from .config import NetworkConfig
from .tokens import Prefix, TokenDenoiser
from .transformer import Denoiser, Given, Level, Memory

__all__ = ["Denoiser", "Given", "Level", "Memory", "NetworkConfig", "Prefix", "TokenDenoiser"]
