"""Policies as ONNX graphs: what is exported, what lies beside it, and what plans with it where there is no torch model."""

from .export import export_policy
from .runner import OnnxPolicy, load_onnx

__all__ = ["OnnxPolicy", "export_policy", "load_onnx"]
