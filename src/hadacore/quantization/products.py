"""The GEMMs of :class:`hadacore.RotatedLinear`: products of two quantized matrices, by kernels that PyTorch brings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hadacore.errors import BackendUnavailableError
from hadacore.formats import PER_ROW, PER_TENSOR, Granularity
from hadacore.functional import hadamard_transform
from hadacore.quantization.functional import hadamard_quantize, static_scale
from hadacore.quantization.result import QuantizedTensor

DEQUANTIZE = "dequantize"
INT_MM = "int_mm"
SCALED_MM = "scaled_mm"

Product = Callable[[QuantizedTensor, QuantizedTensor], Tensor]
_PROBE_SIZE = 128  # one block of every format, and a multiple of all that GEMMs ask for


def dequantized_product(x: QuantizedTensor, weight: QuantizedTensor) -> Tensor:
    """``x @ weight.T`` of dequantized fp32."""
    return x.dequantize() @ weight.dequantize().t()


def int8_product(x: QuantizedTensor, weight: QuantizedTensor) -> Tensor:
    """``x @ weight.T`` summed in int32."""
    products = torch._int_mm(x.codes, weight.codes.t())
    return products.float() * x.scales * weight.scales.t()


def scaled_product(x: QuantizedTensor, weight: QuantizedTensor) -> Tensor:
    """``x @ weight.T`` in bfloat16, which is all that GPUs give with a scale per row.

    Raises:
        BackendUnavailableError: The device, or this PyTorch, has no such product.
    """
    if not torch.compiler.is_compiling():
        reason = why_not_scaled(x.format, x.granularity, x.codes.device)
        if reason is not None:
            raise BackendUnavailableError(reason)
    return _scaled_product(x, weight)


def _scaled_product(x: QuantizedTensor, weight: QuantizedTensor) -> Tensor:
    # The older function takes what it can: torch.compile traces it, and not the other one in torch 2.10 and 2.11.
    if not hasattr(F, "scaled_mm") or (x.format == "fp8_e4m3" and x.granularity in (PER_TENSOR, PER_ROW)):
        return _product_by_tensors_or_rows(x, weight)
    rule = F.ScalingType
    swizzled, plain = F.SwizzleType.SWIZZLE_32_4_4, F.SwizzleType.NO_SWIZZLE
    a, b = x.codes, weight.codes.t()
    if x.format == "nvfp4":
        # Both levels, and so the recipe, are there whether or not there is a global scale.
        return F.scaled_mm(
            a.view(torch.float4_e2m1fn_x2), weight.codes.view(torch.float4_e2m1fn_x2).t(),
            [x.scales, _global_scale(x)], [rule.BlockWise1x16, rule.TensorWise],
            [weight.scales, _global_scale(weight)], [rule.BlockWise1x16, rule.TensorWise],
            [swizzled, plain], [swizzled, plain], output_dtype=torch.bfloat16,
        )  # fmt: skip
    if x.format == "mxfp8":
        return F.scaled_mm(
            a, b, x.scales, rule.BlockWise1x32, weight.scales, rule.BlockWise1x32, swizzled, swizzled,
            output_dtype=torch.bfloat16,
        )  # fmt: skip
    return F.scaled_mm(
        a, b, x.scales, rule.BlockWise1x128, weight.scales, rule.BlockWise1x128, output_dtype=torch.bfloat16
    )


def _product_by_tensors_or_rows(x: QuantizedTensor, weight: QuantizedTensor) -> Tensor:
    if x.format != "fp8_e4m3" or x.granularity not in (PER_TENSOR, PER_ROW):
        raise RuntimeError(f"torch.nn.functional.scaled_mm came with torch 2.10, this is {torch.__version__}")
    scales = weight.scales.t().contiguous() if x.granularity == PER_ROW else weight.scales
    return torch._scaled_mm(x.codes, weight.codes.t(), scale_a=x.scales, scale_b=scales, out_dtype=torch.bfloat16)


def _global_scale(x: QuantizedTensor) -> Tensor:
    return x.scales.new_ones((), dtype=torch.float32) if x.global_scale is None else x.global_scale


@functools.cache
def why_not_scaled(format: str, granularity: Granularity, device: torch.device) -> str | None:
    """Why a device has no scaled product of a format, or None if it has: it is asked to multiply a small one."""
    x = torch.ones(_PROBE_SIZE, _PROBE_SIZE, device=device)
    scale = static_scale(hadamard_transform(x).abs().amax(), format) if granularity == PER_TENSOR else None
    small = hadamard_quantize(x, format, granularity=granularity, scale=scale)
    try:
        _scaled_product(small, small)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, NotImplementedError) as error:
        name = "the CPU"
        if device.type == "cuda":
            major, minor = torch.cuda.get_device_capability(device)
            name = f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor})"
        first = str(error).strip().splitlines()[0]
        return (
            f"{name} has no scaled_mm of {format} with granularity {granularity!r} in torch {torch.__version__}: {first}. Use "
            f"gemm='dequantize'; RotatedLinear.load takes another gemm"
        )
    return None


@dataclass(frozen=True)
class Gemm:
    """A way to multiply.

    Attributes:
        product: Of activation and weight, ``(rows, out_features)``.
        takes: Formats with granularities, or None for all.
    """

    product: Product
    takes: tuple[tuple[str, Granularity], ...] | None = None

    def why_not(self, weight: QuantizedTensor) -> str | None:
        """Why it does not take a weight's format, or None if it does."""
        if self.takes is None:
            return None
        if (weight.format, weight.granularity) not in self.takes:
            allowed = ", ".join(f"{format} {granularity}" for format, granularity in self.takes)
            return f"takes {allowed}, got {weight.format} with granularity {weight.granularity!r}"
        if weight.format in ("mxfp8", "nvfp4") and not weight.swizzled:
            return f"takes swizzled scales of {weight.format}, got plain ones"
        return None


GEMMS: dict[str, Gemm] = {
    DEQUANTIZE: Gemm(dequantized_product),
    INT_MM: Gemm(int8_product, (("int8", PER_ROW),)),
    SCALED_MM: Gemm(
        scaled_product,
        (("fp8_e4m3", PER_ROW), ("fp8_e4m3", PER_TENSOR), ("fp8_e4m3", 128), ("mxfp8", 32), ("nvfp4", 16)),
    ),
}
