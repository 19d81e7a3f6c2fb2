"""Attention by its definition in float64, and with the roundings of an FP8 kernel, independent of the package's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tests import quantization_oracle


def visible(queries: int, keys: int, causal: bool = False, window: int | None = None) -> Tensor:
    """``(queries, keys)``: the last query stands at the last key."""
    seen = torch.ones(queries, keys, dtype=torch.bool)
    for i in range(queries):
        place = keys - queries + i
        for j in range(keys):
            seen[i, j] = not (causal and j > place) and not (window is not None and j <= place - window)
    return seen


def exact_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, window: int | None = None,
                    mask: Tensor | None = None, softmax_scale: float | None = None) -> Tensor:  # fmt: skip
    """``(batch, tokens, heads, head_dim)`` in float64. ``mask`` broadcasts to ``(batch, heads, queries, keys)``."""
    group = q.shape[2] // k.shape[2]
    q, k, v = q.double(), k.double().repeat_interleave(group, 2), v.double().repeat_interleave(group, 2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * (q.shape[3] ** -0.5 if softmax_scale is None else softmax_scale)
    seen = visible(q.shape[1], k.shape[1], causal, window)[None, None]
    if mask is not None:
        seen = seen & mask
    weights = torch.where(seen, scores, -torch.inf).softmax(-1).nan_to_num(0.0)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v)


def e4m3(x: np.ndarray) -> np.ndarray:
    """The nearest E4M3 value of each number."""
    codes = quantization_oracle.nearest_float(x, "e4m3")
    values = quantization_oracle.values_of("e4m3")[codes & 127]
    return np.where(codes & 128, -values, values)


def scaled_e4m3(x: np.ndarray) -> np.ndarray:
    """All of ``x`` with one scale: the values its codes stand for."""
    scale = max(np.abs(x).max() * np.float32(1 / 448), np.float32(2.0**-126))
    return e4m3(x.astype(np.float32) * (np.float32(1) / scale)) * np.float64(scale)


def fp8_attention(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, block: int) -> Tensor:
    """One (batch, kv head) with all its query heads, ``(queries, head_dim)`` stacked: values of codes, probabilities of
    each block of keys, from the last to the first, rounded to E4M3 after a factor of 256, sums in float64."""
    values = [scaled_e4m3(x.numpy()) for x in (q, k, v)]
    scores = values[0] @ values[1].T * softmax_scale
    maximum = np.full((scores.shape[0], 1), -np.inf)
    total, sums = np.zeros_like(maximum), np.zeros((scores.shape[0], v.shape[1]))
    for begin in reversed(range(0, scores.shape[1], block)):
        part = scores[:, begin : begin + block]
        larger = np.maximum(maximum, part.max(1, keepdims=True))
        weights = 256 * np.exp(part - larger)
        total = total * np.exp(maximum - larger) + weights.sum(1, keepdims=True)
        sums = sums * np.exp(maximum - larger) + e4m3(weights.astype(np.float32)) @ values[2][begin : begin + block]
        maximum = larger
    return torch.from_numpy(sums / total)
