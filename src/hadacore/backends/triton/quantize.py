"""Rotation and quantization in one kernel: FP8 E4M3 and INT8 with a scale for each row.

The kernel has the row's fp32 values, takes their largest magnitude, and writes codes and a scale, by the rules of
``docs/quantization.md``, operation by operation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hadacore.backends.triton.configurations import LARGEST_FUSED_ORDER
from hadacore.backends.triton.launch import (
    TO_E4M3,
    TO_E4M3_BY_HARDWARE,
    TO_INT8,
    base_for,
    configuration_for,
    launch,
    refusal,
)
from hadacore.backends.triton.requirements import device_refusal, is_interpreted, triton_module
from hadacore.formats import E4M3, INT8, Quantizer
from hadacore.matrices import factor

FUSED_FORMATS = ("fp8_e4m3", "int8")
_HARDWARE_CAPABILITY = (8, 9)  # from here on NVIDIA GPUs convert fp32 to E4M3 in one instruction


def quantization_refusal(
    x: Tensor, n: int, size: int, quantizer: Quantizer, base_order: int | None = None
) -> str | None:
    """Why rows of ``n`` elements are not rotated and quantized in one kernel, or None if they are.

    Args:
        x: The input.
        n: Elements of a rotated row.
        size: Elements of a transform.
        quantizer: Format, block and options.
        base_order: Order of the caller's base matrix; None for the library's.
    """
    if quantizer.format.name not in FUSED_FORMATS:
        return f"the Triton backend quantizes to {' and '.join(FUSED_FORMATS)}, got {quantizer.format.name}"
    if quantizer.block != n:
        return (
            f"the Triton backend quantizes with granularity='row', got {quantizer.block or 'one scale for the tensor'}"
        )
    if size != n:
        return f"the Triton backend quantizes rows that are one transform, got block_size {size} in rows of {n}"
    order = factor(size).base_order if base_order is None else base_order
    if order > LARGEST_FUSED_ORDER:
        return f"the Triton backend quantizes rows whose base matrix has order {LARGEST_FUSED_ORDER} at most, got order {order}"
    return device_refusal(x.device) or refusal(x.dtype, size, base_order)


def _epilogue(x: Tensor, quantizer: Quantizer) -> int:
    if quantizer.format.encoding == INT8:
        return TO_INT8
    assert quantizer.format.encoding == E4M3
    by_hardware = (
        x.device.type == "cuda"
        and not torch.version.hip
        and not is_interpreted()
        and torch.cuda.get_device_capability(x.device) >= _HARDWARE_CAPABILITY
    )
    return TO_E4M3_BY_HARDWARE if by_hardware else TO_E4M3


def quantize(
    x: Tensor, scale: float, signs: Tensor | None, inverse: bool, quantizer: Quantizer, base: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Codes of x's shape, and fp32 scales ``(rows, 1)``, of the rotated rows; ``base`` is the caller's, or None.

    Raises:
        BackendUnavailableError: Triton is missing or too old.
        ValueError: :func:`quantization_refusal` says why.
    """
    triton_module()
    n = x.shape[-1]
    why = quantization_refusal(x, n, n, quantizer, None if base is None else base.shape[0])
    if why is not None:
        raise ValueError(why)
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scales = torch.empty((x.numel() // n, 1), dtype=torch.float32, device=x.device)
    if x.numel():
        configuration = configuration_for(x, n, base, codes=True)
        launch(
            configuration, x.contiguous(), codes, scale, None if signs is None else signs.contiguous(), inverse,
            base_for(x, configuration, base), epilogue=_epilogue(x, quantizer), scales=scales, amax_factor=quantizer.amax_factor,
        )  # fmt: skip
    return codes.view(quantizer.format.codes_dtype), scales
