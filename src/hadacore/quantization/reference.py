"""The reference of every format, in PyTorch operations: what a fused kernel must match bit for bit.

The input is the rotated row in fp32. All arithmetic is fp32 with IEEE rounding to nearest even, subnormals kept, no
contraction to fused multiply-adds. ``docs/quantization.md`` states the rules in words.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hadacore.formats import E2M1, E4M3, E5M2, INT4, INT8, SMALLEST_SCALE, Encoding, Format, Quantizer
from hadacore.quantization import layouts, rounding

_SMALLEST_E4M3 = 1  # code of 2^-9, the smallest block scale of NVFP4


def quantize(
    rotated: Tensor, quantizer: Quantizer, scale: Tensor | None = None, seed: int | None = None
) -> tuple[Tensor, Tensor]:
    """Codes and scales of ``(rows, n)`` fp32 values.

    Args:
        rotated: The rotated values, fp32, contiguous.
        quantizer: Format, block and options.
        scale: The tensor's scale where ``block`` is 0; the optional global scale of NVFP4. fp32, one element.
        seed: Of stochastic rounding.

    Returns:
        Codes of the format's dtype, ``(rows, n)`` or ``(rows, n / 2)``, and scales as :mod:`.layouts` lays them out.
    """
    rows, n = rotated.shape
    format, encoding = quantizer.format, quantizer.format.encoding
    if quantizer.block == 0:
        assert scale is not None
        return rounding.to_float8(rotated * scale.reciprocal(), encoding), scale.clone()
    groups = rotated.view(rows, n // quantizer.block, quantizer.block)
    amax = groups.abs().amax(-1)
    finite = amax.isfinite()
    if format.scale_name == "E8M0":
        scales, factor = _e8m0_scales(amax, finite, quantizer)
    elif format.scale_name == "E4M3":
        scales, factor = _e4m3_scales(amax, finite, quantizer, scale)
    else:
        scales = (amax * quantizer.amax_factor).clamp_(min=SMALLEST_SCALE)
        scales.masked_fill_(~finite, math.nan)
        factor = scales.reciprocal()
    # A group that holds NaN or an infinity has no scale: its scale is NaN, so are its codes where there is such a code.
    outside = math.nan if encoding in (E4M3, E5M2) else 0.0
    values = (groups * factor.unsqueeze(-1)).masked_fill_(~finite.unsqueeze(-1), outside).view(rows, n)
    uniform = None
    if quantizer.stochastic:
        assert seed is not None
        uniform = rounding.uniform_of(rows * n, seed, rotated.device).view(rows, n)
    return _encode(values, encoding, uniform), _lay_out(scales, quantizer)


def _encode(values: Tensor, encoding: Encoding, uniform: Tensor | None) -> Tensor:
    if encoding == E2M1:
        return rounding.pack(rounding.to_e2m1(values, uniform))
    if encoding == INT4:
        return rounding.pack(rounding.to_integer(values, encoding))
    if encoding == INT8:
        return rounding.to_integer(values, encoding)
    return rounding.to_float8(values, encoding)


def _lay_out(scales: Tensor, quantizer: Quantizer) -> Tensor:
    if quantizer.swizzled:
        return layouts.swizzle(scales)
    if quantizer.format.is_block_major(scales.shape[1]):
        return layouts.block_major(scales)
    return scales


def _e8m0_scales(amax: Tensor, finite: Tensor, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
    bits = rounding.to_e8m0_bits(amax * quantizer.clip_factor, quantizer.format.encoding.largest_exponent)
    factor = rounding.from_e8m0_bits(254 - bits)
    bits.masked_fill_(~finite, 255)
    return bits.to(torch.uint8).view(torch.float8_e8m0fnu), factor


def _e4m3_scales(
    amax: Tensor, finite: Tensor, quantizer: Quantizer, global_scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    wanted = amax * quantizer.amax_factor
    if global_scale is not None:
        wanted = wanted * global_scale.reciprocal()
    scales = rounding.to_float8(wanted.masked_fill_(~finite, math.nan), E4M3)
    scales.view(torch.uint8).clamp_(min=_SMALLEST_E4M3)
    decode = scales.float()
    if global_scale is not None:
        decode = (decode * global_scale).clamp_(min=SMALLEST_SCALE)
    return scales, decode.reciprocal()


def dequantize(
    codes: Tensor, scales: Tensor, format: Format, global_scale: Tensor | None, work_dtype: torch.dtype
) -> Tensor:
    """``value(code) * scale`` in ``work_dtype``.

    Args:
        codes: ``(rows, n)`` or packed ``(rows, n / 2)``.
        scales: Plain, ``(rows, blocks)``, or one element.
        format: The format.
        global_scale: NVFP4's, or None.
        work_dtype: float32 or float64.
    """
    values = code_values(codes, format).to(work_dtype)
    is_e8m0 = format.scale_name == "E8M0"
    decode = rounding.from_e8m0_bits(scales.view(torch.uint8).to(torch.int32)) if is_e8m0 else scales.float()
    if global_scale is not None:
        decode = (decode * global_scale).clamp_(min=SMALLEST_SCALE)
    decode = decode.to(work_dtype)
    if scales.dim() < 2:
        return values * decode
    rows, n = values.shape
    blocks = scales.shape[1]
    return (values.view(rows, blocks, n // blocks) * decode.unsqueeze(-1)).view(rows, n)


def code_values(codes: Tensor, format: Format) -> Tensor:
    """The fp32 value of each code, before any scale."""
    if format.encoding == E2M1:
        return rounding.from_e2m1(rounding.unpack(codes))
    if format.encoding == INT4:
        return rounding.sign_extend(rounding.unpack(codes)).float()
    return codes.float()
