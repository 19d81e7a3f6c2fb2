"""The kernels. A row of SIZE elements is (i, p, j): ORDER rows of a panel, PARTS, COLUMNS; H is a Kronecker product.

Three kernels, none of which has a bit of another row in the K of a product:

- ``short_rows``: rows stand in M, one product with H_COLUMNS on the exact input, butterflies between parts;
- ``panel``: a base matrix, or H_ORDER, times the panel, exact on the input; then bfloat16 high and low times H_COLUMNS;
  butterflies between parts. Short panels stand side by side in N;
- ``butterflies``: float32, and rows too short for a product.

Parts are separate tensors of the same layout, so that their butterflies stay in registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

# SIGNS and EPILOGUE; launch.py has the same numbers.
_SIGNS_BEFORE = tl.constexpr(1)
_SIGNS_AFTER = tl.constexpr(2)
_TO_INT8 = tl.constexpr(1)
_TO_E4M3 = tl.constexpr(2)
_TO_E4M3_BY_HARDWARE = tl.constexpr(3)
# PRODUCT of the panel.
_SYLVESTER = tl.constexpr(0)
_DIRECT = tl.constexpr(1)
_THREE_PARTS = tl.constexpr(2)
_IEEE = tl.constexpr(3)

# The interpreter has no products of bfloat16, and cuts fp32 off instead of rounding it to bfloat16.
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

_INFINITY_BITS = tl.constexpr(0x7F800000)
_SMALLEST_SCALE = tl.constexpr(2.0**-126)


@triton.jit
def _sylvester(ORDER: tl.constexpr, DTYPE: tl.constexpr):
    """H[i, j] = (-1)^popcount(i & j), up to order 256, from the indices: no memory is read."""
    index = tl.arange(0, ORDER)
    common = index[:, None] & index[None, :]
    common ^= common >> 4
    common ^= common >> 2
    common ^= common >> 1
    return tl.where((common & 1) == 1, -1.0, 1.0).to(DTYPE)


@triton.jit
def _to_bfloat16(values):
    """fp32 to bfloat16, to nearest, ties to even."""
    if _INTERPRETED:
        bits = values.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where(values == values, rounded, 0x7FC0).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        return values.to(tl.bfloat16)


@triton.jit
def _dot(left, right):
    """A product of 16-bit values, in fp32."""
    if _INTERPRETED:
        return tl.dot(left.to(tl.float32), right.to(tl.float32))
    else:
        return tl.dot(left, right)


@triton.jit
def _dot_onto(left, right, total):
    if _INTERPRETED:
        return tl.dot(left.to(tl.float32), right.to(tl.float32), total)
    else:
        return tl.dot(left, right, total)


@triton.jit
def _store(target, values, inside):
    """fp32 values, rounded to the type of the target."""
    if target.dtype.element_ty == tl.bfloat16:
        tl.store(target, _to_bfloat16(values), mask=inside)
    else:
        tl.store(target, values.to(target.dtype.element_ty), mask=inside)


@triton.jit
def _exchanged(pairs):
    """fp32 ``(outer, 2, inner)`` with the two of each pair exchanged, whatever bits they are."""
    if _INTERPRETED:  # where reductions are slow
        low, high = tl.split(tl.permute(pairs, (0, 2, 1)))
        return tl.permute(tl.join(high, low), (0, 2, 1))
    else:
        bits = pairs.to(tl.int32, bitcast=True)
        return (bits ^ tl.xor_sum(bits, 1, keep_dims=True)).to(tl.float32, bitcast=True)


@triton.jit
def _butterflies(values, ELEMENTS: tl.constexpr, LOG2: tl.constexpr, WARP_BITS: tl.constexpr):
    """Contract the lowest LOG2 index bits of fp32 ``values``, lowest first; the result is flat.

    The lowest WARP_BITS bits lie in registers and lanes of one warp: there the other of a pair comes by an exclusive or over
    the pair, which is one shuffle or none. Higher ones are split off, which moves the warps' bits to registers.
    """
    for bit in tl.static_range(LOG2):
        pairs = tl.reshape(values, [ELEMENTS >> (bit + 1), 2, 1 << bit])
        if bit < WARP_BITS:
            other = _exchanged(pairs)
            upper = (tl.arange(0, 2) == 1)[None, :, None]
            values = tl.where(upper, other - pairs, other + pairs)
        else:
            low, high = tl.split(tl.permute(pairs, (0, 2, 1)))
            values = tl.permute(tl.join(low + high, low - high), (0, 2, 1))
    return tl.reshape(values, [ELEMENTS])


@triton.jit
def _butterflies_between(parts, LOG2: tl.constexpr):
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
def _row_starts(row, inner_rows, outer, inner, SIZE: tl.constexpr, STRIDED: tl.constexpr):
    if STRIDED:
        return (row // inner_rows) * outer + (row % inner_rows) * inner
    else:
        return row * SIZE


@triton.jit
def _with_signs(values, signs, offsets, mask):
    """``values`` with their sign bits flipped where those of ``signs`` are set."""
    flips = tl.load(signs + offsets, mask=mask, other=1.0).to(values.dtype)
    if values.dtype.primitive_bitwidth == 16:
        bits = values.to(tl.int16, bitcast=True) ^ (flips.to(tl.int16, bitcast=True) & -0x8000)
    else:
        bits = values.to(tl.int32, bitcast=True) ^ (flips.to(tl.int32, bitcast=True) & -0x80000000)
    return bits.to(values.dtype, bitcast=True)


@triton.jit
def _magnitude_bits(values):
    """The bit patterns without sign, which are ordered as the magnitudes are, NaN above infinity."""
    return values.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _row_scale(amax_bits, amax_factor):
    """The scale of rows, its reciprocal, and whether all of the row is finite; docs/quantization.md has the rule."""
    finite = amax_bits < _INFINITY_BITS
    scale = tl.maximum(amax_bits.to(tl.float32, bitcast=True) * amax_factor, _SMALLEST_SCALE)
    scale = tl.where(finite, scale, float("nan"))
    return scale, tl.div_rn(1.0, scale), finite


@triton.jit
def _encode(values, finite, EPILOGUE: tl.constexpr):
    """Codes of scaled values, as int8 bits."""
    if EPILOGUE == _TO_INT8:
        # Magnitudes are at most 127 * 2^10. 1.5 * 2^23 has a unit of 1, so the sum is rounded to an integer, ties to even.
        rounded = (values + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000
        rounded = tl.minimum(tl.maximum(rounded, -127), 127)
        return tl.where(finite, rounded, 0).to(tl.int8)
    elif EPILOGUE == _TO_E4M3_BY_HARDWARE:
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


@triton.jit(do_not_specialize=["rows", "inner_rows", "sign_rows"])
def short_rows(
    x, out, signs, scales, rows, scale, inner_rows, x_outer, x_inner, out_outer, out_inner, sign_rows, amax_factor,
    ROWS: tl.constexpr, PARTS: tl.constexpr, LOG2_PARTS: tl.constexpr, COLUMNS: tl.constexpr,
    SIGNS: tl.constexpr, STRIDED: tl.constexpr, EPILOGUE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Rows of PARTS * COLUMNS elements, ROWS at a time."""
    SIZE: tl.constexpr = PARTS * COLUMNS
    matrix = _sylvester(COLUMNS, x.dtype.element_ty)
    r = tl.arange(0, ROWS).to(tl.int64)
    j = tl.arange(0, COLUMNS)
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=STAGES):
        first = tile * ROWS
        inside = (first + r < rows)[:, None]
        x_starts = _row_starts(first + r, inner_rows, x_outer, x_inner, SIZE, STRIDED)
        out_starts = _row_starts(first + r, inner_rows, out_outer, out_inner, SIZE, STRIDED)
        sign_starts = ((first + r) % sign_rows).to(tl.int32) * SIZE
        parts = ()
        for p in tl.static_range(PARTS):
            values = tl.load(x + x_starts[:, None] + (p * COLUMNS + j)[None, :], mask=inside, other=0.0)
            if SIGNS == _SIGNS_BEFORE:
                values = _with_signs(values, signs, sign_starts[:, None] + (p * COLUMNS + j)[None, :], inside)
            parts = parts + (_dot(values, matrix),)
        parts = _butterflies_between(parts, LOG2_PARTS)
        results = ()
        for p in tl.static_range(PARTS):
            result = parts[p] * scale
            if SIGNS == _SIGNS_AFTER:
                result = _with_signs(result, signs, sign_starts[:, None] + (p * COLUMNS + j)[None, :], inside)
            results = results + (result,)
        if EPILOGUE == 0:
            for p in tl.static_range(PARTS):
                target = out + out_starts[:, None] + (p * COLUMNS + j)[None, :]
                _store(target, results[p], inside)
        else:
            largest = tl.max(_magnitude_bits(results[0]), 1)
            for p in tl.static_range(1, PARTS):
                largest = tl.maximum(largest, tl.max(_magnitude_bits(results[p]), 1))
            row_scale, reciprocal, finite = _row_scale(largest, amax_factor)
            tl.store(scales + first + r, row_scale, mask=first + r < rows)
            for p in tl.static_range(PARTS):
                codes = _encode(results[p] * reciprocal[:, None], finite[:, None], EPILOGUE)
                tl.store(out + out_starts[:, None] + (p * COLUMNS + j)[None, :], codes, mask=inside)


@triton.jit
def _base_block(base, i, k, base_row_stride, base_column_stride, ORDER: tl.constexpr):
    """Rows i and columns k of the base, zero outside: padding of K meets zeros of the panel only."""
    inside = (i < ORDER)[:, None] & (k < ORDER)[None, :]
    return tl.load(base + i[:, None] * base_row_stride + k[None, :] * base_column_stride, mask=inside, other=0.0)


@triton.jit
def _product(left, right, PRODUCT: tl.constexpr):
    """A step of K, in fp32."""
    if PRODUCT == _THREE_PARTS:
        # fp32 is three bfloat16; the base is +1 and -1. Summed from zero, smallest first.
        high = _to_bfloat16(right)
        rest = right - high.to(tl.float32)
        middle = _to_bfloat16(rest)
        low = _to_bfloat16(rest - middle.to(tl.float32))
        return _dot_onto(left, high, _dot_onto(left, middle, _dot(left, low)))
    elif PRODUCT == _IEEE:
        return tl.dot(left.to(tl.float32), right.to(tl.float32), input_precision="ieee")
    else:
        return _dot(left, right)


@triton.jit(do_not_specialize=["rows", "inner_rows", "sign_rows"])
def panel(
    x, out, signs, scales, base, base_row_stride, base_column_stride,
    rows, scale, inner_rows, x_outer, x_inner, out_outer, out_inner, sign_rows, amax_factor,
    ORDER: tl.constexpr, M: tl.constexpr, K: tl.constexpr, K_STEPS: tl.constexpr, ROWS: tl.constexpr,
    PARTS: tl.constexpr, LOG2_PARTS: tl.constexpr, COLUMNS: tl.constexpr, LOG2_COLUMNS: tl.constexpr,
    PRODUCT: tl.constexpr, SPLIT: tl.constexpr, WARP_BITS: tl.constexpr,
    SIGNS: tl.constexpr, STRIDED: tl.constexpr, EPILOGUE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Rows of ORDER * PARTS * COLUMNS elements, ROWS side by side; program_id(1) is a block of M result rows of the base."""
    SIZE: tl.constexpr = ORDER * PARTS * COLUMNS
    N: tl.constexpr = ROWS * COLUMNS
    i = tl.program_id(1) * M + tl.arange(0, M)
    column = tl.arange(0, N)
    r = (column // COLUMNS).to(tl.int64)
    j = column % COLUMNS
    if SPLIT:
        matrix = _sylvester(COLUMNS, tl.bfloat16)
    if K_STEPS == 1:
        k = tl.arange(0, K)
        if PRODUCT == _SYLVESTER:
            left = _sylvester(ORDER, x.dtype.element_ty)
        else:
            left = _base_block(base, i, k, base_row_stride, base_column_stride, ORDER)
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=STAGES):
        first = tile * ROWS
        inside = (first + r < rows)[None, :]
        x_starts = _row_starts(first + r, inner_rows, x_outer, x_inner, SIZE, STRIDED)
        out_starts = _row_starts(first + r, inner_rows, out_outer, out_inner, SIZE, STRIDED)
        sign_starts = ((first + r) % sign_rows).to(tl.int32) * SIZE
        parts = ()
        for p in tl.static_range(PARTS):
            if K_STEPS == 1:
                index = k[:, None] * (PARTS * COLUMNS) + (p * COLUMNS + j)[None, :]
                present = inside & (k < ORDER)[:, None]
                right = tl.load(x + x_starts[None, :] + index, mask=present, other=0.0)
                if SIGNS == _SIGNS_BEFORE:
                    right = _with_signs(right, signs, sign_starts[None, :] + index, present)
                total = _product(left, right, PRODUCT)
            else:
                total = tl.zeros([M, N], tl.float32)
                for step in range(K_STEPS):
                    k = step * K + tl.arange(0, K)
                    index = k[:, None] * (PARTS * COLUMNS) + (p * COLUMNS + j)[None, :]
                    present = inside & (k < ORDER)[:, None]
                    right = tl.load(x + x_starts[None, :] + index, mask=present, other=0.0)
                    if SIGNS == _SIGNS_BEFORE:
                        right = _with_signs(right, signs, sign_starts[None, :] + index, present)
                    left = _base_block(base, i, k, base_row_stride, base_column_stride, ORDER)
                    total += _product(left, right, PRODUCT)
            if SPLIT:
                high = _to_bfloat16(total)
                low = _to_bfloat16(total - high.to(tl.float32))
                total = _dot_onto(low, matrix, _dot(high, matrix))
            elif LOG2_COLUMNS > 0:
                total = tl.reshape(_butterflies(total, M * N, LOG2_COLUMNS, WARP_BITS), [M, N])
            parts = parts + (total,)
        parts = _butterflies_between(parts, LOG2_PARTS)
        kept = inside & (i < ORDER)[:, None]
        results = ()
        for p in tl.static_range(PARTS):
            result = parts[p] * scale
            if SIGNS == _SIGNS_AFTER:
                index = i[:, None] * (PARTS * COLUMNS) + (p * COLUMNS + j)[None, :]
                result = _with_signs(result, signs, sign_starts[None, :] + index, kept)
            results = results + (result,)
        if EPILOGUE == 0:
            for p in tl.static_range(PARTS):
                target = out + out_starts[None, :] + i[:, None] * (PARTS * COLUMNS) + (p * COLUMNS + j)[None, :]
                _store(target, results[p], kept)
        else:
            # Padding is zero, and the least magnitude.
            largest = tl.max(_magnitude_bits(results[0]), 0)
            for p in tl.static_range(1, PARTS):
                largest = tl.maximum(largest, tl.max(_magnitude_bits(results[p]), 0))
            largest = tl.max(tl.reshape(largest, [ROWS, COLUMNS]), 1)
            row_scale, reciprocal, finite = _row_scale(largest, amax_factor)
            row = first + tl.arange(0, ROWS).to(tl.int64)
            tl.store(scales + row, row_scale, mask=row < rows)
            reciprocal = tl.reshape(tl.broadcast_to(reciprocal[:, None], [ROWS, COLUMNS]), [N])[None, :]
            finite = tl.reshape(tl.broadcast_to(finite[:, None], [ROWS, COLUMNS]), [N])[None, :]
            for p in tl.static_range(PARTS):
                target = out + out_starts[None, :] + i[:, None] * (PARTS * COLUMNS) + (p * COLUMNS + j)[None, :]
                tl.store(target, _encode(results[p] * reciprocal, finite, EPILOGUE), mask=kept)


@triton.jit(do_not_specialize=["rows", "inner_rows", "sign_rows"])
def butterflies(
    x, out, signs, scales, rows, scale, inner_rows, x_outer, x_inner, out_outer, out_inner, sign_rows, amax_factor,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, LOG2_COLUMNS: tl.constexpr,
    WARP_BITS: tl.constexpr, SIGNS: tl.constexpr, STRIDED: tl.constexpr, EPILOGUE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Rows of COLUMNS elements, ROWS at a time, in fp32 additions alone."""
    TILE: tl.constexpr = ROWS * COLUMNS
    element = tl.arange(0, TILE)
    r = (element // COLUMNS).to(tl.int64)
    j = element % COLUMNS
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=STAGES):
        first = tile * ROWS
        inside = first + r < rows
        if STRIDED:
            source = x + _row_starts(first + r, inner_rows, x_outer, x_inner, COLUMNS, True) + j
            target = out + _row_starts(first + r, inner_rows, out_outer, out_inner, COLUMNS, True) + j
        else:
            # One sum, as the compiler does not see that element // 1 and element % 1 are together as contiguous as element.
            source = x + first * COLUMNS + element
            target = out + first * COLUMNS + element
        sign_index = ((first + r) % sign_rows).to(tl.int32) * COLUMNS + j
        # A mask that may change between elements makes each a memory access of its own, as rows of one element would all be.
        unmasked = COLUMNS == 1 and first + ROWS <= rows
        if unmasked:
            values = tl.load(source).to(tl.float32)
        else:
            values = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        if SIGNS == _SIGNS_BEFORE:
            values = _with_signs(values, signs, sign_index, inside)
        values = _butterflies(values, TILE, LOG2_COLUMNS, WARP_BITS) * scale
        if SIGNS == _SIGNS_AFTER:
            values = _with_signs(values, signs, sign_index, inside)
        if EPILOGUE == 0:
            if unmasked:
                _store(target, values, None)
            else:
                _store(target, values, inside)
        else:
            values = tl.reshape(values, [ROWS, COLUMNS])
            row_scale, reciprocal, finite = _row_scale(tl.max(_magnitude_bits(values), 1), amax_factor)
            row = first + tl.arange(0, ROWS).to(tl.int64)
            tl.store(scales + row, row_scale, mask=row < rows)
            codes = _encode(values * reciprocal[:, None], finite[:, None], EPILOGUE)
            tl.store(target, tl.reshape(codes, [TILE]), mask=inside)
