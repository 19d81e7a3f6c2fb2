"""Attention in PyTorch operations with the roundings of a low precision kernel, on any device, for work on accuracy.

It goes over blocks of keys as FlashAttention-3's FP8 kernel does, from the last to the first, with the running maximum of an
online softmax. In a block, probabilities are ``exp(score - maximum)``, not normalised; for FP8 they are multiplied by 2^8, so
that they fill the range of E4M3, and rounded to it. Their sum is that of the unrounded ones. Products are summed in fp32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hadacore.attention.operands import Operand, Operands
from hadacore.attention.visibility import Visibility
from hadacore.formats import E4M3
from hadacore.quantization import rounding

# Keys of a block by the largest head size that it serves: FlashAttention's hopper/tile_size.h for one byte an element. vLLM 0.25
# has 128, 128, 192, 96 and 128, by the names of its kernels. Another block moves single results, not the size of the error.
_KEYS_OF_A_BLOCK = ((64, 160), (96, 128), (128, 224), (192, 160), (256, 128))
# FP8 probabilities are exp(score - maximum) * 2^8: at most 256, the largest power of two that E4M3 has.
_LOG2_PROBABILITY_SCALE = 8.0
# Scores that are held at once; more only cost memory.
_MOST_SCORES = 1 << 24


def keys_of_a_block(head_dim: int) -> int:
    """Keys between two updates of the running maximum, for a head size.

    >>> keys_of_a_block(128)
    224
    """
    return next((keys for size, keys in _KEYS_OF_A_BLOCK if head_dim <= size), 128)


def attend(
    operands: Operands,
    visibility: Visibility,
    softmax_scale: float,
    out_dtype: torch.dtype,
    probability_dtype: torch.dtype | None,
    key_block: int | None = None,
) -> Tensor:
    """``softmax(softmax_scale q k^T) v`` of ``(batch, tokens, heads, head_dim)`` operands.

    Args:
        operands: Queries, keys, values.
        visibility: Which keys a query sees. A query that sees none gets zeros.
        softmax_scale: Factor of the scores.
        out_dtype: Of the result, which is rounded once.
        probability_dtype: What probabilities are rounded to: ``torch.float8_e4m3fn``, a 16-bit type, or None for no rounding.
        key_block: Keys of a block; None is :func:`keys_of_a_block`.
    """
    q, k, v = operands.q, operands.k, operands.v
    batch, queries, heads, head_dim = q.codes.shape
    keys, kv_heads = k.codes.shape[1:3]
    work = torch.float64 if q.codes.dtype == torch.float64 else torch.float32
    step = key_block or keys_of_a_block(head_dim)
    rows = max(16, min(queries, _MOST_SCORES // max(1, batch * heads * step)))
    out = q.codes.new_empty((batch, queries, heads, v.codes.shape[3]), dtype=out_dtype)
    group = heads // kv_heads
    # Query heads of a group are rows of one product: (batch, kv_heads, group * rows, head_dim).
    k_values, k_scales = _by_head(k, work)
    v_values, v_scales = _by_head(v, work)
    if v_scales is not None:
        v_values = v_values * v_scales.unsqueeze(-1)
    for start in range(0, queries, rows):
        part = slice(start, min(start + rows, queries))
        q_values, q_scales = _by_head(_rows_of(q, part), work)
        count = part.stop - part.start
        q_values = q_values.reshape(batch, kv_heads, group * count, head_dim)
        factor = softmax_scale / math.log(2.0)
        row_factor = q_values.new_full((1, 1, 1, 1), factor) if q_scales is None else (q_scales * factor).unsqueeze(-1)
        if q_scales is not None and row_factor.dim() == 4 and row_factor.shape[1] > 1:
            row_factor = row_factor.expand(-1, heads, count, 1).reshape(-1, kv_heads, group * count, 1)
        maximum = q_values.new_full((batch, kv_heads, group * count, 1), -math.inf)
        total = torch.zeros_like(maximum)
        sums = q_values.new_zeros((batch, kv_heads, group * count, v.codes.shape[3]))
        last = keys if not visibility.causal else min(keys, part.stop + keys - queries)
        for begin in reversed(range(0, max(last, 0), step)):
            columns = slice(begin, min(begin + step, keys))
            scores = q_values @ k_values[:, :, columns].mT * row_factor
            if k_scales is not None:
                scores = scores * (k_scales if k_scales.shape[-1] == 1 else k_scales[..., columns]).unsqueeze(-2)
            seen = visibility.block(part, columns, queries, keys, scores.device)
            if seen is not None:
                scores = _hide(scores, seen, group, count)
            larger = torch.maximum(maximum, scores.amax(-1, keepdim=True))
            origin = larger.masked_fill(larger == -math.inf, 0.0)
            kept = (maximum - origin).exp2()
            maximum = larger
            probabilities, rounded = _probabilities(scores - origin, probability_dtype)
            total = total * kept + probabilities.sum(-1, keepdim=True)
            sums = sums * kept + rounded @ v_values[:, :, columns]
        result = sums / total.masked_fill(total == 0.0, 1.0)
        result = result.view(batch, heads, count, -1).transpose(1, 2)
        out[:, part] = result.to(out_dtype)
    return out


def _rows_of(q: Operand, part: slice) -> Operand:
    scales = q.scales
    return Operand(q.codes[:, part], scales[:, part] if scales is not None and scales.dim() == 3 else scales)


def _by_head(x: Operand, work: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Codes as ``(batch, heads, tokens, head_dim)`` in the working type, scales as they broadcast to the first three."""
    scales = x.scale_of_tokens()
    if scales is not None:
        scales = scales.view(1, 1, 1) if not scales.dim() else scales.transpose(1, 2)
        scales = scales.to(work)
    return x.codes.to(work).transpose(1, 2), scales


def _hide(scores: Tensor, seen: Tensor, group: int, count: int) -> Tensor:
    batch, kv_heads, _, columns = scores.shape
    by_query_head = scores.view(batch, kv_heads * group, count, columns)
    return by_query_head.masked_fill(~seen, -math.inf).view(scores.shape)


def _probabilities(exponents: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """``2^exponents``, and as they are multiplied with values. Both have the same power of two as a factor."""
    if dtype is None:
        exact = exponents.exp2_()
        return exact, exact
    if dtype == torch.float8_e4m3fn:
        exact = exponents.add_(_LOG2_PROBABILITY_SCALE).exp2_()
        return exact, rounding.to_float8(exact.float(), E4M3).to(exact.dtype)
    exact = exponents.exp2_()
    return exact, exact.to(dtype).to(exact.dtype)
