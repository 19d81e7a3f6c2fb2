"""Rotation and quantization by one CUDA kernel, where there is one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hadacore.backends.cuda import quantize as backend
from hadacore.backends.cuda.launch import cuda_code
from hadacore.formats import Quantizer
from hadacore.kernels.architectures import architecture_of
from hadacore.kernels.fusion import Fusion, scale_factor
from hadacore.kernels.quantizing import find_fusion
from hadacore.prologues import Description
from hadacore.quantization import layouts, prologue_reference
from hadacore.quantization.composed import Rotation, composed


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
) -> tuple[Tensor, Tensor]:
    """One kernel, after the prologue; composed where :func:`find_fusion` says that there is none, as the plan does."""
    if prologue is not None:
        x = prologue_reference.apply(prologue, x, operands, residual)
    n = x.shape[-1]
    fusion = find_fusion(
        cuda_code(x.dtype), n, rotation.block_size, quantizer, scale is not None, rotation.inverse,
        architecture_of(torch.cuda.get_device_capability(x.device)),
    )  # fmt: skip
    if isinstance(fusion, str):
        return composed(x, rotation, signs, quantizer, scale, seed, None, (), None)
    if signs is not None and signs.dtype != x.dtype:
        signs = signs.to(x.dtype)
    return _launch(x, rotation, signs, quantizer, scale, seed, fusion)


def _launch(
    x: Tensor, rotation: Rotation, signs: Tensor | None, quantizer: Quantizer, given: Tensor | None, seed: int | None, fusion: Fusion
) -> tuple[Tensor, Tensor]:  # fmt: skip
    format, n = quantizer.format, x.shape[-1]
    rows, columns = x.numel() // n, n // quantizer.block if quantizer.block else 0
    codes = x.new_empty((*x.shape[:-1], n // format.packed), dtype=format.codes_dtype)
    if quantizer.block == 0:
        assert given is not None
        scales = given.clone()
    elif quantizer.swizzled:
        # Padding of the last tiles is zeros; without any, every byte is a scale and gets written.
        make = x.new_empty if rows % layouts.TILE_ROWS == 0 and columns % layouts.TILE_COLUMNS == 0 else x.new_zeros
        scales = make((layouts.swizzled_size(rows, columns),), dtype=torch.uint8).view(format.scale_dtype)
    elif format.is_block_major(columns):
        scales = x.new_empty((columns, rows), dtype=format.scale_dtype).t()
    else:
        scales = x.new_empty((rows, columns), dtype=format.scale_dtype)
    matrix = backend.ScaleMatrix(scales, given, scale_factor(quantizer), rows, seed or 0)
    backend.quantize(x, codes, rotation.block_size, rotation.scale, signs, rotation.inverse, fusion, matrix)
    return codes, scales
