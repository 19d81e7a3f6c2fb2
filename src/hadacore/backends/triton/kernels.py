"""The kernels. A row of SIZE elements is (i, p, j): ORDER rows of a panel, PARTS, COLUMNS; H is a Kronecker product.

Five kernels, none of which has a bit of another row in the K of a product:

- ``short_rows``: rows stand in M, one product with H_COLUMNS on the exact input, butterflies between parts;
- ``panel``: a base matrix, or H_ORDER, times the panel, exact on the input; then bfloat16 high and low times H_COLUMNS;
  butterflies between parts. Short panels stand side by side in N;
- ``bits``, in a module of its own: a panel whose base becomes +1 and -1 in registers;
- ``butterflies``: float32, and rows too short for a product;
- ``sums``: a small base matrix in registers. Columns as in ``short_rows`` or ``butterflies``, then fp32 sums of parts.

Parts are separate tensors of the same layout, so that their butterflies stay in registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hadacore.backends.triton.bits import bits
from hadacore.backends.triton.steps import (
    SIGNS_AFTER,
    SIGNS_BEFORE,
    SYLVESTER,
    add_product,
    base_block,
    contract_bits,
    contract_columns,
    contract_parts,
    dot,
    encode,
    fetch_rows,
    magnitude_bits,
    pair_up,
    panel_rows,
    product,
    row_starts,
    scale_of_rows,
    signed_sum,
    store,
    store_codes,
    sylvester,
    with_signs,
)

__all__ = ["bits", "butterflies", "panel", "short_rows", "sums"]


@triton.jit(do_not_specialize=["rows", "inner_rows", "sign_rows"])
def short_rows(
    x, out, signs, scales, rows, scale, inner_rows, x_outer, x_inner, out_outer, out_inner, sign_rows, amax_factor,
    ROWS: tl.constexpr, PARTS: tl.constexpr, LOG2_PARTS: tl.constexpr, COLUMNS: tl.constexpr,
    SIGNS: tl.constexpr, STRIDED: tl.constexpr, EPILOGUE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Rows of PARTS * COLUMNS elements, ROWS at a time."""
    SIZE: tl.constexpr = PARTS * COLUMNS
    matrix = sylvester(COLUMNS, x.dtype.element_ty)
    r = tl.arange(0, ROWS).to(tl.int64)
    j = tl.arange(0, COLUMNS)
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=STAGES):
        first = tile * ROWS
        inside = (first + r < rows)[:, None]
        x_starts = row_starts(first + r, inner_rows, x_outer, x_inner, SIZE, STRIDED)
        out_starts = row_starts(first + r, inner_rows, out_outer, out_inner, SIZE, STRIDED)
        sign_starts = ((first + r) % sign_rows).to(tl.int32) * SIZE
        parts = ()
        for p in tl.static_range(PARTS):
            values = tl.load(x + x_starts[:, None] + (p * COLUMNS + j)[None, :], mask=inside, other=0.0)
            if SIGNS == SIGNS_BEFORE:
                values = with_signs(values, signs, sign_starts[:, None] + (p * COLUMNS + j)[None, :], inside)
            parts = parts + (dot(values, matrix),)
        parts = contract_parts(parts, LOG2_PARTS)
        results = ()
        for p in tl.static_range(PARTS):
            result = parts[p] * scale
            if SIGNS == SIGNS_AFTER:
                result = with_signs(result, signs, sign_starts[:, None] + (p * COLUMNS + j)[None, :], inside)
            results = results + (result,)
        if EPILOGUE == 0:
            for p in tl.static_range(PARTS):
                target = out + out_starts[:, None] + (p * COLUMNS + j)[None, :]
                store(target, results[p], inside)
        else:
            largest = tl.max(magnitude_bits(results[0]), 1)
            for p in tl.static_range(1, PARTS):
                largest = tl.maximum(largest, tl.max(magnitude_bits(results[p]), 1))
            row_scale, reciprocal, finite = scale_of_rows(largest, amax_factor)
            tl.store(scales + first + r, row_scale, mask=first + r < rows)
            for p in tl.static_range(PARTS):
                codes = encode(results[p] * reciprocal[:, None], finite[:, None], EPILOGUE)
                tl.store(out + out_starts[:, None] + (p * COLUMNS + j)[None, :], codes, mask=inside)


@triton.jit(do_not_specialize=["rows", "inner_rows", "sign_rows"])
def panel(
    x, out, signs, scales, base, base_row_stride, base_column_stride,
    rows, scale, inner_rows, x_outer, x_inner, out_outer, out_inner, sign_rows, amax_factor,
    ORDER: tl.constexpr, BASE_ORDER: tl.constexpr, M: tl.constexpr, M_BLOCKS: tl.constexpr,
    K: tl.constexpr, K_STEPS: tl.constexpr, KEPT: tl.constexpr, ROWS: tl.constexpr,
    PARTS: tl.constexpr, LOG2_PARTS: tl.constexpr, COLUMNS: tl.constexpr, LOG2_COLUMNS: tl.constexpr,
    INNER: tl.constexpr, LOG2_INNER: tl.constexpr, PRODUCT: tl.constexpr, SPLIT: tl.constexpr, WARP_BITS: tl.constexpr,
    FUSED: tl.constexpr, FETCH: tl.constexpr,
    SIGNS: tl.constexpr, STRIDED: tl.constexpr, EPILOGUE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Rows of ORDER * PARTS * COLUMNS elements, ROWS side by side.

    program_id(1) is M_BLOCKS blocks of M result rows of the base. KEPT: the base stays in shared memory, else each step of K
    reads it again. It is zero from ORDER to BASE_ORDER. FETCH: the first rows are on their way from memory to the second level
    while the base is loaded.
    """
    STRIDE: tl.constexpr = PARTS * COLUMNS
    SIZE: tl.constexpr = ORDER * STRIDE
    N: tl.constexpr = ROWS * COLUMNS
    i = tl.program_id(1) * (M_BLOCKS * M) + tl.arange(0, M)
    k = tl.arange(0, K)
    column = tl.arange(0, N)
    r = (column // COLUMNS).to(tl.int64)
    j = column % COLUMNS
    if FETCH:
        first = tl.program_id(0) * ROWS
        fetch_rows(x, first, rows, inner_rows, x_outer, x_inner, SIZE, STRIDED, ROWS)
    matrix = None
    if SPLIT:
        matrix = sylvester(INNER, tl.bfloat16)
    if KEPT:
        lefts = ()
        if PRODUCT == SYLVESTER:
            lefts = (sylvester(ORDER, x.dtype.element_ty),)
        else:
            for b in tl.static_range(M_BLOCKS):
                for step in tl.static_range(K_STEPS):
                    left = base_block(base, i + b * M, k + step * K, base_row_stride, base_column_stride, BASE_ORDER)
                    lefts = lefts + (left,)
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=STAGES):
        first = tile * ROWS
        inside = (first + r < rows)[None, :]
        x_starts = row_starts(first + r, inner_rows, x_outer, x_inner, SIZE, STRIDED)
        out_starts = row_starts(first + r, inner_rows, out_outer, out_inner, SIZE, STRIDED)
        sign_starts = ((first + r) % sign_rows).to(tl.int32) * SIZE
        totals = ()
        for p in tl.static_range(PARTS):
            if KEPT:
                rights = ()
                for step in tl.static_range(K_STEPS):
                    right = panel_rows(
                        x,
                        signs,
                        x_starts,
                        sign_starts,
                        inside,
                        k + step * K,
                        p * COLUMNS + j,
                        ORDER,
                        STRIDE,
                        SIGNS,
                        True,
                    )
                    rights = rights + (right,)
                for b in tl.static_range(M_BLOCKS):
                    total = product(lefts[b * K_STEPS], rights[0], PRODUCT)
                    for step in tl.static_range(1, K_STEPS):
                        total = add_product(total, lefts[b * K_STEPS + step], rights[step], PRODUCT)
                    total = contract_columns(
                        total, matrix, M, ROWS, COLUMNS, LOG2_COLUMNS, INNER, LOG2_INNER, SPLIT, KEPT, WARP_BITS, FUSED
                    )
                    totals = totals + (total,)
            else:
                total = tl.zeros([M, N], tl.float32)
                for step in range(K_STEPS):
                    steps = step * K + k
                    right = panel_rows(
                        x, signs, x_starts, sign_starts, inside, steps, p * COLUMNS + j, ORDER, STRIDE, SIGNS, True
                    )
                    left = base_block(base, i, steps, base_row_stride, base_column_stride, BASE_ORDER)
                    total = add_product(total, left, right, PRODUCT)
                total = contract_columns(
                    total, matrix, M, ROWS, COLUMNS, LOG2_COLUMNS, INNER, LOG2_INNER, SPLIT, KEPT, WARP_BITS, FUSED
                )
                totals = totals + (total,)
        results = ()
        for b in tl.static_range(M_BLOCKS):
            parts = ()
            for p in tl.static_range(PARTS):
                parts = parts + (totals[p * M_BLOCKS + b],)
            parts = contract_parts(parts, LOG2_PARTS)
            for p in tl.static_range(PARTS):
                result = parts[p] * scale
                if SIGNS == SIGNS_AFTER:
                    kept = inside & (i + b * M < ORDER)[:, None]
                    index = (i + b * M)[:, None] * STRIDE + (p * COLUMNS + j)[None, :]
                    result = with_signs(result, signs, sign_starts[None, :] + index, kept)
                results = results + (result,)
        if EPILOGUE == 0:
            for b in tl.static_range(M_BLOCKS):
                kept = inside & (i + b * M < ORDER)[:, None]
                for p in tl.static_range(PARTS):
                    index = (i + b * M)[:, None] * STRIDE + (p * COLUMNS + j)[None, :]
                    store(out + out_starts[None, :] + index, results[b * PARTS + p], kept)
        else:
            # Padding is zero, and the least magnitude.
            store_codes(
                out, scales, results, out_starts, first, rows, inside, i, j, amax_factor, ORDER, M, M_BLOCKS, ROWS, PARTS,
                COLUMNS, EPILOGUE,
            )  # fmt: skip


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
        if COLUMNS == 1 and not STRIDED:
            # One sum, as the compiler does not see that element // 1 and element % 1 are together as contiguous as element.
            source = x + first + element
            target = out + first + element
        else:
            # Here a lane has to have one row's columns at most, or its masked accesses are 16 bytes from its neighbour's.
            source = x + row_starts(first + r, inner_rows, x_outer, x_inner, COLUMNS, STRIDED) + j
            target = out + row_starts(first + r, inner_rows, out_outer, out_inner, COLUMNS, STRIDED) + j
        sign_index = ((first + r) % sign_rows).to(tl.int32) * COLUMNS + j
        # A mask that may change between elements makes each a memory access of its own, as rows of one element would all be.
        unmasked = COLUMNS == 1 and first + ROWS <= rows
        if unmasked:
            values = tl.load(source)
        else:
            values = tl.load(source, mask=inside, other=0.0)
        values = values.to(tl.float32)
        if SIGNS == SIGNS_BEFORE:
            values = with_signs(values, signs, sign_index, inside)
        values = contract_bits(values, TILE, 0, LOG2_COLUMNS, WARP_BITS) * scale
        if SIGNS == SIGNS_AFTER:
            values = with_signs(values, signs, sign_index, inside)
        if EPILOGUE == 0:
            if unmasked:
                store(target, values, None)
            else:
                store(target, values, inside)
        else:
            values = tl.reshape(values, [ROWS, COLUMNS])
            row_scale, reciprocal, finite = scale_of_rows(tl.max(magnitude_bits(values), 1), amax_factor)
            row = first + tl.arange(0, ROWS).to(tl.int64)
            tl.store(scales + row, row_scale, mask=row < rows)
            codes = encode(values * reciprocal[:, None], finite[:, None], EPILOGUE)
            tl.store(target, tl.reshape(codes, [TILE]), mask=inside)


@triton.jit(do_not_specialize=["rows", "inner_rows", "sign_rows"])
def sums(
    x, out, signs, scales, rows, scale, inner_rows, x_outer, x_inner, out_outer, out_inner, sign_rows, amax_factor,
    ORDER: tl.constexpr, BASE: tl.constexpr, ROWS: tl.constexpr, UPPER: tl.constexpr, COLUMNS: tl.constexpr,
    LOG2_COLUMNS: tl.constexpr, LOG2_UPPER: tl.constexpr, LOG2_ROWS: tl.constexpr, EXACT: tl.constexpr,
    WARP_BITS: tl.constexpr, FUSED: tl.constexpr,
    SIGNS: tl.constexpr, STRIDED: tl.constexpr, EPILOGUE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Rows of ORDER * UPPER * COLUMNS elements, ROWS at a time: each of ORDER parts by itself, then the base as sums of parts.

    Bit ``i * ORDER + k`` of BASE says that element (i, k) of the base is -1. UPPER stands in M, above the rows.
    """
    PART: tl.constexpr = UPPER * COLUMNS
    SIZE: tl.constexpr = ORDER * PART
    M: tl.constexpr = UPPER * ROWS
    BELOW: tl.constexpr = LOG2_COLUMNS + LOG2_ROWS
    if EXACT:
        matrix = sylvester(COLUMNS, x.dtype.element_ty)
    m = tl.arange(0, M)
    r = (m % ROWS).to(tl.int64)
    index = (m // ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=STAGES):
        first = tile * ROWS
        inside = (first + r < rows)[:, None]
        source = x + row_starts(first + r, inner_rows, x_outer, x_inner, SIZE, STRIDED)[:, None] + index
        target = out + row_starts(first + r, inner_rows, out_outer, out_inner, SIZE, STRIDED)[:, None] + index
        sign_index = ((first + r) % sign_rows).to(tl.int32)[:, None] * SIZE + index
        loaded = ()
        for i in tl.static_range(ORDER):
            values = tl.load(source + i * PART, mask=inside, other=0.0)
            if SIGNS == SIGNS_BEFORE:
                values = with_signs(values, signs, sign_index + i * PART, inside)
            loaded = loaded + (values,)
        parts = ()
        if EXACT:
            for i in tl.static_range(ORDER):
                part = dot(loaded[i], matrix)
                if LOG2_UPPER > 0:  # all of M lies in one warp
                    part = contract_bits(part, M * COLUMNS, BELOW, BELOW + LOG2_UPPER, BELOW + LOG2_UPPER)
                parts = parts + (tl.reshape(part, [M, COLUMNS]),)
        else:
            # Four at a time, as tensors of four times the registers: the compiler's time grows with the square of their number.
            for i in tl.static_range(0, ORDER, 4):
                even = tl.join(loaded[i].to(tl.float32), loaded[i + 2].to(tl.float32))
                odd = tl.join(loaded[i + 1].to(tl.float32), loaded[i + 3].to(tl.float32))
                four = contract_bits(tl.join(even, odd), 4 * M * COLUMNS, 2, 2 + LOG2_COLUMNS, 2 + WARP_BITS, FUSED)
                even, odd = tl.split(tl.reshape(four, [M, COLUMNS, 2, 2]))
                first_part, third = tl.split(even)
                second, fourth = tl.split(odd)
                parts = parts + (first_part, second, third, fourth)
        pairs = pair_up(parts, ORDER)
        results = ()
        for i in tl.static_range(ORDER):
            result = signed_sum(pairs, BASE, i, ORDER) * scale
            if SIGNS == SIGNS_AFTER:
                result = with_signs(result, signs, sign_index + i * PART, inside)
            if EPILOGUE == 0:  # at once, so that its registers are free again
                store(target + i * PART, result, inside)
            else:
                results = results + (result,)
        if EPILOGUE != 0:
            largest = magnitude_bits(results[0])
            for i in tl.static_range(1, ORDER):
                largest = tl.maximum(largest, magnitude_bits(results[i]))
            largest = tl.max(tl.max(tl.reshape(largest, [UPPER, ROWS, COLUMNS]), 2), 0)
            row_scale, reciprocal, finite = scale_of_rows(largest, amax_factor)
            row = first + tl.arange(0, ROWS).to(tl.int64)
            tl.store(scales + row, row_scale, mask=row < rows)
            reciprocal = tl.reshape(tl.broadcast_to(reciprocal[None, :], [UPPER, ROWS]), [M])[:, None]
            finite = tl.reshape(tl.broadcast_to(finite[None, :], [UPPER, ROWS]), [M])[:, None]
            for i in tl.static_range(ORDER):
                tl.store(target + i * PART, encode(results[i] * reciprocal, finite, EPILOGUE), mask=inside)
