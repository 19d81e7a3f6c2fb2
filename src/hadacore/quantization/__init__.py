"""Rotation and quantization in one operator. The rules are in ``docs/quantization.md``."""

from hadacore.quantization.functional import hadamard_quantize, static_scale
from hadacore.quantization.linear import RotatedLinear
from hadacore.quantization.paged_cache import paged_slots
from hadacore.quantization.plan import QuantizationPlan, plan_quantize
from hadacore.quantization.query_key import QuantizedQueryKey, quantize_query_key
from hadacore.quantization.result import QuantizedTensor

__all__ = [
    "QuantizationPlan",
    "QuantizedQueryKey",
    "QuantizedTensor",
    "RotatedLinear",
    "hadamard_quantize",
    "paged_slots",
    "plan_quantize",
    "quantize_query_key",
    "static_scale",
]
