"""The unfused chain that a fused kernel is measured against: what one writes in PyTorch today.

Each step is a function compiled by :func:`torch.compile` on its own, since the transform stands between them: a gated
activation or a rotary embedding before it, and a quantizer after it, which finds the scales too. Formats and layouts
are those of :func:`hadacore.hadamard_quantize`, so that the same kernel could consume them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hadacore.formats import BY_NAME, E2M1, E4M3, INT4, SMALLEST_SCALE, Format
from hadacore.functional import hadamard_transform
from hadacore.quantization import layouts, rounding

Quantized = tuple[Tensor, Tensor]


@functools.cache
def compiled(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step compiled for the shapes it will meet.

    Each shape by itself, which is to the chain's advantage: a reduction of a known length is what Inductor is best at. Steps
    are kept, so that chains that share one on the same shapes compile it once.
    """
    return torch.compile(step, fullgraph=True, dynamic=False)


def forget_compiled() -> None:
    """Drop what was compiled for other shapes: a function of more than eight kinds of arguments is not compiled again."""
    torch._dynamo.reset()


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up`` of separate tensors."""
    return F.silu(gate) * up


def silu_mul_gate_up(x: Tensor) -> Tensor:
    """The same of one tensor that holds both."""
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


@functools.cache
def quantizer(name: str, block: int) -> Callable[[Tensor], Quantized]:
    """The quantizer of a format with a scale for each ``block`` elements, of rows ``(rows, n)``."""
    format = BY_NAME[name]

    def quantize(x: Tensor) -> Quantized:
        return _quantize(x, format, block)

    return quantize


def _quantize(x: Tensor, format: Format, block: int) -> Quantized:
    groups = x.float().unflatten(-1, (-1, block))
    scales, decode = _scales(groups.abs().amax(-1, keepdim=True), format)
    return _codes(groups / decode, format).flatten(-2), _laid_out(scales.squeeze(-1), format)


def _scales(amax: Tensor, format: Format) -> Quantized:
    """Scales as they are stored, and as fp32."""
    if format.scale_name == "E8M0":
        byte = ((amax.view(torch.int32) >> 23) - format.encoding.largest_exponent).clamp(min=0)
        return byte.to(torch.uint8), torch.exp2((byte - 127).float())
    if format.scale_name == "E4M3":
        scales = (amax / format.encoding.maximum).clamp(E4M3.smallest, E4M3.maximum).to(torch.float8_e4m3fn)
        return scales, scales.float()
    scales = (amax / format.encoding.maximum).clamp(min=SMALLEST_SCALE)
    return scales, scales


def _codes(scaled: Tensor, format: Format) -> Tensor:
    encoding = format.encoding
    if encoding == E2M1:
        return rounding.pack(rounding.to_e2m1(scaled))
    limited = scaled.clamp(-encoding.maximum, encoding.maximum)
    if not encoding.is_integer:
        return limited.to(format.codes_dtype)
    codes = limited.round().to(torch.int8)
    return rounding.pack(codes) if encoding == INT4 else codes


def _laid_out(scales: Tensor, format: Format) -> Tensor:
    if format.can_swizzle:
        return layouts.swizzle(scales)
    return layouts.block_major(scales) if format.is_block_major(scales.shape[1]) else scales


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, halves rotated together, of ``(batch, tokens, heads, n)`` with tables ``(tokens, n / 2)``."""
    cos, sin = cos[:, None, :], sin[:, None, :]
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


def head_scales(x: Tensor, kv_heads: int) -> Tensor:
    """The FP8 scale of each (batch, kv head): its largest magnitude over 448, ``(batch, kv_heads)``."""
    amax: Tensor = x.unflatten(2, (kv_heads, -1)).abs().amax((1, 3, 4))
    return (amax.float() / E4M3.maximum).clamp(min=SMALLEST_SCALE)


def quantize_heads(x: Tensor, scales: Tensor) -> Tensor:
    """FP8 codes with a scale for each (batch, kv head)."""
    groups: Tensor = x.float().unflatten(2, (scales.shape[1], -1)) / scales[:, None, :, None, None]
    return groups.clamp(-E4M3.maximum, E4M3.maximum).to(torch.float8_e4m3fn).flatten(2, 3)


def quantize_chain(
    name: str, block: int, prologue: Callable[..., Tensor] | None = None, compile: Callable[..., Any] = compiled
) -> Callable[..., Quantized]:
    """Prologue, transform, quantizer.

    Args:
        name: The format's name.
        block: Elements that share a scale.
        prologue: :func:`silu_mul`, :func:`silu_mul_gate_up` or None.
        compile: Compiles a step.

    Returns:
        A function of the input tensors and of a buffer for the rotated values.
    """
    before = None if prologue is None else compile(prologue)
    after = compile(quantizer(name, block))

    def chain(*inputs: Tensor, out: Tensor) -> Quantized:
        x = inputs[0] if before is None else before(*inputs)
        return after(hadamard_transform(x, out=out))  # type: ignore[no-any-return]

    return chain


def query_key_chain(kv_heads: int, per_token: bool, compile: Callable[..., Any] = compiled) -> Callable[..., Quantized]:
    """Rotary embedding, transform, largest magnitudes and FP8 codes of queries or keys.

    Returns:
        A function of a tensor ``(batch, tokens, heads, n)``, cos, sin and a buffer for the rotated values.
    """
    before = compile(rope)
    # A head's scale needs all of its tokens, so finding it and using it are two steps; a token's is one reduction.
    scales_of, encode, by_row = compile(head_scales), compile(quantize_heads), compile(_quantize_rows_to_fp8)

    def chain(x: Tensor, cos: Tensor, sin: Tensor, *, out: Tensor) -> Quantized:
        rotated = hadamard_transform(before(x, cos, sin), out=out)
        if per_token:
            codes, scales = by_row(rotated.view(-1, x.shape[-1]))
            return codes.view(x.shape), scales.view(x.shape[:-1])
        scales = scales_of(rotated, kv_heads)
        return encode(rotated, scales), scales

    return chain


def _quantize_rows_to_fp8(x: Tensor) -> Quantized:
    return _quantize(x, BY_NAME["fp8_e4m3"], x.shape[-1])
