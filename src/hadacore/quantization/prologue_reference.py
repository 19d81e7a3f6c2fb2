"""The reference of every prologue, in fp32 PyTorch operations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from hadacore.prologues import GATE_UP, SEPARATE, Description, GatedActivation, RMSNorm, RotaryEmbedding


def apply(description: Description, x: Tensor, operands: Sequence[Tensor], residual: Tensor | None) -> Tensor:
    """The prologue's fp32 result; ``residual`` is written where there is one. Arguments are already checked."""
    if isinstance(description, GatedActivation):
        return _gated(description, x, operands)
    if isinstance(description, RMSNorm):
        return _rms_norm(description, x, operands[0], residual)
    return rotate_pairs(description, x, operands)


def _gated(description: GatedActivation, x: Tensor, operands: Sequence[Tensor]) -> Tensor:
    if description.layout == SEPARATE:
        gate, up = x.float(), operands[0].float()
    else:
        first, second = x.float().chunk(2, -1)
        gate, up = (first, second) if description.layout == GATE_UP else (second, first)
    if description.activation == "silu":
        return F.silu(gate) * up
    return F.gelu(gate, approximate="tanh" if description.activation == "gelu_tanh" else "none") * up


def _rms_norm(description: RMSNorm, x: Tensor, weight: Tensor, residual: Tensor | None) -> Tensor:
    values = x.float()
    if residual is not None:
        values = values + residual.float()
        residual.copy_(values)
    inverse = (values.square().mean(-1, keepdim=True) + description.epsilon).rsqrt()
    return values * inverse * weight.float()


def rotate_pairs(description: RotaryEmbedding, x: Tensor, operands: Sequence[Tensor]) -> Tensor:
    """Rotary embedding of ``(..., tokens, heads, n)``."""
    cos, sin = operands[0].float(), operands[1].float()
    if len(operands) == 3:
        positions = operands[2]
        _check_positions(positions, cos.shape[0])
        cos, sin = cos[positions], sin[positions]
    else:
        cos, sin = cos[: x.shape[-3]], sin[: x.shape[-3]]
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    pairs = cos.shape[-1]
    values = x.float().clone(memory_format=torch.contiguous_format)
    turned = values[..., : 2 * pairs]
    a, b = (turned[..., 0::2], turned[..., 1::2]) if description.interleaved else turned.chunk(2, -1)
    first, second = a * cos - b * sin, b * cos + a * sin
    a.copy_(first)
    b.copy_(second)
    return values


def _check_positions(positions: Tensor, limit: int) -> None:
    """On the CPU only: looking at values on a GPU would wait for it."""
    if positions.device.type != "cpu" or positions.numel() == 0:
        return
    low, high = int(positions.min()), int(positions.max())
    if low < 0 or high >= limit:
        raise ValueError(f"positions must be from 0 to {limit - 1}, the rows of cos and sin, got {low} to {high}")
