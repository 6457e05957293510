"""What a policy observes, as tokens of its width."""

from .image import ImageEncoder
from .language import Language
from .observation import EncoderConfig, ObservationEncoder
from .state import StateEncoder

__all__ = ["EncoderConfig", "ImageEncoder", "Language", "ObservationEncoder", "StateEncoder"]
