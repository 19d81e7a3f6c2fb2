"""Rotation and quantization in one operator. The rules are in ``docs/quantization.md``."""

from hadacore.quantization.functional import hadamard_quantize, static_scale
from hadacore.quantization.result import QuantizedTensor

__all__ = ["QuantizedTensor", "hadamard_quantize", "static_scale"]
