"""Queries and keys for FP8 attention: rotary embedding, rotation of each head, FP8 with the scales attention takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hadacore import checks
from hadacore.formats import BY_NAME, SMALLEST_SCALE, Quantizer
from hadacore.functional import hadamard_transform
from hadacore.ops import LIBRARY
from hadacore.prologues import Prologue, RotaryEmbedding, check_prologue
from hadacore.quantization import arguments, cuda_heads, prologue_reference, reference, rounding
from hadacore.quantization.paged_cache import check_cache, write_paged_cache

PER_HEAD = "head"
PER_TOKEN = "token"

LIBRARY.define(
    "hadamard_quantize_heads(Tensor x, str format, int kv_heads, bool per_token, Tensor? scale, float clip_ratio, "
    "float transform_scale, Tensor? signs, bool interleaved, Tensor[] rope, bool rotate=True) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@dataclass(frozen=True, eq=False)
class QuantizedQueryKey:
    """FP8 queries and keys with their decode scales. Unpacks into ``q, k, q_descale, k_descale``.

    Attributes:
        q: ``(batch, tokens, heads, head_dim)``.
        k: ``(batch, tokens, kv_heads, head_dim)``.
        q_descale: fp32, ``(batch, kv_heads)``, or per token ``(batch, tokens, heads)``.
        k_descale: fp32, ``(batch, kv_heads)``, or per token ``(batch, tokens, kv_heads)``.
    """

    q: Tensor
    k: Tensor
    q_descale: Tensor
    k_descale: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.q, self.k, self.q_descale, self.k_descale))


def quantize_query_key(
    q: Tensor,
    k: Tensor,
    *,
    rope: Prologue | None = None,
    format: str = "fp8_e4m3",
    granularity: str = PER_HEAD,
    q_scale: Tensor | None = None,
    k_scale: Tensor | None = None,
    clip_ratio: float = 1.0,
    transform_scale: float | None = None,
    signs: Tensor | None = None,
    key_cache: Tensor | None = None,
    slot_mapping: Tensor | None = None,
    scale_cache: Tensor | None = None,
) -> QuantizedQueryKey:
    r"""Rotate the heads of queries and keys and quantize them to FP8.

    .. math:: y = \mathrm{transform\_scale} \cdot H (\mathrm{signs} \circ \mathrm{rope}(x)), \qquad
              y \approx \mathrm{code} \cdot \mathrm{descale}

    Both are rotated alike, so that with the orthonormal ``transform_scale`` the products of queries and keys are those
    before the rotation.

    Args:
        q: ``(batch, tokens, heads, head_dim)``, float16, bfloat16 or float32.
        k: ``(batch, tokens, kv_heads, head_dim)``; kv_heads divides heads.
        rope: From :func:`hadacore.prologues.rope`, applied to both.
        format: ``"fp8_e4m3"`` or ``"fp8_e5m2"``.
        granularity: ``"head"``: one scale for each (batch, kv head) as FlashAttention-3 takes them, which all query heads
            of the group share. ``"token"``: one for each head of each token.
        q_scale: Given scales instead of computed ones for ``"head"``: fp32, ``(batch, kv_heads)``, from 2^-126 to 2^118
            (not looked at on a GPU). What is beyond saturates.
        k_scale: Likewise.
        clip_ratio: As in :func:`hadacore.hadamard_quantize`, for computed scales.
        transform_scale: Factor of the rotated values; None is orthonormal.
        signs: ``(head_dim,)`` of +1 and -1.
        key_cache: ``(blocks, block_size, kv_heads, head_dim)`` of the codes' dtype: keys are written to it too.
        slot_mapping: int32 or int64, ``(batch * tokens,)``: token t goes to ``key_cache[slot // block_size, slot %
            block_size]``, and nowhere where its slot is negative. :func:`paged_slots` makes it of a block table.
        scale_cache: fp32, ``(blocks, block_size, kv_heads)``: with ``"token"`` the keys' scales are written to it.

    Returns:
        A :class:`QuantizedQueryKey`.

    Raises:
        TypeError: Wrong type or dtype of an argument.
        ValueError: Wrong shape, size, device or value; a cache without slots; a gradient is asked for.

    Numerics: scales and codes follow ``docs/quantization.md``, a group of heads being the block. NaN or infinity in a
    (batch, kv head) makes its scale NaN. A cache that is filled by several calls needs one scale: give ``k_scale`` from the
    second on, or use ``"token"`` with ``scale_cache``. On a GPU, scales of heads take two passes that
    rotate twice, the others one.

    Source: Shah et al., FlashAttention-3, arXiv 2407.08608 (rotation of queries and keys before FP8); layout of the paged
    cache: Kwon et al., PagedAttention, arXiv 2309.06180, as vLLM lays it out.

    >>> q, k = torch.randn(2, 5, 8, 64), torch.randn(2, 5, 2, 64)
    >>> result = quantize_query_key(q, k)
    >>> result.q.dtype, result.q_descale.shape
    (torch.float8_e4m3fn, torch.Size([2, 2]))
    """
    found = arguments.check_format(format)
    if format not in ("fp8_e4m3", "fp8_e5m2"):
        raise ValueError(f"queries and keys are quantized to fp8_e4m3 or fp8_e5m2, got {format!r}")
    if granularity not in (PER_HEAD, PER_TOKEN):
        raise ValueError(f"granularity must be 'head' or 'token', got {granularity!r}")
    kv_heads = _check_heads(q, k, rope)
    size = checks.check_block_size(q.shape[-1], None)
    factor = checks.check_scale(transform_scale, size)
    clip = arguments.check_clip_ratio(clip_ratio)
    if key_cache is not None:
        check_cache(key_cache, slot_mapping, k, found.codes_dtype, "key_cache", k.shape[2:])
    if scale_cache is not None:
        if key_cache is None or granularity != PER_TOKEN:
            raise ValueError("scale_cache goes with key_cache and granularity='token'; leave it away")
        check_cache(scale_cache, slot_mapping, k, torch.float32, "scale_cache", k.shape[2:3])
    results = []
    for name, x, scale in (("q_scale", q, q_scale), ("k_scale", k, k_scale)):
        given = _check_given(name, scale, x, kv_heads, granularity)
        signs_of_x = None if signs is None else checks.check_signs(signs, x)
        results.append(
            rotate_and_quantize_heads(x, kv_heads, format, granularity, factor, signs_of_x, rope, given, clip)
        )
    (q_codes, q_descale), (k_codes, k_descale) = results
    if key_cache is not None and slot_mapping is not None:
        write_paged_cache(k_codes.flatten(0, 1), slot_mapping, key_cache)
        if scale_cache is not None:
            write_paged_cache(k_descale.flatten(0, 1), slot_mapping, scale_cache)
    return QuantizedQueryKey(q_codes, k_codes, q_descale, k_descale)


def rotate_and_quantize_heads(
    x: Tensor, kv_heads: int, format: str, granularity: str, factor: float, signs: Tensor | None, rope: Prologue | None,
    scale: Tensor | None = None, clip_ratio: float = 1.0, *, rotate: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Codes and scales of heads by the operator, arguments checked; ``rotate=False`` multiplies by ``factor`` alone."""
    interleaved = rope is not None and rope.description == RotaryEmbedding(True)
    operands = [] if rope is None else list(rope.operands)
    codes, scales = torch.ops.hadacore.hadamard_quantize_heads(
        x, format, kv_heads, granularity == PER_TOKEN, scale, clip_ratio, factor, signs, interleaved, operands, rotate
    )
    return codes, scales


def _check_heads(q: Tensor, k: Tensor, rope: Prologue | None) -> int:
    for name, x in (("q", q), ("k", k)):
        n = arguments.check_quantized_input(x)
        if x.dim() != 4 or x.shape[2] == 0:
            raise ValueError(f"{name} must have shape (batch, tokens, heads, head_dim), got {tuple(x.shape)}")
        check_prologue(rope, x, n)
    if rope is not None and not isinstance(rope.description, RotaryEmbedding):
        raise ValueError(f"rope must come from hadacore.prologues.rope, got {rope.description.name}")
    if q.device != k.device:
        raise ValueError(f"k must be on q's device {q.device}, got {k.device}; use k.to(q.device)")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or (rope is not None and q.shape[1] != k.shape[1]):
        raise ValueError(
            "q and k must have the same batch and head_dim, and with rope= as many tokens; got "
            f"{tuple(q.shape)} and {tuple(k.shape)}"
        )
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"the heads of k must divide those of q, got {k.shape[2]} and {q.shape[2]}")
    return k.shape[2]


def _check_given(name: str, scale: Tensor | None, x: Tensor, kv_heads: int, granularity: str) -> Tensor | None:
    if scale is None:
        return None
    if granularity == PER_TOKEN:
        raise ValueError(f"scales per token are computed, got {name}; leave it away, or use granularity='head'")
    if not isinstance(scale, Tensor) or scale.dtype != torch.float32:
        got = scale.dtype if isinstance(scale, Tensor) else type(scale).__name__
        raise TypeError(f"{name} must be a float32 tensor, got {got}")
    if scale.shape != (x.shape[0], kv_heads):
        raise ValueError(
            f"{name} must have shape (batch, kv_heads) = {(x.shape[0], kv_heads)}, got {tuple(scale.shape)}"
        )
    if scale.device != x.device:
        raise ValueError(f"{name} must be on q's device {x.device}, got {scale.device}; use {name}.to(q.device)")
    return scale.detach()


def _quantize_heads(
    x: Tensor,
    format: str,
    kv_heads: int,
    per_token: bool,
    scale: Tensor | None,
    clip_ratio: float,
    transform_scale: float,
    signs: Tensor | None,
    interleaved: bool,
    rope: Sequence[Tensor],
    rotate: bool = True,
) -> tuple[Tensor, Tensor]:
    values = prologue_reference.rotate_pairs(RotaryEmbedding(interleaved), x, rope) if rope else x.float()
    rotated = hadamard_transform(values, transform_scale, signs=signs) if rotate else values * transform_scale
    found = BY_NAME[format]
    batch, tokens, heads, n = x.shape
    if per_token:
        codes, scales = reference.quantize(rotated.reshape(-1, n), Quantizer(found, n, clip_ratio))
        return codes.view(x.shape), scales.view(batch, tokens, heads)
    # Query head h belongs to kv head h // (heads / kv_heads).
    grouped = rotated.view(batch, tokens, kv_heads, heads // kv_heads * n)
    if scale is not None:
        if scale.device.type == "cpu" and not bool(((scale >= 2.0**-126) & (scale <= 2.0**118)).all()):
            raise ValueError("given scales must be from 2^-126 to 2^118; clamp them")
        codes = rounding.to_float8(grouped * scale.reciprocal().view(batch, 1, kv_heads, 1), found.encoding)
        return codes.view(x.shape), scale.clone(memory_format=torch.contiguous_format)
    if x.numel() == 0:
        return x.new_empty(x.shape, dtype=found.codes_dtype), torch.full(
            (batch, kv_heads), SMALLEST_SCALE, dtype=torch.float32, device=x.device
        )
    by_head = grouped.transpose(1, 2).reshape(batch * kv_heads, -1)
    codes, scales = reference.quantize(by_head, Quantizer(found, by_head.shape[1], clip_ratio))
    codes = codes.view(batch, kv_heads, tokens, heads // kv_heads * n).transpose(1, 2).contiguous()
    return codes.view(x.shape), scales.view(batch, kv_heads)


def _quantize_heads_by_kernels(
    x: Tensor,
    format: str,
    kv_heads: int,
    per_token: bool,
    scale: Tensor | None,
    clip_ratio: float,
    transform_scale: float,
    signs: Tensor | None,
    interleaved: bool,
    rope: Sequence[Tensor],
    rotate: bool = True,
) -> tuple[Tensor, Tensor]:
    """Composed for what :func:`cuda_heads.why_not` names."""
    description = RotaryEmbedding(interleaved) if rope else None
    found = cuda_heads.quantize_heads(
        x, format, kv_heads, per_token, scale, clip_ratio, transform_scale, signs, description, rope, rotate
    )
    if isinstance(found, str):
        return _quantize_heads(
            x, format, kv_heads, per_token, scale, clip_ratio, transform_scale, signs, interleaved, rope, rotate
        )
    return found


LIBRARY.impl("hadamard_quantize_heads", _quantize_heads, "CPU")
LIBRARY.impl("hadamard_quantize_heads", _quantize_heads_by_kernels, "CUDA")


@torch.library.register_fake("hadacore::hadamard_quantize_heads", lib=LIBRARY)
def _fake(
    x: Tensor,
    format: str,
    kv_heads: int,
    per_token: bool,
    scale: Tensor | None,
    clip_ratio: float,
    transform_scale: float,
    signs: Tensor | None,
    interleaved: bool,
    rope: Sequence[Tensor],
    rotate: bool = True,
) -> tuple[Tensor, Tensor]:
    codes = x.new_empty(x.shape, dtype=BY_NAME[format].codes_dtype)
    return codes, x.new_empty(x.shape[:3] if per_token else (x.shape[0], kv_heads), dtype=torch.float32)
