"""Hadamard transforms at the speed of a copy, correctly rounded.

>>> import torch, hadacore
>>> x = torch.randn(8, 128)
>>> y = hadacore.hadamard_transform(x)
>>> torch.allclose(hadacore.hadamard_transform(y, inverse=True), x, atol=1e-5)
True
"""

from hadacore import prologues
from hadacore.errors import BackendUnavailableError
from hadacore.functional import hadamard_transform, hadamard_transform_
from hadacore.matrices import Factorization, describe, factor, hadamard_matrix, known_orders
from hadacore.modules import HadamardTransform
from hadacore.plan import Plan, plan
from hadacore.quantization import (
    QuantizationPlan,
    QuantizedQueryKey,
    QuantizedTensor,
    RotatedLinear,
    hadamard_quantize,
    paged_slots,
    plan_quantize,
    quantize_query_key,
    static_scale,
)

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "Factorization",
    "HadamardTransform",
    "Plan",
    "QuantizationPlan",
    "QuantizedQueryKey",
    "QuantizedTensor",
    "RotatedLinear",
    "__version__",
    "describe",
    "factor",
    "hadamard_matrix",
    "hadamard_quantize",
    "hadamard_transform",
    "hadamard_transform_",
    "known_orders",
    "paged_slots",
    "plan",
    "plan_quantize",
    "prologues",
    "quantize_query_key",
    "static_scale",
]
