"""The denoiser network and its settings."""

from .config import NetworkConfig
from .transformer import Denoiser, Level

__all__ = ["Denoiser", "Level", "NetworkConfig"]
