"""robomimic's HDF5 files, LIBERO's and MimicGen's among them: read and written, without importing robomimic."""

from .reader import RobomimicStore

__all__ = ["RobomimicStore"]
