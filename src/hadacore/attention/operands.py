"""From queries, keys and values to what is multiplied: rotary embedding, rotation of each head, codes and decode scales.

The rules for scales and codes are those of ``docs/quantization.md``. FP8 with a scale for each head or token goes through the
operator of :func:`hadacore.quantize_query_key`; everything else is composed here of the transform and PyTorch operations.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from hadacore.attention.recipes import BLOCK_TOKENS, PER_BLOCK, PER_HEAD, PER_TOKEN, AttentionRecipe
from hadacore.formats import BY_NAME, PER_TENSOR, SMALLEST_SCALE, Quantizer
from hadacore.functional import hadamard_transform
from hadacore.matrices import hadamard_matrix
from hadacore.prologues import Prologue, RotaryEmbedding
from hadacore.quantization import prologue_reference, rounding
from hadacore.quantization.query_key import rotate_and_quantize_heads


@dataclass(frozen=True, eq=False)
class Operand:
    """Queries, keys or values as they are multiplied.

    Attributes:
        codes: ``(batch, tokens, heads, head_dim)``, batch 1 for packed sequences: E4M3, int8 (which holds INT4 codes too, one
            a byte), or the type of the input where nothing is quantized.
        scales: Decode scales in fp32: no dimensions for one of the tensor; ``(sequences, kv_heads)`` per head;
            ``(batch, tokens, heads)`` per token or block. None where nothing is quantized.
    """

    codes: Tensor
    scales: Tensor | None

    def sequence(self, index: int, start: int, stop: int) -> Operand:
        """The tokens from ``start`` to ``stop`` of packed sequences, which are sequence ``index``."""
        scales = self.scales
        if scales is not None and scales.dim() == 2:
            scales = scales[index : index + 1]
        elif scales is not None and scales.dim() == 3:
            scales = scales[:, start:stop]
        return Operand(self.codes[:, start:stop], scales)

    def scale_of_tokens(self) -> Tensor | None:
        """The scales as they broadcast to ``(batch, tokens, heads)``."""
        scales = self.scales
        if scales is None or scales.dim() != 2:
            return scales
        return scales.repeat_interleave(self.codes.shape[2] // scales.shape[1], 1)[:, None, :]


@dataclass(frozen=True, eq=False)
class Operands:
    """The three operands.

    Attributes:
        q: Queries.
        k: Keys.
        v: Values.
        dtype: Of the queries before anything was done to them.
        signs: What a rotation began with.
    """

    q: Operand
    k: Operand
    v: Operand
    dtype: torch.dtype
    signs: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Packing:
    """Where packed sequences begin.

    Attributes:
        offsets: int32, ``(sequences + 1,)``: the first token of each sequence, and the number of tokens.
        sequence: int64, ``(tokens,)``: the sequence of each token.
    """

    offsets: Tensor
    sequence: Tensor

    @staticmethod
    def of(offsets: Tensor, tokens: int) -> Packing:
        """The packing of so many tokens."""
        index = torch.arange(tokens, dtype=torch.int32, device=offsets.device)
        return Packing(offsets, torch.searchsorted(offsets[1:].contiguous(), index, right=True))

    def blocks(self) -> tuple[Tensor, int]:
        """The block of each token, counted over all sequences, and an upper bound of their number."""
        tokens = self.sequence.shape[0]
        begin = self.offsets[:-1].long()
        lengths = self.offsets[1:].long() - begin
        counts = (lengths + BLOCK_TOKENS - 1) // BLOCK_TOKENS
        first = counts.cumsum(0) - counts
        position = torch.arange(tokens, device=begin.device) - begin[self.sequence]
        bound = tokens // BLOCK_TOKENS + lengths.shape[0]
        return first[self.sequence] + position // BLOCK_TOKENS, bound


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    recipe: AttentionRecipe,
    rope: Prologue | None = None,
    packed: tuple[Packing, Packing] | None = None,
) -> Operands:
    """Everything before the products, for ``(batch, tokens, heads, head_dim)``, batch 1 for packed sequences.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        recipe: What to do.
        rope: Rotary embedding of queries and keys.
        packed: Of queries, and of keys and values.
    """
    signs = recipe.signs(q.shape[3], q.device) if recipe.rotated else None
    of_q, of_k = packed if packed is not None else (None, None)
    kv_heads = k.shape[2]
    # One operator for rotary embedding, rotation and quantization, where there is one.
    granularities = (PER_HEAD, PER_TOKEN) if packed is None else (PER_TOKEN,)
    one_pass = recipe.is_fp8 and not recipe.explicit and recipe.granularity in granularities
    if one_pass:
        query, key = (_by_operator(x, kv_heads, recipe, recipe.rotate, signs, rope) for x in (q, k))
        value = _by_operator(v, kv_heads, recipe, recipe.rotate_value, signs, None)
    else:
        query = _prepare_one(q, recipe, recipe.rotate, signs, kv_heads, rope, of_q, quantize=recipe.quantize_query)
        key = _prepare_one(k, recipe, recipe.rotate, signs, kv_heads, rope, of_k, quantize=True)
        value = _prepare_one(v, recipe, recipe.rotate_value, signs, kv_heads, None, of_k, quantize=True)
    return Operands(query, key, value, q.dtype, signs)


def _by_operator(
    x: Tensor, kv_heads: int, recipe: AttentionRecipe, rotate: bool, signs: Tensor | None, rope: Prologue | None
) -> Operand:
    """FP8 by the operator that :func:`hadacore.quantize_query_key` runs, rotated or not."""
    assert recipe.format is not None
    signs = None if signs is None or not rotate else signs.to(x.dtype)
    factor = x.shape[3] ** -0.5 if rotate else 1.0
    granularity = recipe.granularity
    return Operand(
        *rotate_and_quantize_heads(x, kv_heads, recipe.format, granularity, factor, signs, rope, rotate=rotate)
    )


def _prepare_one(
    x: Tensor,
    recipe: AttentionRecipe,
    rotated: bool,
    signs: Tensor | None,
    kv_heads: int,
    rope: Prologue | None,
    packing: Packing | None,
    *,
    quantize: bool,
) -> Operand:
    values = x
    if rope is not None:
        assert isinstance(rope.description, RotaryEmbedding)
        values = prologue_reference.rotate_pairs(rope.description, x, rope.operands)
    if rotated:
        # Rotated values are rounded to 16 bits only where they stay in 16 bits.
        values = rotate(values.float(), signs, recipe.explicit)
    if recipe.format is None or not quantize:
        return Operand(values.to(x.dtype), None)
    return quantize_heads(values.contiguous(), recipe.format, recipe.granularity, kv_heads, packing)


@functools.lru_cache(16)
def _matrix(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # Kept: it comes from the host, which a CUDA graph cannot record.
    return hadamard_matrix(n, dtype=dtype, device=device)


def rotate(x: Tensor, signs: Tensor | None, explicit: bool = False) -> Tensor:
    """Rotate the last dimension, orthonormally; ``explicit`` by a product with the matrix in x's type."""
    if not explicit:
        return hadamard_transform(x, signs=signs)
    n = x.shape[-1]
    matrix = _matrix(n, x.dtype, x.device)
    if signs is not None:
        x = x * signs.to(x.dtype)
    rotated: Tensor = x @ matrix.T * n**-0.5
    return rotated


def rotate_back(x: Tensor, signs: Tensor | None, explicit: bool = False) -> Tensor:
    """Undo :func:`rotate`; computed in fp32 and rounded once to x's type."""
    if not explicit:
        return hadamard_transform(x, signs=None if signs is None else signs.to(x.dtype), inverse=True)
    n = x.shape[-1]
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    y: Tensor = x.to(work) @ _matrix(n, work, x.device) * n**-0.5
    return (y if signs is None else y * signs).to(x.dtype)


def quantize_heads(
    values: Tensor, format: str, granularity: str, kv_heads: int, packing: Packing | None = None
) -> Operand:
    """Codes and scales of ``(batch, tokens, heads, head_dim)``, 16-bit or fp32, of which there is one at least.

    A scale is ``max(amax * fp32(1 / maximum), 2^-126)``, a code the rounded product with its reciprocal. A group that
    holds NaN or infinity has the scale NaN, and any codes.
    """
    found = BY_NAME[format]
    encoding = found.encoding
    batch, tokens, heads, n = values.shape
    # The magnitudes of 16-bit values are compared as they are, in one pass over memory.
    if granularity == PER_TENSOR:
        shared = _largest(values, (0, 1, 2, 3))
    elif granularity == PER_HEAD:
        by_head = values.view(batch, tokens, kv_heads, heads // kv_heads * n)
        if packing is None:
            shared = _largest(by_head, (1, 3))
        else:
            of_tokens = _largest(by_head[0], (2,))
            shared = _largest_of_groups(of_tokens, packing.sequence, packing.offsets.shape[0] - 1)
    elif granularity == PER_BLOCK:
        shared = _largest_of_blocks(_largest(values, (3,)), packing)
    else:
        shared = _largest(values, (3,))
    scales = (shared * Quantizer(found, 0).amax_factor).clamp_(min=SMALLEST_SCALE)
    scales.masked_fill_(~shared.isfinite(), torch.nan)
    operand = Operand(values, scales)
    if packing is not None and granularity == PER_HEAD:
        factor = scales.reciprocal()[packing.sequence].repeat_interleave(heads // kv_heads, 1)[None]
    else:
        broadcast = operand.scale_of_tokens()
        assert broadcast is not None
        factor = broadcast.reciprocal()
    scaled = values * (factor.unsqueeze(-1) if factor.dim() else factor.view(1))  # in fp32, whatever the values are
    if encoding.is_integer:
        return Operand(rounding.to_integer(scaled.nan_to_num_(nan=0.0), encoding), scales)
    # Scales are those of the largest magnitude, so that nothing is beyond E4M3's 448 by more than roundings, far less than the
    # 464 up to which every conversion gives 448: no clamping, which would be two more passes over memory.
    return Operand(scaled.to(found.codes_dtype), scales)


def _largest(values: Tensor, dimensions: tuple[int, ...]) -> Tensor:
    """The largest magnitude over some dimensions, in fp32; NaN where there is one."""
    largest: Tensor = torch.linalg.vector_norm(values, float("inf"), dimensions)
    return largest.float()


def _largest_of_groups(largest: Tensor, group: Tensor, groups: int) -> Tensor:
    """``(tokens, heads)`` to ``(groups, heads)``."""
    result = largest.new_zeros((groups, largest.shape[1]))
    return result.scatter_reduce_(0, group[:, None].expand_as(largest), largest, "amax")


def _largest_of_blocks(largest: Tensor, packing: Packing | None) -> Tensor:
    """The largest of each token's block, ``(batch, tokens, heads)`` as before."""
    batch, tokens, heads = largest.shape
    if packing is not None:
        block, blocks = packing.blocks()
        return _largest_of_groups(largest[0], block, blocks)[block][None]
    padded = torch.nn.functional.pad(largest, (0, 0, 0, -tokens % BLOCK_TOKENS))
    by_block = padded.view(batch, -1, BLOCK_TOKENS, heads).amax(2)
    return by_block.repeat_interleave(BLOCK_TOKENS, 1)[:, :tokens]
