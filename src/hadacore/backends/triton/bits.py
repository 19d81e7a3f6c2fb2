"""A panel whose base is bits: they become +1 and -1 in the registers of a product's left operand.

A base of order 428 has 23 KiB of bits, which stay close to the multiprocessor, where its 16-bit elements would come from the
second level for each row; and one of order 172 leaves shared memory to the rows. So a program computes all of a row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hadacore.backends.triton.steps import (
    SIGNS_AFTER,
    TWO_PARTS,
    contract_columns,
    contract_parts,
    dot,
    dot_onto,
    fetch_rows,
    magnitude_bits,
    panel_rows,
    row_starts,
    store,
    store_codes,
    sylvester,
    with_signs,
)


@triton.jit
def zeros_of_rows(M: tl.constexpr, K: tl.constexpr):
    """M zeros where the rows of a product's result lie: what they are added to is computed there, not moved there.

    The only program of axis 1 is 0, which the compiler does not know.
    """
    zero = tl.program_id(1).to(tl.float16)
    zeros = dot(tl.full([M, 16], 1.0, tl.float16), tl.zeros([16, K], tl.float16) + zero)
    return tl.max(zeros.to(tl.int32, bitcast=True), 1)


@triton.jit
def words_of_rows(bits, i, zeros, ORDER: tl.constexpr, WORDS: tl.constexpr):
    """Words of rows i of the base; the same word of neighbouring rows is side by side, as a warp reads it."""
    words = ()
    for w in tl.static_range(WORDS):
        words = words + (tl.load(bits + w * ORDER + i, mask=i < ORDER, other=0) | zeros,)
    return words


@triton.jit
def base_of_words(words, FIRST: tl.constexpr, K: tl.constexpr, DTYPE: tl.constexpr, PTX: tl.constexpr):
    """+1 and -1 of K columns, 32 in a word: the signs of two neighbours are one shift away."""
    k = tl.arange(0, K)[None, :]
    word = words[FIRST][:, None]
    for w in tl.static_range(1, K // 32):
        word = tl.where(k >= 32 * w, words[FIRST + w][:, None], word)
    word, shift = tl.broadcast(word, (k >> 1) & 15)
    ONES: tl.constexpr = 0x3C003C00 if DTYPE == tl.float16 else 0x3F803F80
    if PTX:  # opaque, so that it stays two instructions for two elements; taken apart they are twelve
        pair = tl.inline_asm_elementwise(
            "{ .reg .b32 shifted; shl.b32 shifted, $1, $2; lop3.b32 $0, shifted, 0x80008000, $3, 0xEA; }",
            "=r,r,r,r", [word, shift, ONES], tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    else:
        pair = ((word << shift) & -0x7FFF8000) | ONES
    return tl.where((k & 1) == 1, pair >> 16, pair).to(tl.int16).to(DTYPE, bitcast=True)


@triton.jit
def powers_of_rows(loaded, STEPS: tl.constexpr, TAIL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """For each column of rows side by side a power of two with which its row is below 2^15, and its reciprocal.

    An infinity stays one. Rows below 2^-112 are raised by 2^126 alone, as its reciprocal has to be normal.
    """
    magnitudes = magnitude_bits(loaded[0])
    for step in tl.static_range(1, STEPS):
        magnitudes = tl.maximum(magnitudes, magnitude_bits(loaded[step]))
    largest = tl.max(magnitudes, 0)
    if TAIL:
        largest = tl.maximum(largest, tl.max(magnitude_bits(loaded[STEPS]), 0))
    largest = tl.max(tl.reshape(largest, [ROWS, COLUMNS]), 1)
    largest = tl.reshape(tl.broadcast_to(largest[:, None], [ROWS, COLUMNS]), [ROWS * COLUMNS])
    raised = tl.minimum(268 - (largest >> 23), 253)
    return (raised << 23).to(tl.float32, bitcast=True), ((254 - raised) << 23).to(tl.float32, bitcast=True)


@triton.jit
def right_operands(values, raising, PRODUCT: tl.constexpr):
    """What the base is multiplied by: the input, or two float16 that are within 2^-23 of its fp32.

    The second float16 is subnormal, and less precise, only below 2^-25 of a row's largest element.
    """
    if PRODUCT == TWO_PARTS:
        values = values * raising[None, :]
        high = ((values.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
        return high.to(tl.float16), (values - high).to(tl.float16)
    else:
        return (values,)


@triton.jit
def step_of_base(left, operands, FIRST: tl.constexpr, PRODUCT: tl.constexpr):
    """A step of K from zero; of two parts the smaller first."""
    if PRODUCT == TWO_PARTS:
        return dot_onto(left, operands[FIRST], dot(left, operands[FIRST + 1]))
    else:
        return dot(left, operands[FIRST])


@triton.jit
def block_of_rows(
    words, operands, matrix, M: tl.constexpr, K: tl.constexpr, K_STEPS: tl.constexpr, TAIL: tl.constexpr,
    ROWS: tl.constexpr, PARTS: tl.constexpr, LOG2_PARTS: tl.constexpr, COLUMNS: tl.constexpr,
    LOG2_COLUMNS: tl.constexpr, INNER: tl.constexpr, LOG2_INNER: tl.constexpr, PRODUCT: tl.constexpr, SPLIT: tl.constexpr,
    WARP_BITS: tl.constexpr, FUSED: tl.constexpr, DTYPE: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """M rows of the result, of whose rows of the base are the words, a part each."""
    OPERANDS: tl.constexpr = 2 if PRODUCT == TWO_PARTS else 1
    OF_PART: tl.constexpr = (K_STEPS + (TAIL > 0)) * OPERANDS
    lefts = ()
    for step in tl.static_range(K_STEPS):
        lefts = lefts + (base_of_words(words, step * (K // 32), K, DTYPE, PTX),)
    if TAIL > 0:
        lefts = lefts + (base_of_words(words, K_STEPS * (K // 32), TAIL, DTYPE, PTX),)
    parts = ()
    for p in tl.static_range(PARTS):
        total = step_of_base(lefts[0], operands, p * OF_PART, PRODUCT)
        for step in tl.static_range(1, OF_PART // OPERANDS):
            if OPERANDS > 1:  # Tensor Cores cut off what they add to an accumulator, an addition rounds
                total += step_of_base(lefts[step], operands, p * OF_PART + step * OPERANDS, PRODUCT)
            else:
                total = dot_onto(lefts[step], operands[p * OF_PART + step], total)
        total = contract_columns(
            total, matrix, M, ROWS, COLUMNS, LOG2_COLUMNS, INNER, LOG2_INNER, SPLIT, True, WARP_BITS, FUSED
        )
        parts = parts + (total,)
    return contract_parts(parts, LOG2_PARTS)


@triton.jit
def finished(part, scale, lowering, signs, sign_starts, index, kept, PRODUCT: tl.constexpr, SIGNS: tl.constexpr):
    """A part of the result, scaled, back at the size of its input, with the signs that come after."""
    result = part * scale
    if PRODUCT == TWO_PARTS:
        result = result * lowering[None, :]
    if SIGNS == SIGNS_AFTER:
        result = with_signs(result, signs, sign_starts[None, :] + index, kept)
    return result


@triton.jit(do_not_specialize=["rows", "inner_rows", "sign_rows"])
def bits(
    x, out, signs, scales, base, rows, scale, inner_rows, x_outer, x_inner, out_outer, out_inner, sign_rows, amax_factor,
    ORDER: tl.constexpr, M: tl.constexpr, M_BLOCKS: tl.constexpr,
    K: tl.constexpr, K_STEPS: tl.constexpr, TAIL: tl.constexpr, LOOP: tl.constexpr, ROWS: tl.constexpr,
    PARTS: tl.constexpr, LOG2_PARTS: tl.constexpr, COLUMNS: tl.constexpr, LOG2_COLUMNS: tl.constexpr,
    INNER: tl.constexpr, LOG2_INNER: tl.constexpr, PRODUCT: tl.constexpr, SPLIT: tl.constexpr, WARP_BITS: tl.constexpr,
    FUSED: tl.constexpr, PTX: tl.constexpr, AHEAD: tl.constexpr, FETCH: tl.constexpr,
    SIGNS: tl.constexpr, STRIDED: tl.constexpr, EPILOGUE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Rows of ORDER * PARTS * COLUMNS elements, ROWS side by side, in M_BLOCKS blocks of M result rows, one after another.

    LOOP: the blocks are a loop, so that no program has all of a row at a time. AHEAD: with the words of the next block on their
    way. FETCH: with the next rows on their way from memory to the second level.
    """
    STRIDE: tl.constexpr = PARTS * COLUMNS
    SIZE: tl.constexpr = ORDER * STRIDE
    N: tl.constexpr = ROWS * COLUMNS
    WORDS: tl.constexpr = (K_STEPS * K + TAIL) // 32
    DTYPE: tl.constexpr = tl.float16 if PRODUCT == TWO_PARTS else x.dtype.element_ty
    i = tl.arange(0, M)
    column = tl.arange(0, N)
    r = (column // COLUMNS).to(tl.int64)
    j = column % COLUMNS
    matrix = None
    if SPLIT:
        matrix = sylvester(INNER, tl.bfloat16)
    zeros = zeros_of_rows(M, K)
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=STAGES):
        first = tile * ROWS
        inside = (first + r < rows)[None, :]
        x_starts = row_starts(first + r, inner_rows, x_outer, x_inner, SIZE, STRIDED)
        out_starts = row_starts(first + r, inner_rows, out_outer, out_inner, SIZE, STRIDED)
        sign_starts = ((first + r) % sign_rows).to(tl.int32) * SIZE
        # Rows are read once, past the cache that the base is to stay in.
        loaded = ()
        for p in tl.static_range(PARTS):
            for step in tl.static_range(K_STEPS):
                k = step * K + tl.arange(0, K)
                values = panel_rows(
                    x, signs, x_starts, sign_starts, inside, k, p * COLUMNS + j, ORDER, STRIDE, SIGNS, False
                )
                loaded = loaded + (values,)
            if TAIL > 0:
                k = K_STEPS * K + tl.arange(0, TAIL)
                values = panel_rows(
                    x, signs, x_starts, sign_starts, inside, k, p * COLUMNS + j, ORDER, STRIDE, SIGNS, False
                )
                loaded = loaded + (values,)
        if FETCH:
            fetch_rows(x, first + tl.num_programs(0) * ROWS, rows, inner_rows, x_outer, x_inner, SIZE, STRIDED, ROWS)
        raising, lowering = None, None
        if PRODUCT == TWO_PARTS:
            raising, lowering = powers_of_rows(loaded, K_STEPS, TAIL > 0, ROWS, COLUMNS)
        operands = ()
        for step in tl.static_range(PARTS * (K_STEPS + (TAIL > 0))):
            operands = operands + right_operands(loaded[step], raising, PRODUCT)
        if LOOP:
            if AHEAD:
                next_words = words_of_rows(base, i, zeros, ORDER, WORDS)
            for b in tl.range(M_BLOCKS, num_stages=1):
                if AHEAD:
                    words = next_words
                    next_words = words_of_rows(base, (b + 1) * M + i, zeros, ORDER, WORDS)
                else:
                    words = words_of_rows(base, b * M + i, zeros, ORDER, WORDS)
                parts = block_of_rows(
                    words, operands, matrix, M, K, K_STEPS, TAIL, ROWS, PARTS, LOG2_PARTS, COLUMNS, LOG2_COLUMNS, INNER,
                    LOG2_INNER, PRODUCT, SPLIT, WARP_BITS, FUSED, DTYPE, PTX,
                )  # fmt: skip
                kept = inside & (b * M + i < ORDER)[:, None]
                for p in tl.static_range(PARTS):
                    index = (b * M + i)[:, None] * STRIDE + (p * COLUMNS + j)[None, :]
                    result = finished(parts[p], scale, lowering, signs, sign_starts, index, kept, PRODUCT, SIGNS)
                    store(out + out_starts[None, :] + index, result, kept)
        else:
            results = ()
            for b in tl.static_range(M_BLOCKS):
                words = words_of_rows(base, b * M + i, zeros, ORDER, WORDS)
                parts = block_of_rows(
                    words, operands, matrix, M, K, K_STEPS, TAIL, ROWS, PARTS, LOG2_PARTS, COLUMNS, LOG2_COLUMNS, INNER,
                    LOG2_INNER, PRODUCT, SPLIT, WARP_BITS, FUSED, DTYPE, PTX,
                )  # fmt: skip
                kept = inside & (b * M + i < ORDER)[:, None]
                for p in tl.static_range(PARTS):
                    index = (b * M + i)[:, None] * STRIDE + (p * COLUMNS + j)[None, :]
                    result = finished(parts[p], scale, lowering, signs, sign_starts, index, kept, PRODUCT, SIGNS)
                    if EPILOGUE == 0:  # at once, so that its registers are free again
                        store(out + out_starts[None, :] + index, result, kept)
                    else:  # rows of the base that are padding are not zero
                        results = results + (tl.where(kept, result, 0.0),)
            if EPILOGUE != 0:
                store_codes(
                    out, scales, results, out_starts, first, rows, inside, i, j, amax_factor, ORDER, M, M_BLOCKS, ROWS, PARTS,
                    COLUMNS, EPILOGUE,
                )  # fmt: skip
