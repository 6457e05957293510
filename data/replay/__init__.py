"""diffusion_policy's zarr stores (its ReplayBuffer): folders and zip files, zarr v2 and v3."""

from .reader import ReplayStore

__all__ = ["ReplayStore"]
