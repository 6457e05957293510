"""Several data sets as one, described by a YAML file: weights, names that are mapped, numbers that are made alike."""

from .store import Mixture

__all__ = ["Mixture"]
