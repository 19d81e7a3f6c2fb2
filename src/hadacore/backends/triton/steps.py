"""Steps of the kernels: products, butterflies, loads and stores, and what makes codes."""

from __future__ import annotations

import triton
import triton.language as tl

# SIGNS and EPILOGUE; launch.py has the same numbers.
SIGNS_BEFORE = tl.constexpr(1)
SIGNS_AFTER = tl.constexpr(2)
TO_INT8 = tl.constexpr(1)
TO_E4M3 = tl.constexpr(2)
TO_E4M3_BY_HARDWARE = tl.constexpr(3)
# PRODUCT of the panel.
SYLVESTER = tl.constexpr(0)
DIRECT = tl.constexpr(1)
THREE_PARTS = tl.constexpr(2)
IEEE = tl.constexpr(3)
TWO_PARTS = tl.constexpr(4)  # of bits alone

# The interpreter has no products of bfloat16, and cuts fp32 off instead of rounding it to bfloat16.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

INFINITY_BITS = tl.constexpr(0x7F800000)
SMALLEST_SCALE = tl.constexpr(2.0**-126)


@triton.jit
def sylvester(ORDER: tl.constexpr, DTYPE: tl.constexpr):
    """H[i, j] = (-1)^popcount(i & j), up to order 256, from the indices: no memory is read."""
    index = tl.arange(0, ORDER)
    common = index[:, None] & index[None, :]
    common ^= common >> 4
    common ^= common >> 2
    common ^= common >> 1
    return tl.where((common & 1) == 1, -1.0, 1.0).to(DTYPE)


@triton.jit
def to_bfloat16(values):
    """fp32 to bfloat16, to nearest, ties to even."""
    if INTERPRETED:
        bits = values.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where(values == values, rounded, 0x7FC0).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        return values.to(tl.bfloat16)


@triton.jit
def split_bfloat16(values, BY_INTEGERS: tl.constexpr):
    """fp32 as bfloat16 nearest to it, and what is left of it in fp32.

    BY_INTEGERS: ties away from zero, without conversions, of which single ones have an eighth of the throughput of additions on
    NVIDIA GPUs. NaN may become a zero, but what is left of it is NaN. Only for sums of a base that is in shared memory or
    registers: after a loop that reads the base step by step, the error was 8 times that of correct rounding on an H200 with
    Triton 3.6, as if what is left were lost.
    """
    if BY_INTEGERS:
        rounded = (values.to(tl.int32, bitcast=True) + 0x8000) & -0x10000
        high = (rounded >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
        rest = values - rounded.to(tl.float32, bitcast=True)
    else:
        high = to_bfloat16(values)
        rest = values - high.to(tl.float32)
    return high, rest


@triton.jit
def dot(left, right):
    """A product of 16-bit values, in fp32."""
    if INTERPRETED:
        return tl.dot(left.to(tl.float32), right.to(tl.float32))
    else:
        return tl.dot(left, right)


@triton.jit
def dot_onto(left, right, total):
    """A product of 16-bit values added to ``total``, in fp32."""
    if INTERPRETED:
        return tl.dot(left.to(tl.float32), right.to(tl.float32), total)
    else:
        return tl.dot(left, right, total)


@triton.jit
def store(target, values, inside):
    """fp32 values, rounded to the type of the target."""
    if target.dtype.element_ty == tl.bfloat16:
        tl.store(target, to_bfloat16(values), mask=inside)
    else:
        tl.store(target, values.to(target.dtype.element_ty), mask=inside)


@triton.jit
def exchanged(pairs):
    """fp32 ``(outer, 2, inner)`` with the two of each pair exchanged, whatever bits they are."""
    if INTERPRETED:  # where reductions are slow
        low, high = tl.split(tl.permute(pairs, (0, 2, 1)))
        return tl.permute(tl.join(high, low), (0, 2, 1))
    else:
        bits = pairs.to(tl.int32, bitcast=True)
        return (bits ^ tl.xor_sum(bits, 1, keep_dims=True)).to(tl.float32, bitcast=True)


@triton.jit
def contract_bits(
    values, ELEMENTS: tl.constexpr, FIRST: tl.constexpr, END: tl.constexpr, WARP_BITS: tl.constexpr,
    FUSED: tl.constexpr = False,
):  # fmt: skip
    """Contract index bits FIRST to END - 1 of fp32 ``values``, lowest first; the result is flat.

    The lowest WARP_BITS bits lie in registers and lanes of one warp: there the other of a pair comes by an exclusive or over
    the pair, which is one shuffle or none. Higher ones are split off, which moves the warps' bits to registers.

    FUSED: a shuffled pair is added by a multiplication with 1 or -1, exact, one instruction in place of a sum, a difference and
    a choice.
    """
    for bit in tl.static_range(FIRST, END):
        pairs = tl.reshape(values, [ELEMENTS >> (bit + 1), 2, 1 << bit])
        if bit < WARP_BITS:
            other = exchanged(pairs)
            upper = (tl.arange(0, 2) == 1)[None, :, None]
            if FUSED:
                values = tl.fma(pairs, tl.broadcast_to(tl.where(upper, -1.0, 1.0), pairs.shape), other)
            else:
                values = tl.where(upper, other - pairs, other + pairs)
        else:
            low, high = tl.split(tl.permute(pairs, (0, 2, 1)))
            values = tl.permute(tl.join(low + high, low - high), (0, 2, 1))
    return tl.reshape(values, [ELEMENTS])


@triton.jit
def contract_parts(parts, LOG2: tl.constexpr):
    """Contract the bits of the number of the part, lowest first."""
    for bit in tl.static_range(LOG2):
        contracted = ()
        for p in tl.static_range(1 << LOG2):
            if (p >> bit) & 1:
                contracted = contracted + (parts[p - (1 << bit)] - parts[p],)
            else:
                contracted = contracted + (parts[p] + parts[p + (1 << bit)],)
        parts = contracted
    return parts


@triton.jit
def row_starts(row, inner_rows, outer, inner, SIZE: tl.constexpr, STRIDED: tl.constexpr):
    """Offsets of the first elements of rows."""
    if STRIDED:
        return (row // inner_rows) * outer + (row % inner_rows) * inner
    else:
        return row * SIZE


@triton.jit
def fetch_rows(
    x, first, rows, inner_rows, x_outer, x_inner, SIZE: tl.constexpr, STRIDED: tl.constexpr, ROWS: tl.constexpr
):
    """Ask for ROWS rows from ``first`` on, of those that there are, to be brought into the second level; PTX."""
    LINE: tl.constexpr = 1024 // x.dtype.element_ty.primitive_bitwidth  # elements of 128 bytes
    LINES: tl.constexpr = triton.next_power_of_2(triton.cdiv(SIZE, LINE))
    row = first + tl.arange(0, ROWS).to(tl.int64)
    starts = row_starts(row, inner_rows, x_outer, x_inner, SIZE, STRIDED)
    line = tl.arange(0, LINES) * LINE
    wanted = (row < rows)[:, None] & (line < SIZE)[None, :]
    tl.inline_asm_elementwise(
        "{ .reg .pred wanted; setp.ne.b32 wanted, $2, 0; @wanted prefetch.global.L2 [$1]; mov.b32 $0, 0; }",
        "=r,l,r", [x + starts[:, None] + line[None, :], wanted.to(tl.int32)], tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def with_signs(values, signs, offsets, mask):
    """``values`` with their sign bits flipped where those of ``signs`` are set."""
    flips = tl.load(signs + offsets, mask=mask, other=1.0).to(values.dtype)
    if values.dtype.primitive_bitwidth == 16:
        bits = values.to(tl.int16, bitcast=True) ^ (flips.to(tl.int16, bitcast=True) & -0x8000)
    else:
        bits = values.to(tl.int32, bitcast=True) ^ (flips.to(tl.int32, bitcast=True) & -0x80000000)
    return bits.to(values.dtype, bitcast=True)


@triton.jit
def magnitude_bits(values):
    """The bit patterns without sign, which are ordered as the magnitudes are, NaN above infinity."""
    return values.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def scale_of_rows(amax_bits, amax_factor):
    """The scale of rows, its reciprocal, and whether all of the row is finite; docs/quantization.md has the rule."""
    finite = amax_bits < INFINITY_BITS
    scale = tl.maximum(amax_bits.to(tl.float32, bitcast=True) * amax_factor, SMALLEST_SCALE)
    scale = tl.where(finite, scale, float("nan"))
    return scale, tl.div_rn(1.0, scale), finite


@triton.jit
def encode(values, finite, EPILOGUE: tl.constexpr):
    """Codes of scaled values, as int8 bits."""
    if EPILOGUE == TO_INT8:
        # Magnitudes are at most 127 * 2^10. 1.5 * 2^23 has a unit of 1, so the sum is rounded to an integer, ties to even.
        rounded = (values + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000
        rounded = tl.minimum(tl.maximum(rounded, -127), 127)
        return tl.where(finite, rounded, 0).to(tl.int8)
    elif EPILOGUE == TO_E4M3_BY_HARDWARE:
        clamped = tl.minimum(tl.maximum(values, -448.0), 448.0)
        codes = clamped.to(tl.float8e4nv).to(tl.int8, bitcast=True)
        return tl.where(finite, codes, 0x7F).to(tl.int8)
    else:
        bits = values.to(tl.int32, bitcast=True)
        magnitude = tl.minimum((bits & 0x7FFFFFFF).to(tl.float32, bitcast=True), 448.0)
        magnitude_bits = magnitude.to(tl.int32, bitcast=True)
        # From 2^-6 on: keep 3 bits of the significand, ties to even, and exponent bias 7 instead of 127.
        normal = ((magnitude_bits + 0x7FFFF + ((magnitude_bits >> 20) & 1)) >> 20) - (120 << 3)
        # Below: multiples of 2^-9, which is the unit of 2^14 in fp32.
        subnormal = (magnitude + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
        codes = tl.where(magnitude < 0.015625, subnormal, normal) | ((bits >> 24) & 0x80)
        return tl.where(finite, codes, 0x7F).to(tl.int8)


@triton.jit
def store_codes(
    out, scales, results, out_starts, first, rows, inside, i, j, amax_factor, ORDER: tl.constexpr, M: tl.constexpr,
    M_BLOCKS: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr, EPILOGUE: tl.constexpr,
):  # fmt: skip
    """Codes and scales of ROWS rows from ``first`` on. Results are M_BLOCKS blocks of M rows i, PARTS each, 0 in padding."""
    largest = tl.max(magnitude_bits(results[0]), 0)
    for p in tl.static_range(1, M_BLOCKS * PARTS):
        largest = tl.maximum(largest, tl.max(magnitude_bits(results[p]), 0))
    largest = tl.max(tl.reshape(largest, [ROWS, COLUMNS]), 1)
    row_scale, reciprocal, finite = scale_of_rows(largest, amax_factor)
    row = first + tl.arange(0, ROWS).to(tl.int64)
    tl.store(scales + row, row_scale, mask=row < rows)
    reciprocal = tl.reshape(tl.broadcast_to(reciprocal[:, None], [ROWS, COLUMNS]), [ROWS * COLUMNS])[None, :]
    finite = tl.reshape(tl.broadcast_to(finite[:, None], [ROWS, COLUMNS]), [ROWS * COLUMNS])[None, :]
    for b in tl.static_range(M_BLOCKS):
        kept = inside & (b * M + i < ORDER)[:, None]
        for p in tl.static_range(PARTS):
            index = (b * M + i)[:, None] * (PARTS * COLUMNS) + (p * COLUMNS + j)[None, :]
            codes = encode(results[b * PARTS + p] * reciprocal, finite, EPILOGUE)
            tl.store(out + out_starts[None, :] + index, codes, mask=kept)


@triton.jit
def base_block(base, i, k, base_row_stride, base_column_stride, BASE_ORDER: tl.constexpr):
    """Rows i and columns k of the base, zero outside: padding of K meets zeros of the panel only."""
    inside = (i < BASE_ORDER)[:, None] & (k < BASE_ORDER)[None, :]
    return tl.load(base + i[:, None] * base_row_stride + k[None, :] * base_column_stride, mask=inside, other=0.0)


@triton.jit
def product(left, right, PRODUCT: tl.constexpr):
    """A step of K, in fp32."""
    if PRODUCT == THREE_PARTS:
        # fp32 is three bfloat16; the base is +1 and -1. Summed from zero, smallest first.
        high, rest = split_bfloat16(right, False)
        middle, rest = split_bfloat16(rest, False)
        return dot_onto(left, high, dot_onto(left, middle, dot(left, to_bfloat16(rest))))
    elif PRODUCT == IEEE:
        return tl.dot(left.to(tl.float32), right.to(tl.float32), input_precision="ieee")
    else:
        return dot(left, right)


@triton.jit
def add_product(total, left, right, PRODUCT: tl.constexpr):
    """A step of K added to those before: 16-bit products in the accumulator, parts of fp32 by an addition that rounds."""
    if PRODUCT <= DIRECT:
        return dot_onto(left, right, total)
    else:
        return total + product(left, right, PRODUCT)


@triton.jit
def panel_rows(
    x, signs, x_starts, sign_starts, inside, k, columns, ORDER: tl.constexpr, STRIDE: tl.constexpr, SIGNS: tl.constexpr,
    CACHED: tl.constexpr,
):  # fmt: skip
    """Rows k of a panel, zero outside; CACHED in the first level too."""
    index = k[:, None] * STRIDE + columns[None, :]
    present = inside & (k < ORDER)[:, None]
    if CACHED:
        values = tl.load(x + x_starts[None, :] + index, mask=present, other=0.0)
    else:
        values = tl.load(x + x_starts[None, :] + index, mask=present, other=0.0, cache_modifier=".cg")
    if SIGNS == SIGNS_BEFORE:
        values = with_signs(values, signs, sign_starts[None, :] + index, present)
    return values


@triton.jit
def contract_columns(
    total, matrix, M: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, LOG2_COLUMNS: tl.constexpr,
    INNER: tl.constexpr, LOG2_INNER: tl.constexpr, SPLIT: tl.constexpr, BY_INTEGERS: tl.constexpr, WARP_BITS: tl.constexpr,
    FUSED: tl.constexpr,
):  # fmt: skip
    """Contract the columns of fp32 ``(M, ROWS * COLUMNS)``: bfloat16 high and low times H_INNER, or butterflies.

    Bits above INNER, which lie in a lane's registers, are butterflies.
    """
    if SPLIT:
        GROUPS: tl.constexpr = ROWS * COLUMNS // INNER
        # What is side by side in N goes to M, which moves nothing between the warps of a block of 64 or more result rows.
        if GROUPS > 1:
            total = tl.permute(tl.reshape(total, [M, GROUPS, INNER]), (1, 0, 2))
            total = tl.reshape(total, [GROUPS * M, INNER])
        high, rest = split_bfloat16(total, BY_INTEGERS)
        total = dot_onto(to_bfloat16(rest), matrix, dot(high, matrix))
        if GROUPS > 1:
            total = tl.permute(tl.reshape(total, [GROUPS, M, INNER]), (1, 0, 2))
            total = tl.reshape(total, [M, ROWS * COLUMNS])
        if INNER < COLUMNS:
            total = contract_bits(total, M * ROWS * COLUMNS, LOG2_INNER, LOG2_COLUMNS, LOG2_COLUMNS)
            total = tl.reshape(total, [M, ROWS * COLUMNS])
    elif LOG2_COLUMNS > 0:
        total = contract_bits(total, M * ROWS * COLUMNS, 0, LOG2_COLUMNS, WARP_BITS, FUSED)
        total = tl.reshape(total, [M, ROWS * COLUMNS])
    return total


@triton.jit
def pair_up(parts, ORDER: tl.constexpr):
    """Sums of neighbours, then differences."""
    sums = ()
    differences = ()
    for i in tl.static_range(0, ORDER, 2):
        sums = sums + (parts[i] + parts[i + 1],)
        differences = differences + (parts[i] - parts[i + 1],)
    return sums + differences


@triton.jit
def signed(pairs, BASE: tl.constexpr, FIRST: tl.constexpr, PAIR: tl.constexpr, ORDER: tl.constexpr):
    """A pair of parts with the signs in bits FIRST and FIRST + 1 of BASE: plus or minus their sum or difference."""
    SECOND: tl.constexpr = FIRST + 1
    OPPOSITE: tl.constexpr = ((BASE >> FIRST) ^ (BASE >> SECOND)) & 1
    term = pairs[PAIR + OPPOSITE * (ORDER // 2)]
    return -term if (BASE >> FIRST) & 1 else term


@triton.jit
def signed_sum(pairs, BASE: tl.constexpr, ROW: tl.constexpr, ORDER: tl.constexpr):
    """Row ROW of the base times the parts."""
    total = signed(pairs, BASE, ROW * ORDER, 0, ORDER)
    for h in tl.static_range(1, ORDER // 2):
        total += signed(pairs, BASE, ROW * ORDER + 2 * h, h, ORDER)
    return total
