"""Queries and keys by CUDA kernels: two passes that rotate twice, or one where scales are given or made of each row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hadacore.backends.cuda import quantize as backend
from hadacore.backends.cuda.launch import cuda_code, is_aligned
from hadacore.elements import BY_DTYPE
from hadacore.formats import BY_NAME, Quantizer
from hadacore.kernels.architectures import architecture_of
from hadacore.kernels.configurations import TILE_LOG2, signs_placement
from hadacore.kernels.fusion import FusedPrologue, Fusion, fusion_of_heads, scale_factor
from hadacore.kernels.heads import HeadsConfiguration
from hadacore.prologues import RotaryEmbedding
from hadacore.quantization.composed import Rotation
from hadacore.quantization.cuda_kernels import operands_of, prologue_of_tensors, quantize


def quantize_heads(
    x: Tensor, format: str, kv_heads: int, per_token: bool, scale: Tensor | None, clip_ratio: float, transform_scale: float,
    signs: Tensor | None, rope: RotaryEmbedding | None, tables: Sequence[Tensor], rotates: bool,
) -> tuple[Tensor, Tensor] | str:  # fmt: skip
    """Codes and scales, or why the kernels do not take the problem: ``x`` is ``(batch, tokens, heads, head_dim)``."""
    batch, tokens, heads, n = x.shape
    quantizer = Quantizer(BY_NAME[format], n, clip_ratio)
    if per_token and not rotates:
        return "values are quantized without rotation with a scale for each head of all tokens"
    if per_token:
        codes, scales = quantize(
            x, Rotation(n, transform_scale, False), signs, quantizer, None, None, rope, tables, None
        )
        return codes, scales.view(batch, tokens, heads)
    reason = why_not(x, scale is not None)
    if reason is not None:
        return reason
    prologue: FusedPrologue | None = None
    if rope is not None:
        made = prologue_of_tensors(rope, n, x, tables, None)
        if isinstance(made, str):
            return made
        prologue = made
    if signs is not None:
        signs = signs.to(x.dtype)
    fusion = fusion_of_heads(quantizer, scale is not None, heads, kv_heads, prologue, rotates)
    operands = None if rope is None else operands_of(rope, x, tables, None)
    codes = x.new_empty(x.shape, dtype=quantizer.format.codes_dtype)
    if scale is not None:
        scales = scale.clone(memory_format=torch.contiguous_format)
        matrix = backend.ScaleMatrix(scales, scales, scale_factor(quantizer), tokens, 0)
        if not HeadsConfiguration.takes(heads, n):
            backend.quantize(x, codes, n, transform_scale, signs, False, fusion, matrix, operands)
            return codes, scales
    else:
        scales = x.new_empty((batch, kv_heads), dtype=torch.float32)
        magnitudes = x.new_zeros((batch, kv_heads, HeadsConfiguration.places), dtype=torch.float32)
        matrix = backend.ScaleMatrix(scales, magnitudes, scale_factor(quantizer), tokens, 0)
        measuring = _configuration(x, kv_heads, fusion, signs is not None, measures=True)
        backend.pass_over_heads(x, magnitudes, transform_scale, signs, measuring, matrix, operands)
    quantizing = _configuration(x, kv_heads, fusion, signs is not None, measures=False)
    backend.pass_over_heads(x, codes, transform_scale, signs, quantizing, matrix, operands)
    return codes, scales


def why_not(x: Tensor, given: bool) -> str | None:
    """Why heads with one scale for each (batch, kv head) are not the kernels', or None if they are."""
    heads, n = x.shape[2:]
    vector = BY_DTYPE[x.dtype].vector_elements
    if n & (n - 1) or not vector <= n <= 1 << TILE_LOG2:
        return f"heads of {n} elements are no power of two from {vector} to {1 << TILE_LOG2}"
    if not given and not HeadsConfiguration.takes(heads, n):
        return f"a token of {heads} heads of {n} elements is no multiple of {1 << TILE_LOG2}"
    if not is_aligned(x):
        return "the heads are not contiguous, or do not start on 16 bytes"
    if x.numel() == 0:
        return "there are no elements"
    return None


def _configuration(x: Tensor, kv_heads: int, fusion: Fusion, signs: bool, *, measures: bool) -> HeadsConfiguration:
    architecture = architecture_of(torch.cuda.get_device_capability(x.device))
    found = HeadsConfiguration(
        cuda_code(x.dtype),
        x.shape[-1].bit_length() - 1,
        x.shape[2],
        kv_heads,
        measures,
        fusion,
        signs=signs_placement(signs, False),
    )
    return found.for_architecture(architecture)
