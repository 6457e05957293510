"""What a policy observes, as tokens of its width or as one vector."""

from .film import FilmConfig, FilmEncoder
from .image import ImageEncoder
from .language import Language
from .observation import EncoderConfig, ObservationEncoder
from .state import StateEncoder
from .vector import VectorConfig, VectorEncoder

__all__ = [
    "EncoderConfig",
    "FilmConfig",
    "FilmEncoder",
    "ImageEncoder",
    "Language",
    "ObservationEncoder",
    "StateEncoder",
    "VectorConfig",
    "VectorEncoder",
]
