"""kinoise: decoding robot actions by diffusion. Importing it loads neither torch nor a simulator."""

__version__ = "0.1.0"
