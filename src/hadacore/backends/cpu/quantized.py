"""Rotation and quantization in one pass of the native kernels: rows are quantized while their fp32 values are in a cache."""

from __future__ import annotations

import ctypes

from torch import Tensor

from hadacore.backends.cpu import native
from hadacore.formats import Quantizer

# The codes of problem.hpp.
_ENCODINGS = {"E4M3": 0, "E5M2": 1, "E2M1": 2, "INT8": 3, "INT4": 4}
_GIVEN_SCALE = 0
_SCALE_TYPES = {"fp32": 1, "E8M0": 2, "E4M3": 3}
# Longest Sylvester factor of a row that one thread transforms (large.hpp).
LARGEST_LOG2 = 16


def unsupported_reason(log2: int, quantizer: Quantizer) -> str | None:
    """Why rows whose Sylvester factor is ``2^log2`` are not quantized by the native kernels, or None if they are."""
    missing = native.unavailable_reason()
    if missing is not None:
        return f"the native library is not used: {missing}"
    if quantizer.stochastic:
        return "the native kernels round to nearest only"
    if log2 > LARGEST_LOG2:
        return f"the native kernels quantize rows of one thread, of a Sylvester factor up to 2^{LARGEST_LOG2}, got 2^{log2}"
    return None


def quantize_native(
    x: Tensor,
    codes: Tensor,
    scales: Tensor | None,
    quantizer: Quantizer,
    given: float,
    order: int,
    base: Tensor | None,
    log2: int,
    scale: float,
    signs: Tensor | None,
    inverse: bool,
    *,
    instruction_set: str | None = None,
) -> None:
    """Transform x as :func:`.native.transform_native` does, in fp32, and write the codes and scales of the result.

    Args:
        x: ``(..., n)`` on the CPU, float16, bfloat16 or float32, not empty.
        codes: Of the format's dtype, ``(..., n)``, or ``(..., n / 2)`` for 4-bit codes; contiguous.
        scales: ``(rows, blocks)``, or swizzled, with zeros as padding; None with one given scale.
        quantizer: Format, block and options; not stochastic.
        given: The tensor's scale where the block is 0; NVFP4's global scale, or 1.
        order: And what follows, as in :func:`.native.transform_native`.
        base: See there.
        log2: See there; at most ``LARGEST_LOG2``.
        scale: See there.
        signs: See there.
        inverse: See there.
        instruction_set: See there.

    Raises:
        NativeUnavailableError: There is no native library.
        MemoryError: There is no memory for a tile of rows.
    """
    n = x.shape[-1]
    block, format = quantizer.block or n, quantizer.format
    strides = (0, 0) if scales is None or quantizer.swizzled else (scales.stride(0), scales.stride(1))
    quantization = native.Quantization(
        codes.data_ptr(),
        None if scales is None else scales.data_ptr(),
        _ENCODINGS[format.encoding.name],
        _SCALE_TYPES[format.scale_name] if quantizer.block else _GIVEN_SCALE,
        block,
        n // block,
        *strides,
        quantizer.swizzled,
        format.encoding.largest_exponent,
        quantizer.clip_factor if format.scale_name == "E8M0" else quantizer.amax_factor,
        given,
    )
    source = x if native.is_dense(x) else x.contiguous()
    with native.problem_of(source, source, order, base, log2, scale, signs, inverse, instruction_set) as problem:
        status = native.library().handle.hadacore_quantize(ctypes.byref(problem), ctypes.byref(quantization))
        native.check_status(status, problem)
