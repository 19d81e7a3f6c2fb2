"""The Triton backend: kernels for any GPU that Triton compiles for, compiled at first use and cached by it."""

from hadacore.backends import Capabilities
from hadacore.backends.triton.configurations import LARGEST_ORDER, LARGEST_SIZE
from hadacore.backends.triton.launch import DTYPES, refusal, transform
from hadacore.backends.triton.quantize import FUSED_FORMATS, quantization_refusal, quantize
from hadacore.backends.triton.requirements import is_interpreted, support
from hadacore.elements import BY_DTYPE

CAPABILITIES = Capabilities(
    "NVIDIA GPUs, sm_80 and above; AMD and Intel GPUs", "triton 3.4 or newer", tuple(BY_DTYPE[d].name for d in DTYPES),
    LARGEST_SIZE, LARGEST_ORDER, LARGEST_SIZE, FUSED_FORMATS, "a scale for each row",
)  # fmt: skip

__all__ = ["CAPABILITIES", "is_interpreted", "quantization_refusal", "quantize", "refusal", "support", "transform"]
