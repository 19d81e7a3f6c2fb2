"""Rotation and quantization by the native CPU kernels, in one pass over the rows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hadacore.backends import cpu
from hadacore.formats import Quantizer
from hadacore.prologues import Description
from hadacore.quantization import layouts, prologue_reference
from hadacore.quantization.composed import Rotation, check_scale_value, composed


def quantize(
    x: Tensor,
    rotation: Rotation,
    signs: Tensor | None,
    quantizer: Quantizer,
    scale: Tensor | None,
    seed: int | None,
    prologue: Description | None,
    operands: Sequence[Tensor],
    residual: Tensor | None,
    base: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One pass, after the prologue; composed where :func:`.cpu.composed_reason` says why, as the plan does."""
    if cpu.composed_reason(rotation.block_size, quantizer, 0 if base is None else base.shape[0]) is not None:
        return composed(x, rotation, signs, quantizer, scale, seed, prologue, operands, residual, base)
    given = 1.0
    if scale is not None:
        check_scale_value(scale)
        given = scale.item()
    if prologue is not None:
        x = prologue_reference.apply(prologue, x, operands, residual)
    codes, scales = layouts.new_outputs(x, x.shape[-1], quantizer.format, quantizer.block, quantizer.swizzled)
    if quantizer.block == 0:
        scales.fill_(given)
    elif quantizer.swizzled:
        layouts.clear_padding(scales, x.numel() // quantizer.block)
    made = scales if quantizer.block else None
    cpu.quantize(x, codes, made, quantizer, given, rotation.block_size, rotation.scale, signs, rotation.inverse, base)
    return codes, scales
