"""Decoded copies of data sets in other formats, which training maps into memory."""

from .copies import mapped
from .kept import measured

__all__ = ["mapped", "measured"]
